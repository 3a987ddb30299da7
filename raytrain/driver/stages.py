"""The curriculum's stages in the driver: whether a changed list of stages may continue the run, how
the stages' environments are snapshotted, and starting again after a stage (`--from-stage`).

A continued run may change the stages that have not begun: those up to the one that its newest
checkpoint is in must stay as they were, later ones may be changed, added or removed.
`--from-stage NAME` goes back to the end of NAME, so everything after NAME may be changed with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import Any

from raytrain.checkpoint import Catalogue, Entry, replace, trials
from raytrain.checkpoint.lineage import SET_ASIDE
from raytrain.config import ExperimentConfig, env_creator, make_env, same_value, stage_config
from raytrain.config.run_code import beside_config
from raytrain.config.user_code import of_environment, users_code
from raytrain.driver.spaces import Say, require_observations, spaces_of
from raytrain.errors import BadInput
from raytrain.storage import READER_S, DirectoryLock, Location
from raytrain.trial.fencing import FencingToken
from raytrain.trial.score import best_policy

Spaces = dict[str, Any]

SLOW_TRIAL_S = 30.0
"""After this time a message says where the trial of an environment stands."""

_TRIED_STEPS = 20


class NoSuchStage(BadInput):
    """There is no stage of this name, or it has not ended yet."""


class StageDoesNotFit(BadInput):
    """The environment of a stage, or of evaluation, has other spaces than that of training."""


def require_same_spaces(config: ExperimentConfig) -> None:
    """Make each stage's environment once, and that of evaluation if it gets other arguments, and
    compare them: the network has one pair of spaces.

    Raises:
        StageDoesNotFit: with both spaces.
    """
    known: Spaces | None = None
    for index, stage in enumerate(config.curriculum):
        spaces = spaces_of(make_env(stage_config(config, index)))
        if change := _change(known, spaces):
            raise StageDoesNotFit(
                f"the stage {stage.name!r} changes the {change}. All stages need the same spaces: "
                "scale observations and actions in the environment."
            )
        known = spaces
    evaluation = config.evaluation
    if not evaluation.evaluation_interval or not evaluation.evaluation_config.env_config:
        return
    from raytrain.config.environment import deep_merge

    known = known or spaces_of(make_env(config))
    arguments = deep_merge(config.environment.env_config, evaluation.evaluation_config.env_config)
    with of_environment("of evaluation (evaluation.evaluation_config.env_config)"):
        env = env_creator(config)(arguments)
        _try(env, config.environment.action_mask)
    if change := _change(known, spaces_of(env)):
        raise StageDoesNotFit(
            f"evaluation.evaluation_config.env_config changes the {change}. Evaluation needs the "
            "spaces of training."
        )


def _try(env: Any, action_mask: str | None) -> None:
    """Take some steps. Raises EnvironmentFailed if one fails or breaks Gymnasium's contract."""
    import numpy as np

    from raytrain.policy.action_masks import RandomActions
    from raytrain.policy.env_contract import Contract

    contract = Contract(env)
    actions = RandomActions(env.action_space, action_mask, np.random.default_rng(0))
    over = True
    for _ in range(_TRIED_STEPS):
        if over:
            with users_code("reset()"):
                returned = env.reset(seed=0)
            contract.reset(returned)
            observation, info = returned
        with users_code("step()"):
            returned = env.step(actions.sample(info, observation))
        contract.step(returned)
        observation, info = returned[0], returned[4]
        over = bool(returned[2] or returned[3])


def _change(known: Spaces | None, spaces: Spaces) -> str | None:
    """`action space from ... to ...`, or None if there is no difference."""
    for name, space in spaces.items():
        if known is not None and known[name] != space:
            return f"{name} from {known[name]} to {space}"
    return None


def prove_stages(
    config: ExperimentConfig, known: Mapping[str, Any] | None, say: Say, hash_seed: int
) -> dict[str, Any]:
    """How the environments are snapshotted (experiment.json's `snapshot`), proved for each distinct
    environment. `known`: what was proved at an earlier start, which is kept. `hash_seed`: the
    PYTHONHASHSEED of the run's processes."""
    if not config.curriculum:
        return dict(known) if known else _proved(config, say, hash_seed)
    snapshot: dict[str, Any] = dict(known or {})
    proved: list[tuple[Any, dict[str, Any]]] = [
        (proof["env_config"], proof) for proof in snapshot.get("stages", {}).values()
    ]
    if snapshot:
        proved.append((config.environment.env_config, snapshot))
    stages = {}
    for index, stage in enumerate(config.curriculum):
        of_stage = stage_config(config, index)
        env_config = of_stage.environment.env_config
        proof = next((proof for values, proof in proved if same_value(values, env_config)), None)
        if proof is None:
            proof = _proved(of_stage, say, hash_seed)
            proved.append((env_config, proof))
        stages[stage.name] = {
            **{key: proof[key] for key in ("strategy", "exact", "reason", "global_random")},
            **{key: proof.get(key, []) for key in ("warnings", "imports", "reads")},
            "hash_order": proof.get("hash_order", False),
            "env_config": env_config,
        }
    snapshot = snapshot or dict(proved[0][1])
    for name, proof in stages.items():
        if not proof["exact"]:
            snapshot |= {"exact": False, "reason": f"stage {name}: {proof['reason']}"}
            break
    return {**snapshot, "stages": stages}


def warnings_of(snapshot: Mapping[str, Any]) -> list[str]:
    """What the proofs saw that is probably unintended, each sentence once."""
    of_stages = [proof.get("warnings", ()) for proof in snapshot.get("stages", {}).values()]
    return list(dict.fromkeys(chain(snapshot.get("warnings", ()), *of_stages)))


def _proved(config: ExperimentConfig, say: Say, hash_seed: int) -> dict[str, Any]:
    """Raises ConfigError if no network can be built for the environment, and EnvironmentFailed if
    it raises or breaks Gymnasium's contract."""
    from raytrain.rollout.env_snapshots import close, prove
    from raytrain.rollout.timeout import reporting_stalls

    def report(standing: str) -> None:
        say(
            f"Trying the environment has taken {SLOW_TRIAL_S:.0f} s; it is still {standing}. "
            "Training begins when it has been made, reset and stepped a few hundred times."
        )

    with (
        reporting_stalls(report, SLOW_TRIAL_S),
        of_environment(config.environment.env),
    ):
        env = make_env(config)
        space = getattr(env, "observation_space", None)
        close(env)
        if space is not None:  # Without one it breaks the contract.
            require_observations(space, config, say)
        # Without the config, which takes a new process longer to import than the environment.
        creator = partial(env_creator(config), config.environment.env_config)
        proof = prove(
            creator,
            seed=config.seed,
            hash_seed=hash_seed,
            action_mask=config.environment.action_mask,
        )
        return {**proof.to_dict(), "reads": beside_config(proof.reads, config)}


def may_change(
    place: Location, old: Sequence[Any], new: Sequence[Any], from_stage: str | None
) -> str | None:
    """Why the stages `new` cannot continue a run that was started with `old` (both as in the stored
    config); None if they can."""
    names = [stage["name"] for stage in old]
    begun = -1
    if from_stage is not None:
        begun = names.index(from_stage) if from_stage in names else -1
    else:
        for trial in trials(place):
            newest = Catalogue(trial).newest_good().entry
            stage = newest.manifest.stage if newest is not None and newest.manifest else None
            if stage in names:
                begun = max(begun, names.index(stage))
            elif newest is not None:
                return "the run has begun without it"
    for index in range(begun + 1):
        if index >= len(new) or not same_value(new[index], old[index]):
            return f"the stage {names[index]!r} has begun, so it and those before it must stay"
    return None


def start_again_after(stage: str, config: ExperimentConfig, place: Location, say: Say) -> None:
    """Set aside every checkpoint that is newer than the end of `stage`, in each trial, so that the
    run continues from there. Nothing is deleted.

    Raises:
        NoSuchStage: the stage is not in the config, or has not ended in some trial.
    """
    names = [entry.name for entry in config.curriculum]
    if stage not in names:
        listed = ", ".join(names) or "there are none"
        raise NoSuchStage(f"--from-stage {stage}: no stage of this name in `curriculum`: {listed}.")
    ends = [(trial, _end_of(stage, trial)) for trial in trials(place)]
    if not ends:
        raise NoSuchStage(f"--from-stage {stage}: {place} holds no trial, so no stage has ended.")
    for trial, end in ends:
        aside = trial / SET_ASIDE / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        number = _set_newer_aside(end, trial, aside, config, say)
        what = f"; {number} newer checkpoint(s) are now in {aside}" if number else ""
        say(f"{trial.name} starts again after the stage {stage} (iteration {end.iteration}){what}.")


def _set_newer_aside(
    end: Entry, trial: Location, aside: Location, config: ExperimentConfig, say: Say
) -> int:
    """Returns how many checkpoints there were. This is an attempt of its own: what a writer that is
    still alive somewhere commits afterwards is not on the run's line."""
    with DirectoryLock(trial, wait=READER_S, tell=say) as lock:
        attempts = FencingToken(trial, lock)
        attempts.begin()
        catalogue, number = Catalogue(trial), 0
        catalogue.sweep(attempts.check)
        while newer := [
            entry
            for entry in catalogue.entries()
            if not entry.in_quarantine and entry.iteration > end.iteration
        ]:
            # The newest last: a start continues from it if this is interrupted.
            for entry in sorted(newer, key=lambda entry: entry.iteration):
                catalogue.set_aside(entry, f"{SET_ASIDE}/{aside.name}", fence=attempts.check)
                number += 1
        attempts.begin_after(end.iteration)
        _choose_best_again(config, trial, attempts)
        return number


def _end_of(stage: str, trial: Location) -> Entry:
    entry = Catalogue(trial).entry(f"stages/{stage}", verify=True)
    if entry is None:
        paths = [entry.path for entry in Catalogue(trial).entries()]
        ended = [path.removeprefix("stages/") for path in paths if path.startswith("stages/")]
        raise NoSuchStage(
            f"--from-stage {stage}: this stage has not ended yet in {trial}. Ended stages: "
            f"{', '.join(ended) or 'none'}."
        )
    if not entry.good:
        raise NoSuchStage(
            f"--from-stage {stage}: its checkpoint {entry.location} is damaged ({entry.problem}). "
            "Restore the files, or start again after another stage."
        )
    return entry


def _choose_best_again(config: ExperimentConfig, trial: Location, attempts: FencingToken) -> None:
    """Make `best` the best of the remaining checkpoints, if it was set aside."""
    catalogue = Catalogue(trial)
    if catalogue.entry("best") is not None:
        return
    best = best_policy(config).best_of(catalogue.entries(verify=True))
    if best is not None:
        replace(
            best.location,
            trial / "best",
            kind="best",
            fence=attempts.check,
            attempt=attempts.number,
        )
