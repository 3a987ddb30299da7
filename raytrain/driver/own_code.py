"""The rehearsal of the user's own code before training (see `ppo.own_code_rehearsal`): what it
found, in words for the user.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain.config import ExperimentConfig, stage_config
from raytrain.config.own_code import own_code
from raytrain.driver.spaces import Say
from raytrain.errors import RaytrainError
from raytrain.rollout.env_snapshots.base import SnapshotError
from raytrain.rollout.env_snapshots.fresh_process import in_fresh_process
from raytrain.storage.scratch import scratch

if TYPE_CHECKING:  # It imports Ray.
    from raytrain.ppo.own_code_rehearsal import Iteration, Trail

OWN_CODE = "own_code"
"""The key in the entry `snapshot` of experiment.json."""

_STEPS = 256
"""Timesteps of an iteration in the rehearsal."""


class RehearsalFailed(SnapshotError):
    """The user's own code raised in the rehearsal."""

    exit_code = 2


@dataclass(frozen=True)
class Rehearsed:
    """Whether the user's own code can be restored exactly; `piece` is what cannot, `reason` why."""

    exact: bool
    piece: str = ""
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def names_own_code(config: ExperimentConfig) -> bool:
    """Whether a config names code of the user's own, the environment apart."""
    return bool(own_code(config) or config.training.torch_lr_schedulers)


def with_own_code(
    config: ExperimentConfig, snapshot: Mapping[str, Any], say: Say, hash_seed: int
) -> dict[str, Any]:
    """The entry `snapshot` of experiment.json with what the rehearsal found under `OWN_CODE`, for a
    config that names own code. It is done once for an entry.

    Raises:
        RehearsalFailed: the code raised.
    """
    if not names_own_code(config) or OWN_CODE in snapshot:
        return dict(snapshot)
    say("Trying your own code: two iterations are trained, saved, and restored in a new process.")
    found = rehearse(config, str(snapshot["strategy"]), hash_seed=hash_seed)
    entry = {**snapshot, OWN_CODE: found.to_dict()}
    if snapshot["exact"] and not found.exact:
        entry |= {"exact": False, "reason": f"{found.piece}: {found.reason}"}
    return entry


def rehearse(config: ExperimentConfig, strategy: str, *, hash_seed: int) -> Rehearsed:
    """Train with the config's own code, save, restore in a fresh process, train on in both, and
    compare. `strategy`: how the environment is snapshotted. `hash_seed`: the run's PYTHONHASHSEED.

    Raises:
        RehearsalFailed: the code raised.
    """
    plain = _small(config)

    def trail(function: str, directory: str) -> Trail:
        try:
            found: Trail = in_fresh_process(
                _call, _nothing, function, plain, strategy, directory, hash_seed=hash_seed
            )
        except SnapshotError as error:
            raise RehearsalFailed(f"Your own code cannot be trained with: {error}") from None
        return found

    with ExitStack() as stack:
        directory = str(stack.enter_context(scratch("rehearsal")))
        first = trail("begin", directory)
        restored = trail("go_on", directory)
        last, again = first.iterations[-1], restored.iterations[-1]
        difference = _what_differs(last, again, config)
        if difference is None:
            return Rehearsed(exact=True)
        forgotten = _other_attributes(first, restored)
        if forgotten is not None:
            return Rehearsed(False, *forgotten)
        shutil.rmtree(Path(directory, "state"))
        repeated = trail("begin", directory)
    for number, (one, other) in enumerate(zip(first.iterations, repeated.iterations, strict=True)):
        by_chance = _what_differs(one, other, config)
        if by_chance is not None:
            what, piece = by_chance
            return Rehearsed(
                False,
                piece,
                f"two processes with one seed differ in iteration {number + 1} ({what}): it uses "
                "the time, the system's entropy, or a generator that is not saved",
            )
    what, piece = difference
    return Rehearsed(
        False,
        piece,
        f"after a restore in a fresh process the next iteration differs ({what}): state is kept "
        "where neither get_state() nor a parameter or buffer of the network has it",
    )


def _small(config: ExperimentConfig) -> dict[str, Any]:
    """The config of the rehearsal, as `to_dict` returns it."""
    config = stage_config(config.model_copy(update={"search": ()}), 0)
    plain = config.to_dict()
    training = plain["training"]
    training["minibatch_size"] = min(training["minibatch_size"], _STEPS // 2)
    training["train_batch_size_per_learner"] = min(
        training["train_batch_size_per_learner"], max(_STEPS, 2 * training["minibatch_size"])
    )
    training["num_epochs"] = min(training["num_epochs"], 2)
    plain["env_runners"] |= {
        "num_env_runners": 0,
        "min_actors": 1,
        "max_actors": None,
        "num_gpus_per_env_runner": 0,
        "rollout_fragment_length": "auto",
    }
    plain["learners"] |= {"num_learners": 0, "num_gpus_per_learner": 0}
    plain["evaluation"] |= {"evaluation_interval": None, "evaluation_num_env_runners": 0}
    plain["checkpoint"] |= {"score": "episode_return_mean"}
    # Schedules may be relative to its timesteps.
    plain["stop"] = {"iterations": 100, "timesteps": plain["stop"].get("timesteps")}
    return plain


def _nothing() -> None:
    """In the place of an environment's constructor."""


def _call(_: Any, function: str, *arguments: Any) -> Any:
    """A function of `own_code_rehearsal`, which only the fresh process imports."""
    rehearsal = importlib.import_module("raytrain.ppo.own_code_rehearsal")
    try:
        return getattr(rehearsal, function)(*arguments)
    except RaytrainError as error:
        raise SnapshotError(str(error)) from None


def _other_attributes(first: Trail, restored: Trail) -> tuple[str, str] | None:
    """The first object whose attributes are not as they were saved, and which."""
    for piece, attributes in first.attributes.items():
        now: Mapping[str, str] = restored.attributes.get(piece, {})
        names = [name for name, value in attributes.items() if now.get(name) != value]
        if names:
            listed = ", ".join(names[:3])
            return piece, (
                f"its attribute{'s' * (len(names) > 1)} {listed} did not come back: put "
                f"{'them' if len(names) > 1 else 'it'} into get_state() and set_state(state)"
            )
    return None


def _what_differs(
    one: Iteration, other: Iteration, config: ExperimentConfig
) -> tuple[str, str] | None:
    """What differs first in two iterations, and the keys of the code that it may come from."""
    from raytrain.records import differences  # It needs Ray for rows.

    if one.episodes != other.episodes:
        return "what was sampled", _keys(config, ("rl_module", "env_runners", "callbacks"))
    if one.weights != other.weights:
        return "the weights after the update", _keys(config, ("training", "rl_module"))
    for name, _, _ in differences(one.row, other.row):
        return f"the metric {name}", _keys(config, ("callbacks", "training"))
    return None


def _keys(config: ExperimentConfig, sections: tuple[str, ...]) -> str:
    named = [(named.kind, named.spec) for named in own_code(config)]
    likely = [f"{kind} ({spec})" for kind, spec in named if kind.split(".")[0] in sections]
    return " or ".join(likely or [f"{kind} ({spec})" for kind, spec in named])
