"""The whole state of the algorithm: what a checkpoint holds, and the order in which it is restored.

algorithm_state.pkl, env_runner/, learner_group/, ...    RLlib's, as it writes them
resume/state.json             counters, random generators, KL and schedules of every learner
resume/algorithm.pkl          metric windows of the algorithm and of its learners
resume/groups/group_0000.pkl  one per env group (see `env_group`)
resume/eval_groups/...        the same for evaluation
policy.json, policy.safetensors    the policy, loadable without unpickling
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain.errors import RaytrainError
from raytrain.policy.format import PolicyParts, write_policy
from raytrain.policy.from_algorithm import policy_parts
from raytrain.policy.spaces import PolicyFormatError
from raytrain.ppo.fork_state import ForkDifferences, reseed, settings_of
from raytrain.ppo.learner import MODULE_ID
from raytrain.rng import RngStreams
from raytrain.rollout.env_group import without_episodes

if TYPE_CHECKING:
    from raytrain.ppo.algorithm import ExactPPO

STATE_FORMAT = 1
RESUME_DIR = "resume"


class StateMismatch(RaytrainError):
    """A saved state does not fit this run, or did not survive being restored."""


@dataclass(frozen=True)
class Restored:
    """The iteration that was restored, and why the run is not exact from there on, or None."""

    iteration: int
    exact_lost: str | None = None


def capture(ppo: ExactPPO) -> Callable[[Path], None]:
    """Copy the whole state now, sharing no memory with the running algorithm. The returned function
    writes it into a directory (created), and may run in another thread."""
    learners = ppo.learners.states()
    rllib = ppo.rllib_files.capture(float(learners[0]["kl_coeff"][MODULE_ID]))
    opaque: dict[str, Any] = {
        "learners": [learner.pop("opaque") for learner in learners],
        "metrics": ppo.metrics.stats,
    }
    groups = ppo.env_groups.snapshots()
    eval_groups = ppo.eval_env_groups.snapshots() if ppo.eval_env_groups else {}
    opaque["connectors"] = ppo.env_groups.connector_state()
    plain: dict[str, Any] = {
        "format": STATE_FORMAT,
        "curriculum": ppo.curriculum.to_state() if ppo.has_stages else None,
        "settings": settings_of(ppo.config),
        "strategy": ppo.strategy,
        "learners": learners,
        "iteration": ppo.iteration,
        "recent": ppo.recent.to_state(),
        "groups": sorted(groups),
        "envs_per_group": ppo.config.num_envs_per_env_runner,
        "weights_sha256": ppo.weights_digest,
        "rng": RngStreams.capture().to_state(),
    }
    blob = pickle.dumps(opaque, protocol=pickle.HIGHEST_PROTOCOL)
    policy: PolicyParts | None = None
    try:
        policy = policy_parts(ppo, module_state=rllib.module_state)
    except PolicyFormatError as error:
        ppo.tell(f"The policy cannot be loaded outside of training: {error}")

    def write(directory: Path) -> None:
        resume = directory / RESUME_DIR
        resume.mkdir(parents=True)
        rllib.write(directory)
        (resume / "state.json").write_text(json.dumps(plain))
        (resume / "algorithm.pkl").write_bytes(blob)
        _write_groups(resume / "groups", groups)
        _write_groups(resume / "eval_groups", eval_groups)
        if policy is not None:
            write_policy(directory, policy, metadata={"iteration": plain["iteration"]})

    return write


def restore(ppo: ExactPPO, directory: Path, *, fork: bool) -> Restored:
    """Restore what `capture` copied, and wait until every runner holds it. With `fork` another run
    wrote it, and this run's config takes precedence (see `fork_state`).

    Raises:
        StateMismatch: the directory holds no such state, or the restored weights are not the saved
            ones.
    """
    plain = _read_plain(directory)
    opaque = read_opaque(directory)
    # The stage decides the config.
    ppo.enter_saved_stage(plain.get("curriculum"), fork=fork)
    differences = ForkDifferences()
    if fork:
        differences = ForkDifferences.of(plain, ppo.config, ppo.strategy)
    if differences.seed:
        reseed(plain, ppo.learners.states())
    ppo.rllib_files.restore(directory, ppo.learners)
    learners = zip(plain["learners"], opaque["learners"], strict=True)
    changed = ppo.learners.load([{**state, "opaque": rest} for state, rest in learners])
    ppo.metrics.stats = opaque["metrics"]
    ppo.count_from(plain["iteration"])
    if fork and not ppo.curriculum.knows(plain.get("curriculum")):
        ppo.curriculum.begin(ppo.progress(ppo.iteration))
    ppo.recent.load([] if differences.episodes else plain.get("recent", []))
    reasons = [changed] if changed else []
    reasons += _restore_groups(ppo, directory, plain, opaque["connectors"], differences)
    ppo.check_weights()
    if ppo.weights_digest != plain["weights_sha256"]:
        raise StateMismatch(
            f"{directory}: after the restore the weights digest is {ppo.weights_digest}, the saved "
            f"one is {plain['weights_sha256']}. The checkpoint does not fit the config."
        )
    if fork:
        kl_coeff = ppo.config.kl_coeff if differences.kl else None
        ppo.learners.use_settings(ppo.config, ppo.env_steps_sampled, kl_coeff)
    # Last, since everything before may have drawn numbers.
    RngStreams.from_state(plain["rng"]).install()
    # A fork begins here, the same each time, whatever changed since the run that it comes from.
    return Restored(ppo.iteration, None if fork else "; ".join(reasons) or None)


def _restore_groups(
    ppo: ExactPPO,
    directory: Path,
    plain: dict[str, Any],
    connectors: dict[str, Any],
    differences: ForkDifferences,
) -> list[str]:
    """Restore the environments with their running episodes, and the connectors' state (filters).
    Returns why the run is not exact from here on."""
    groups = _read_groups(directory / RESUME_DIR / "groups")
    eval_groups = _read_groups(directory / RESUME_DIR / "eval_groups")
    reasons = []
    if differences.episodes:
        groups = {
            index: without_episodes(snapshot, reseed=differences.seed)
            for index, snapshot in groups.items()
        }
    if differences.episodes or differences.evaluation:
        eval_groups = {}
    saved_groups, present = len(groups), len(ppo.env_groups.indices)
    before, envs = plain["envs_per_group"], ppo.config.num_envs_per_env_runner
    if before != envs:
        reasons.append(
            f"the number of environments in a group changed from {before} to {envs}, "
            "so all groups start new episodes"
        )
        groups, eval_groups = {}, {}
    if saved_groups != present:
        reasons.append(f"the number of env groups changed from {saved_groups} to {present}")
    ppo.start_groups(groups, eval_groups, iteration=ppo.iteration, connectors=connectors)
    if ppo.strategy == "reset":
        reasons.append("the environments cannot be restored, so running episodes were started anew")
    return reasons


def read_opaque(directory: Path) -> dict[str, Any]:
    """The part of a saved state that is pickled: `metrics`, `learners`, `connectors`."""
    opaque: dict[str, Any] = pickle.loads((directory / RESUME_DIR / "algorithm.pkl").read_bytes())
    return opaque


def _read_plain(directory: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((directory / RESUME_DIR / "state.json").read_text())
    if plain.get("format") != STATE_FORMAT:
        raise StateMismatch(
            f"{directory}: resume state has format {plain.get('format')!r}, this raytrain reads "
            f"{STATE_FORMAT}. Use the raytrain version named in its manifest.json."
        )
    return plain


def _write_groups(directory: Path, groups: dict[int, bytes]) -> None:
    if groups:
        directory.mkdir(parents=True)
    for index, snapshot in groups.items():
        (directory / f"group_{index:04d}.pkl").write_bytes(snapshot)


def _read_groups(directory: Path) -> dict[int, bytes]:
    return {
        int(path.stem.removeprefix("group_")): path.read_bytes()
        for path in sorted(directory.glob("group_*.pkl"))
    }
