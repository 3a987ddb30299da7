"""`--from CHECKPOINT --name NEW`: a new run that begins where another one was.

    the fork asked for --> the checkpoint, verified --> may this config begin there?
                       --> a copy in NEW/forked_from --> what experiment.json says of the parent

A fork takes weights, optimizer, filters, counters, random generators and, where the environment is
the same, the running episodes: with nothing changed it goes on exactly as its parent did. What the
new config says otherwise holds from the first iteration on. With `weights_only` it takes weights
and filters, and everything else begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raytrain.checkpoint import (
    EXPERIMENT_FILE,
    FORKED_FROM,
    Entry,
    ExperimentFile,
    replace,
    resolve,
)
from raytrain.checkpoint.lineage import ancestors, experiment_around, generation, trial_of
from raytrain.config import ExperimentConfig, make_env, stage_config
from raytrain.config.model import SHAPE_OF_WEIGHTS
from raytrain.errors import BadInput, RaytrainError
from raytrain.policy.spaces import decode_space
from raytrain.ppo.curriculum import is_over
from raytrain.ppo.stopping import Progress, StopRule
from raytrain.storage import Location, storage_errors
from raytrain.storage.json import read_json

_PARENT_KEYS = ("experiment", "trial", "checkpoint", "weights_sha256")


class CannotFork(BadInput):
    """A run with this config cannot begin at this checkpoint."""


@dataclass(frozen=True)
class Fork:
    """What a person asked for: a checkpoint (any path argument), and how much of it to take."""

    checkpoint: str
    weights_only: bool = False


@dataclass(frozen=True)
class ForkOrigin:
    """What experiment.json says of where a fork began."""

    parent: Mapping[str, str]
    fork: Mapping[str, Any]


def require_possible(
    asked: Fork, config: ExperimentConfig, place: Location, *, fresh: bool = False
) -> None:
    """Refuse what cannot be, before anything is made in `place`. A fork that is there already is
    continued, and its parent need not be there any more.

    Raises:
        BadInput: the argument means no checkpoint, or the config does not fit it; both are named.
        RaytrainError: the checkpoint is damaged.
    """
    found = _found(asked)
    if found is not None and trial_of(found).parent.path.rstrip("/") == place.path.rstrip("/"):
        raise CannotFork(
            f"--from {asked.checkpoint} lies in {place} itself. A fork is a run of its own: give it "
            "a name with --name NEW."
        )
    if (place / EXPERIMENT_FILE).exists() and not fresh:
        return
    entry = resolve(asked.checkpoint) if found is None else found
    if entry.kind == "error":
        raise CannotFork(
            f"--from {asked.checkpoint}: {entry.location} was saved of a diverged state, to look at; "
            "nothing can be trained from it. Name a checkpoint of another kind."
        )
    _require_same_spaces(entry, config)
    _require_same_network(entry, experiment_around(entry), config)
    if not asked.weights_only:
        _require_something_to_do(entry, config)


def begin(asked: Fork, place: Location) -> ForkOrigin:
    """Make the checkpoint asked for the beginning of the run in `place`, which holds none yet.

    Raises:
        RaytrainError: the checkpoint is gone or damaged, or cannot be copied.
    """
    entry = resolve(asked.checkpoint)
    manifest = entry.manifest
    assert manifest is not None, "a verified checkpoint has a manifest"
    replace(entry.location, place / FORKED_FROM, kind=manifest.kind)
    own = generation(entry, weights_only=asked.weights_only)
    return ForkOrigin(
        parent={key: own[key] for key in _PARENT_KEYS},
        fork={
            "weights_only": asked.weights_only,
            "run_id": manifest.run_id,
            "iteration": 0 if asked.weights_only else manifest.iteration,
            "timesteps": 0 if asked.weights_only else manifest.timesteps,
            "episodes": 0 if asked.weights_only else manifest.episodes,
            "ancestors": [own, *ancestors(experiment_around(entry))],
        },
    )


def refuse_other_parent(
    asked: Fork, found: ExperimentFile, place: Location, say: Callable[[str], None]
) -> None:
    """Raise unless the run in `place` is a fork of the run that is asked for: then it is continued."""
    if found.fork is None or found.parent is None:
        raise CannotFork(
            f"{place} holds a run that is no fork, so --from {asked.checkpoint} cannot apply to it. "
            "Leave --from out to continue it; give another --name; or set it aside with --fresh."
        )
    began = "{experiment}, {trial}, {checkpoint}".format(**found.parent)
    entry = _found(asked)
    if entry is None or entry.manifest is None:
        say(f"This run was forked from {began}, and goes on.")
        return
    same_run = entry.manifest.run_id == found.fork["run_id"]
    if not same_run or asked.weights_only != found.fork["weights_only"]:
        how = " (weights only)" if found.fork["weights_only"] else ""
        raise CannotFork(
            f"{place} holds a run that was forked from {began}{how}, which is not what --from "
            f"{asked.checkpoint}{' --weights-only' if asked.weights_only else ''} says. Leave --from "
            "out to continue it; give another --name; or set it aside with --fresh."
        )
    if entry.manifest.weights_sha256 != found.parent["weights_sha256"]:
        say(
            f"This run was forked from {began} and goes on; {asked.checkpoint} is another checkpoint "
            "of the same run by now."
        )


def _found(asked: Fork) -> Entry | None:
    """The checkpoint asked for, if it is still there."""
    try:
        return resolve(asked.checkpoint)
    except RaytrainError:
        return None


def _require_same_spaces(entry: Entry, config: ExperimentConfig) -> None:
    policy = _policy_json(entry)
    if policy is None:
        return  # The policy has no plain form; the trial compares the weights' names and shapes.
    env = make_env(stage_config(config, 0))
    try:
        for what, ours, theirs in (
            ("observation space", policy["observation_space"], env.observation_space),
            ("action space", policy["action_space"], env.action_space),
        ):
            known = decode_space(ours)
            if known != theirs:
                raise CannotFork(
                    f"the {what} has changed: {entry.location} was trained with {known}, and "
                    f"environment.env {config.environment.env!r} has {theirs}. A fork needs the same "
                    "spaces: wrap the environment, or train from the beginning (without --from)."
                )
    finally:
        env.close()


def _require_same_network(
    entry: Entry, parent: ExperimentFile | None, config: ExperimentConfig
) -> None:
    if parent is None:
        return
    before = parent.config.get("rl_module", {}).get("model_config", {})
    now = config.rl_module.model.model_dump()
    for key in SHAPE_OF_WEIGHTS:
        if before.get(key) != now.get(key) and not _searched(before.get(key)):
            raise CannotFork(
                f"the network has changed: {entry.location} was trained with "
                f"rl_module.model_config.{key} {before.get(key)!r}, and this config says "
                f"{now.get(key)!r}. A fork needs the same network: put the value back, or train from "
                "the beginning (without --from)."
            )


def _searched(value: Any) -> bool:
    return isinstance(value, Mapping)


def _require_something_to_do(entry: Entry, config: ExperimentConfig) -> None:
    manifest = entry.manifest
    assert manifest is not None
    at = Progress(
        manifest.iteration,
        manifest.timesteps,
        manifest.episodes,
        float(manifest.metrics.get("time_total_s", 0.0)),
    )
    reached = StopRule.of(config.stop).reached(at, {})
    if is_over(config, manifest.metrics):
        raise CannotFork(
            f"{entry.location} is the end of the last stage of this `curriculum`. Add a stage, change "
            "the last one's name, or use --weights-only, which begins with the first."
        )
    if reached is not None:
        raise CannotFork(
            f"counters run on in a fork, and {entry.location} is past `stop` already ({reached}). "
            "Raise it, for example with --set stop.timesteps=..., or use --weights-only, which "
            "counts from 0."
        )


def _policy_json(entry: Entry) -> dict[str, Any] | None:
    file = entry.location / "policy.json"
    with storage_errors("Reading the policy of the checkpoint", file):
        if not file.exists():
            return None
        found: dict[str, Any] = read_json(file)
    return found
