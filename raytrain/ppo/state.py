"""The whole state of the algorithm: a list of parts, each of which captures and restores itself.

    algorithm_state.pkl, env_runner/, learner_group/, ...    RLlib's, as it writes them
    resume/state.json             counters, random generators, KL and schedules of every learner
    resume/algorithm.pkl          metric windows of the algorithm and of its learners, callbacks
    resume/groups/group_0000.pkl  one per env group (see `env_runner`)
    resume/eval_groups/...        the same for evaluation
    policy.json, policy.safetensors    the policy, loadable without unpickling

A new part is a class with `capture` and `restore` in `PARTS`. Parts are restored in their order:
the stage decides the config, RLlib's own state comes before ours, and the random generators come
last, since every part before them may have drawn numbers.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raytrain.errors import RaytrainError
from raytrain.policy.format import PolicyParts, write_policy
from raytrain.policy.from_algorithm import policy_parts
from raytrain.policy.spaces import PolicyFormatError
from raytrain.ppo.fork_state import IDENTICAL, ForkDifferences, reseed, settings_of
from raytrain.ppo.learner import MODULE_ID
from raytrain.ppo.own_training import OwnTraining
from raytrain.ppo.rllib_checkpoint import RLlibState
from raytrain.rng import RngStreams
from raytrain.rollout.env_group import without_episodes
from raytrain.rollout.fast_sampling.own_callbacks import load_state, state_of

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


@dataclass
class SavedState:
    """`plain`: resume/state.json, JSON types. `opaque`: resume/algorithm.pkl.
    `groups`, `eval_groups`: snapshots by the group's index. `rllib`: RLlib's own
    state, where it was captured."""

    plain: dict[str, Any] = field(default_factory=dict)
    opaque: dict[str, Any] = field(default_factory=dict)
    groups: dict[int, bytes] = field(default_factory=dict)
    eval_groups: dict[int, bytes] = field(default_factory=dict)
    rllib: RLlibState | None = None

    @classmethod
    def read(cls, directory: Path) -> SavedState:
        """All but RLlib's part. Raises `StateMismatch` for another format."""
        resume = directory / RESUME_DIR
        plain = json.loads((resume / "state.json").read_text())
        if plain.get("format") != STATE_FORMAT:
            raise StateMismatch(
                f"{directory}: resume state has format {plain.get('format')!r}, this raytrain "
                f"reads {STATE_FORMAT}. Use the raytrain version named in its manifest.json."
            )
        return cls(
            plain=plain,
            opaque=read_opaque(directory),
            groups=_read_groups(resume / "groups"),
            eval_groups=_read_groups(resume / "eval_groups"),
        )


@dataclass
class Restoring:
    """One restore. `fork`: another run wrote the state, and this run's config takes precedence.
    `reasons`: why the run is not exact from here on."""

    directory: Path
    saved: SavedState
    fork: bool
    differences: ForkDifferences = IDENTICAL
    reasons: list[str] = field(default_factory=list)


class _Part(Protocol):
    def capture(self, ppo: ExactPPO, state: SavedState) -> None:
        """Copy the part into `state`, sharing no memory with the algorithm."""

    def restore(self, ppo: ExactPPO, restoring: Restoring) -> None:
        """Restore what was saved. Raises `StateMismatch`."""


class _Stage:
    """The stage of the curriculum, and its settings."""

    def capture(self, ppo: ExactPPO, state: SavedState) -> None:
        state.plain["curriculum"] = ppo.curriculum.to_state() if ppo.has_stages else None
        state.plain["settings"] = settings_of(ppo.config)
        state.plain["strategy"] = ppo.strategy

    def restore(self, ppo: ExactPPO, restoring: Restoring) -> None:
        plain = restoring.saved.plain
        ppo.enter_saved_stage(plain.get("curriculum"), fork=restoring.fork)
        if restoring.fork:
            restoring.differences = ForkDifferences.of(plain, ppo.config, ppo.strategy)
            return
        before = plain.get("settings", {}).get("relative_to")
        now = OwnTraining.of(ppo.config).relative_to
        if before != now:
            restoring.reasons.append(
                f"stop.timesteps changed from {before} to {now}, and with it the schedules that "
                "are relative to it"
            )


class _Learners:
    """RLlib's own state, and what it does not save of each learner."""

    def capture(self, ppo: ExactPPO, state: SavedState) -> None:
        learners = ppo.learners.states()
        state.rllib = ppo.rllib_files.capture(float(learners[0]["kl_coeff"][MODULE_ID]))
        state.opaque["learners"] = [learner.pop("opaque") for learner in learners]
        state.plain["learners"] = learners

    def restore(self, ppo: ExactPPO, restoring: Restoring) -> None:
        saved = restoring.saved
        if restoring.differences.seed:
            reseed(saved.plain, ppo.learners.states())
        ppo.rllib_files.restore(restoring.directory, ppo.learners)
        states = zip(saved.plain["learners"], saved.opaque["learners"], strict=True)
        changed = ppo.learners.load([{**state, "opaque": rest} for state, rest in states])
        restoring.reasons += [changed] if changed else []


class _Counters:
    """The iteration, and RLlib's metrics with their windows."""

    def capture(self, ppo: ExactPPO, state: SavedState) -> None:
        state.plain["iteration"] = ppo.iteration
        state.opaque["metrics"] = ppo.metrics.stats

    def restore(self, ppo: ExactPPO, restoring: Restoring) -> None:
        plain = restoring.saved.plain
        ppo.metrics.stats = restoring.saved.opaque["metrics"]
        ppo.count_from(plain["iteration"])
        if restoring.fork and not ppo.curriculum.knows(plain.get("curriculum")):
            ppo.curriculum.begin(ppo.progress(ppo.iteration))


class _RecentEpisodes:
    """The finished episodes that averages are taken over."""

    def capture(self, ppo: ExactPPO, state: SavedState) -> None:
        state.plain["recent"] = ppo.recent.to_state()

    def restore(self, ppo: ExactPPO, restoring: Restoring) -> None:
        begin_anew = restoring.differences.episodes
        ppo.recent.load([] if begin_anew else restoring.saved.plain.get("recent", []))


class _EnvGroups:
    """The environments with their running episodes, and the connectors' state (filters)."""

    def capture(self, ppo: ExactPPO, state: SavedState) -> None:
        state.groups = ppo.env_groups.snapshots()
        state.eval_groups = ppo.eval_env_groups.snapshots() if ppo.eval_env_groups else {}
        state.plain["groups"] = sorted(state.groups)
        state.plain["envs_per_group"] = ppo.config.num_envs_per_env_runner
        state.opaque["connectors"] = ppo.env_groups.connector_state()

    def restore(self, ppo: ExactPPO, restoring: Restoring) -> None:
        state, differences = restoring.saved, restoring.differences
        groups, eval_groups = state.groups, state.eval_groups
        if differences.episodes:
            groups = {
                index: without_episodes(snapshot, reseed=differences.seed)
                for index, snapshot in groups.items()
            }
        if differences.episodes or differences.evaluation:
            eval_groups = {}
        before, envs = state.plain["envs_per_group"], ppo.config.num_envs_per_env_runner
        if before != envs:
            restoring.reasons.append(
                f"the number of environments in a group changed from {before} to {envs}, "
                "so all groups start new episodes"
            )
            groups, eval_groups = dict.fromkeys(groups, b""), {}
        saved_groups, present = len(groups), len(ppo.env_groups.indices)
        if saved_groups != present:
            restoring.reasons.append(
                f"the number of env groups changed from {saved_groups} to {present}"
            )
        ppo.start_groups(
            {index: snapshot for index, snapshot in groups.items() if snapshot},
            eval_groups,
            iteration=ppo.iteration,
            connectors=state.opaque["connectors"],
        )
        if ppo.strategy == "reset":
            restoring.reasons.append(
                "the environments cannot be restored, so running episodes were started anew"
            )


class _Weights:
    """The weights digest, which every learner and runner confirms."""

    def capture(self, ppo: ExactPPO, state: SavedState) -> None:
        state.plain["weights_sha256"] = ppo.weights_digest

    def restore(self, ppo: ExactPPO, restoring: Restoring) -> None:
        ppo.check_weights()
        saved = restoring.saved.plain["weights_sha256"]
        if ppo.weights_digest != saved:
            raise StateMismatch(
                f"{restoring.directory}: after the restore the weights digest is "
                f"{ppo.weights_digest}, the saved one is {saved}. The checkpoint does not fit the "
                "config."
            )
        if restoring.fork:
            kl_coeff = ppo.config.kl_coeff if restoring.differences.kl else None
            ppo.learners.use_settings(ppo.config, ppo.env_steps_sampled, kl_coeff)


class _RandomStreams:
    """The random generators of the trial's process."""

    def capture(self, ppo: ExactPPO, state: SavedState) -> None:
        state.plain["rng"] = RngStreams.capture().to_state()

    def restore(self, ppo: ExactPPO, restoring: Restoring) -> None:
        RngStreams.from_state(restoring.saved.plain["rng"]).install()


class _Callbacks:
    """The state of the user's own callbacks in the trial's process; those of env runners are in
    their groups' snapshots."""

    def capture(self, ppo: ExactPPO, state: SavedState) -> None:
        state.opaque["callbacks"] = state_of(ppo.callbacks)

    def restore(self, ppo: ExactPPO, restoring: Restoring) -> None:
        load_state(ppo.callbacks, restoring.saved.opaque.get("callbacks", ()))


PARTS: tuple[_Part, ...] = (
    _Stage(),
    _Learners(),
    _Counters(),
    _RecentEpisodes(),
    _EnvGroups(),
    _Weights(),
    _Callbacks(),
    _RandomStreams(),
)


def capture(ppo: ExactPPO) -> Callable[[Path], None]:
    """Copy the whole state now. The returned function writes it into a directory (created), and may
    run in another thread."""
    state = SavedState(plain={"format": STATE_FORMAT})
    for part in PARTS:
        part.capture(ppo, state)
    blob = pickle.dumps(state.opaque, protocol=pickle.HIGHEST_PROTOCOL)
    state.opaque = {}  # `write` would keep it in memory, beside `blob`.
    rllib = state.rllib
    assert rllib is not None
    policy: PolicyParts | None = None
    try:
        policy = policy_parts(ppo, module_state=rllib.module_state)
    except PolicyFormatError as error:
        ppo.tell(f"The policy cannot be loaded outside of training: {error}")

    def write(directory: Path) -> None:
        resume = directory / RESUME_DIR
        resume.mkdir(parents=True)
        rllib.write(directory)
        (resume / "state.json").write_text(json.dumps(state.plain))
        (resume / "algorithm.pkl").write_bytes(blob)
        _write_groups(resume / "groups", state.groups)
        _write_groups(resume / "eval_groups", state.eval_groups)
        if policy is not None:
            write_policy(directory, policy, metadata={"iteration": state.plain["iteration"]})

    return write


def restore(ppo: ExactPPO, directory: Path, *, fork: bool) -> Restored:
    """Restore what `capture` copied, and wait until every runner holds it. With `fork` another run
    wrote it, and this run's config takes precedence (see `fork_state`).

    Raises:
        StateMismatch: the directory holds no such state, or the restored weights are not the saved
            ones.
    """
    restoring = Restoring(directory, SavedState.read(directory), fork)
    for part in PARTS:
        part.restore(ppo, restoring)
    # A fork begins here, the same each time, whatever changed since the run that it comes from.
    return Restored(ppo.iteration, None if fork else "; ".join(restoring.reasons) or None)


def read_opaque(directory: Path) -> dict[str, Any]:
    """The part of a saved state that is pickled: `metrics`, `learners`, `connectors`."""
    opaque: dict[str, Any] = pickle.loads((directory / RESUME_DIR / "algorithm.pkl").read_bytes())
    return opaque


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
