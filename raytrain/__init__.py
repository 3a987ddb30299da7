"""raytrain: fault-tolerant RLlib PPO under Ray Tune.

    import raytrain
    config = raytrain.load_config("configs/cartpole.yaml")
    outcome = raytrain.train(config)             # start, continue, or find finished
    outcome = raytrain.resume(outcome.path)      # the same, from the directory alone
    policy = raytrain.load_policy(f"{outcome.path}:best")
    action = policy.act(observation)             # one observation, or a batch
    raytrain.list_checkpoints(outcome.path)

For programs that use RLlib and Ray Tune:

    from raytrain import Tuner                   # in place of ray.tune.Tuner
    raytrain.train(PPOConfig()..., stop={"training_iteration": 100})
    print(raytrain.to_yaml(PPOConfig()...))      # the same run as a YAML file

For programs that use a server (`raytrain serve`):

    client = raytrain.Client("http://127.0.0.1:8200", token)

Ray and Torch are imported by the functions that need them, not by `import raytrain`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from raytrain.errors import BadInput, RaytrainError

if TYPE_CHECKING:
    from ray.rllib.algorithms.ppo import PPOConfig

    from raytrain.checkpoint import Entry
    from raytrain.config import ExperimentConfig
    from raytrain.driver.outcome import Outcome
    from raytrain.migrate.tuner import Tuner
    from raytrain.policy.policy import Policy
    from raytrain.server.client import Client

__all__ = [
    "BadInput",
    "Client",
    "RaytrainError",
    "Tuner",
    "list_checkpoints",
    "load_config",
    "load_policy",
    "resume",
    "to_yaml",
    "train",
]


_LAZY = {"Client": "raytrain.server.client", "Tuner": "raytrain.migrate.tuner"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def load_config(path: str | PathLike[str], *, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read and validate a YAML file; `overrides` are `key=value` with dotted keys.

    Raises:
        BadInput: with every problem found, each with its line, value and nearest valid name.
    """
    from raytrain.config import load_config as load

    return load(Path(path), overrides=overrides)


def train(
    config: ExperimentConfig | PPOConfig | Mapping[str, Any] | str | PathLike[str],
    *,
    stop: Mapping[str, Any] | None = None,
    checkpoint: Any = None,
    name: str | None = None,
    storage_path: str | PathLike[str] | None = None,
    fresh: bool = False,
    from_checkpoint: str | PathLike[str] | None = None,
    weights_only: bool = False,
    from_stage: str | None = None,
    address: str | None = None,
) -> Outcome:
    """Start or continue a run, or find it finished.

    Args:
        config: an `ExperimentConfig`, a mapping of the same shape, a YAML file, or RLlib's
            `PPOConfig`.
        stop: with a `PPOConfig`: what ends the run, by Tune's names of metrics or raytrain's.
        checkpoint: with a `PPOConfig`: a `CheckpointConfig`, or raytrain's keys.
        name: with a `PPOConfig`: the run's directory. Without it the settings give a name, so
            the same settings are the same run.
        storage_path: with a `PPOConfig`: where the directory is.
        fresh: move the run's old directory aside first.
        from_checkpoint: fork: begin a new run at a checkpoint of another run.
        weights_only: with `from_checkpoint`: take only weights and filters.
        from_stage: go back to the end of this stage of the curriculum.
        address: a running Ray cluster.

    Returns an `Outcome` with `exit_code` (0 finished, 1 failed, 130/143 interrupted after saving),
    `path` and `message`. Progress is printed on stderr.

    Raises:
        BadInput: the config is invalid, or differs from that of the run in its directory.
        RaytrainError: the storage cannot be used, or another process is training there.
    """
    from raytrain.config import ExperimentConfig, config_from_dict, require_metrics
    from raytrain.config import load_config as load
    from raytrain.driver.experiment import train as run
    from raytrain.driver.fork import Fork

    if _is_rllibs(config):
        from raytrain.migrate.tuner import train_ppo

        if from_checkpoint is not None or from_stage is not None:
            raise BadInput(
                "train: a fork and stages need raytrain's own config; raytrain.to_yaml writes it."
            )
        return train_ppo(
            config,
            stop=stop,
            checkpoint=checkpoint,
            name=name,
            storage_path=storage_path,
            fresh=fresh,
            address=address,
        )
    if not (stop is checkpoint is name is storage_path is None):
        raise BadInput("train: stop, checkpoint, name and storage_path are in the config already.")
    if isinstance(config, Mapping):
        config = config_from_dict(config)
        require_metrics(config)
    elif not isinstance(config, ExperimentConfig):
        config = load(Path(config))
    fork = None if from_checkpoint is None else Fork(str(from_checkpoint), weights_only)
    return run(
        config,
        fresh=fresh,
        fork=fork,
        from_stage=from_stage,
        address=address,
        command="the same call",
    )


def to_yaml(
    config: PPOConfig,
    *,
    stop: Mapping[str, Any] | None = None,
    checkpoint: Any = None,
    name: str | None = None,
) -> str:
    """RLlib's `PPOConfig` as a YAML file for raytrain; the arguments are those of `train`. Without
    `stop` the file ends a run after 1,000,000 steps.

    Raises:
        BadInput: with every setting that cannot be taken over, and the reason.
    """
    from raytrain.migrate.tuner import to_yaml as written

    return written(config, stop=stop, checkpoint=checkpoint, name=name)


def _is_rllibs(config: Any) -> TypeGuard[PPOConfig]:
    names = [(base.__module__.partition(".")[0], base.__name__) for base in type(config).__mro__]
    return ("ray", "AlgorithmConfig") in names


def resume(
    path: str | PathLike[str], *, overrides: Sequence[str] = (), address: str | None = None
) -> Outcome:
    """Continue the experiment in the directory `path`; `overrides` are `key=value` with dotted
    keys. Returns and raises as `train` does."""
    from raytrain.driver.experiment import resume as run

    return run(str(path), overrides=overrides, address=address, command="the same call")


def load_policy(path: str | PathLike[str], *, seed: int | None = None) -> Policy:
    """The policy of a checkpoint, of an experiment (from its newest good checkpoint), or of
    `EXPERIMENT_DIR:best` or `:final`. Nothing is unpickled and Ray is not started.

    `policy.act(obs, deterministic=True)` takes one observation or a batch, and returns actions for
    the environment; `seed` seeds sampled actions.

    Raises:
        BadInput: there is no policy at `path`.
        RaytrainError: the checkpoint is damaged.
    """
    from raytrain.checkpoint.resolve import local_policy_directory
    from raytrain.policy.policy import load_policy as load

    with local_policy_directory(str(path)) as directory:
        return load(directory, seed=seed)


def list_checkpoints(path: str | PathLike[str]) -> list[Entry]:
    """Every checkpoint of an experiment or a trial, verified, by trial and iteration. An entry has
    `path`, `kind`, `iteration`, `timesteps`, `score`, `weights_sha256`, `good` and `problem`."""
    from raytrain.checkpoint.resolve import entries_below

    return entries_below(str(path))
