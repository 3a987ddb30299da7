"""raytrain: fault-tolerant RLlib PPO under Ray Tune.

    import raytrain
    config = raytrain.load_config("configs/cartpole.yaml")
    outcome = raytrain.train(config)             # start, continue, or find finished
    outcome = raytrain.resume(outcome.path)      # the same, from the directory alone
    policy = raytrain.load_policy(f"{outcome.path}:best")
    action = policy.act(observation)             # one observation, or a batch
    raytrain.list_checkpoints(outcome.path)

Ray and Torch are imported by the functions that need them, not by `import raytrain`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain.errors import BadInput, RaytrainError

if TYPE_CHECKING:
    from raytrain.checkpoint import Entry
    from raytrain.config import ExperimentConfig
    from raytrain.driver.outcome import Outcome
    from raytrain.policy.policy import Policy

__all__ = [
    "BadInput",
    "RaytrainError",
    "list_checkpoints",
    "load_config",
    "load_policy",
    "resume",
    "train",
]


def load_config(path: str | PathLike[str], *, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read and validate a YAML file; `overrides` are `key=value` with dotted keys.

    Raises:
        BadInput: with every problem found, each with its line, value and nearest valid name.
    """
    from raytrain.config import load_config as load

    return load(Path(path), overrides=overrides)


def train(
    config: ExperimentConfig | Mapping[str, Any] | str | PathLike[str],
    *,
    fresh: bool = False,
    from_checkpoint: str | PathLike[str] | None = None,
    weights_only: bool = False,
    from_stage: str | None = None,
    address: str | None = None,
) -> Outcome:
    """Start the run of `config` (an `ExperimentConfig`, a mapping of the same shape, or a YAML file),
    continue it, or find it finished. `fresh` sets an old directory aside first; `from_checkpoint`
    forks: a run that does not exist yet begins at a checkpoint of another one (`weights_only`: with
    its weights and filters alone); `from_stage` goes back to the end of this stage of the curriculum;
    `address` is a running Ray cluster.

    Returns an `Outcome` with `exit_code` (0 finished, 1 failed, 130/143 interrupted after saving),
    `path` and `message`. Progress goes to stderr.

    Raises:
        BadInput: the config is invalid, or not that of the run in its directory.
        RaytrainError: the storage cannot be used, or another process is training there.
    """
    from raytrain.config import ExperimentConfig, config_from_dict, require_metrics
    from raytrain.config import load_config as load
    from raytrain.driver.experiment import train as run
    from raytrain.driver.fork import Fork

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


def resume(path: str | PathLike[str], *, address: str | None = None) -> Outcome:
    """Continue the experiment in the directory `path`. Returns and raises as `train` does."""
    from raytrain.driver.experiment import resume as run

    return run(str(path), address=address, command="the same call")


def load_policy(path: str | PathLike[str], *, seed: int | None = None) -> Policy:
    """The policy of a checkpoint, of an experiment (its newest good checkpoint), or of
    `EXPERIMENT_DIR:best` or `:final`. Nothing is unpickled and Ray is not started.

    `policy.act(obs, deterministic=True)` takes one observation or a batch and returns actions as the
    environment expects them; `seed` seeds sampled actions.

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
