"""`--from CHECKPOINT --name NEW`: a new run that begins at a checkpoint of another one.

    the fork asked for --> the checkpoint, verified --> may this config begin there?
                       --> a copy in NEW/forked_from --> the parent in experiment.json

A fork takes weights, optimizer, filters, counters, random generators and, where the environment is
the same, the running episodes: with nothing changed it continues exactly as its parent did. Changes
in the new config apply from the first iteration on. With `weights_only` it takes weights and
filters, and everything else starts from the beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raytrain.checkpoint import Entry, ExperimentFile, replace, resolve
from raytrain.checkpoint.experiment_file import EXPERIMENT_FILE
from raytrain.checkpoint.lineage import (
    FORKED_FROM,
    ancestors,
    experiment_around,
    generation,
    trial_of,
)
from raytrain.config import ExperimentConfig, make_env, stage_config
from raytrain.config.model import SHAPE_OF_WEIGHTS
from raytrain.driver.spaces import Say, spaces_of
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
    """A checkpoint to begin at (any path argument), and how much of it to take."""

    checkpoint: str
    weights_only: bool = False


def require_possible(
    fork: Fork, config: ExperimentConfig, place: Location, *, fresh: bool = False
) -> None:
    """Check the fork before anything is made in `place`. A fork that exists there already is
    continued, and needs its parent no more.

    Raises:
        BadInput: there is no such checkpoint, or the config does not fit it.
        RaytrainError: the checkpoint is damaged.
    """
    present = _present(fork)
    if present is not None and trial_of(present).parent.path.rstrip("/") == place.path.rstrip("/"):
        raise CannotFork(
            f"--from {fork.checkpoint} lies in {place} itself. A fork is a run of its own: give it "
            "a name with --name NEW."
        )
    if (place / EXPERIMENT_FILE).exists() and not fresh:
        return
    entry = resolve(fork.checkpoint) if present is None else present
    if entry.kind == "error":
        raise CannotFork(
            f"--from {fork.checkpoint}: {entry.location} holds a diverged state, saved for "
            "inspection; nothing can be trained from it. Name a checkpoint of another kind."
        )
    _require_same_spaces(entry, config)
    _require_same_network(entry, experiment_around(entry), config)
    if not fork.weights_only:
        _require_something_to_do(entry, config)


def begin(fork: Fork, place: Location) -> dict[str, dict[str, Any]]:
    """Copy the checkpoint to where the run in `place`, which has none yet, begins. Returns `parent`
    and `fork` of its experiment.json.

    Raises:
        RaytrainError: the checkpoint is gone or damaged, or cannot be copied.
    """
    entry = resolve(fork.checkpoint)
    manifest = entry.good_manifest
    replace(entry.location, place / FORKED_FROM, kind=manifest.kind)
    own = generation(entry, weights_only=fork.weights_only)
    return {
        "parent": {key: own[key] for key in _PARENT_KEYS},
        "fork": {
            "weights_only": fork.weights_only,
            "run_id": manifest.run_id,
            "iteration": 0 if fork.weights_only else manifest.iteration,
            "timesteps": 0 if fork.weights_only else manifest.timesteps,
            "episodes": 0 if fork.weights_only else manifest.episodes,
            "ancestors": [own, *ancestors(experiment_around(entry))],
        },
    }


def refuse_other_parent(fork: Fork, experiment: ExperimentFile, place: Location, say: Say) -> None:
    """Raise unless the run in `place` is this fork, which is then continued."""
    remedy = "Leave --from out to continue it; give another --name; or set it aside with --fresh."
    if experiment.fork is None or experiment.parent is None:
        raise CannotFork(
            f"{place} holds a run that is not a fork, so --from {fork.checkpoint} cannot apply to "
            f"it. {remedy}"
        )
    origin = "{experiment}, {trial}, {checkpoint}".format(**experiment.parent)
    entry = _present(fork)
    if entry is None or entry.manifest is None:
        say(f"This run was forked from {origin}, and continues.")
        return
    same_run = entry.manifest.run_id == experiment.fork["run_id"]
    if not same_run or fork.weights_only != experiment.fork["weights_only"]:
        how = " (weights only)" if experiment.fork["weights_only"] else ""
        raise CannotFork(
            f"{place} holds a run that was forked from {origin}{how}, and not as --from "
            f"{fork.checkpoint}{' --weights-only' if fork.weights_only else ''} asks. {remedy}"
        )
    if entry.manifest.weights_sha256 != experiment.parent["weights_sha256"]:
        say(
            f"This run was forked from {origin} and continues; {fork.checkpoint} is another "
            "checkpoint of the same run by now."
        )


def _present(fork: Fork) -> Entry | None:
    """The checkpoint, if it still exists."""
    try:
        return resolve(fork.checkpoint)
    except RaytrainError:
        return None


def _require_same_spaces(entry: Entry, config: ExperimentConfig) -> None:
    policy = _policy_json(entry)
    if policy is None:
        return  # The policy has no plain form; the trial compares the weights' names and shapes.
    for name, now in spaces_of(make_env(stage_config(config, 0))).items():
        before = decode_space(policy[name.replace(" ", "_")])
        if before != now:
            raise CannotFork(
                f"the {name} has changed: {entry.location} was trained with {before}, and "
                f"environment.env {config.environment.env!r} has {now}. A fork needs the same "
                "spaces: wrap the environment, or train from the beginning (without --from)."
            )


def _require_same_network(
    entry: Entry, parent: ExperimentFile | None, config: ExperimentConfig
) -> None:
    if parent is None:
        return
    section = parent.config.get("rl_module", {})
    then, module_class = section.get("module_class"), config.rl_module.module_class
    if then != module_class:
        raise CannotFork(
            f"the network has changed: {entry.location} was trained with rl_module.module_class "
            f"{then!r}, and this config says {module_class!r}. A fork needs the same network: put "
            "the value back, or train from the beginning (without --from)."
        )
    before = section.get("model_config", {})
    now = config.rl_module.model.model_dump()
    for key in SHAPE_OF_WEIGHTS if module_class is None else ():
        was_searched = isinstance(before.get(key), Mapping)
        if before.get(key) != now.get(key) and not was_searched:
            raise CannotFork(
                f"the network has changed: {entry.location} was trained with "
                f"rl_module.model_config.{key} {before.get(key)!r}, and this config says "
                f"{now.get(key)!r}. A fork needs the same network: put the value back, or train "
                "from the beginning (without --from)."
            )


def _require_something_to_do(entry: Entry, config: ExperimentConfig) -> None:
    manifest = entry.good_manifest
    if is_over(config, manifest.metrics):
        raise CannotFork(
            f"{entry.location} is the end of the last stage of this `curriculum`. Add a stage, "
            "change the last one's name, or use --weights-only, which begins with the first."
        )
    reached = StopRule.of(config.stop).reached(Progress.of(manifest), {})
    if reached is not None:
        raise CannotFork(
            f"counters continue in a fork, and {entry.location} is past `stop` already "
            f"({reached}). Raise it, for example with --set stop.timesteps=..., or use "
            "--weights-only, which counts from 0."
        )


def _policy_json(entry: Entry) -> dict[str, Any] | None:
    file = entry.location / "policy.json"
    with storage_errors("Reading the policy of the checkpoint", file):
        if not file.exists():
            return None
        policy: dict[str, Any] = read_json(file)
    return policy
