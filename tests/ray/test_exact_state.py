"""A state that is saved and loaded is the state: what follows is the same, without tolerance.

Each case trains an `ExactPPO`, saves it, trains on; then another one, in a process whose random
generators stand elsewhere, loads the state and trains as far. Rows, weights digests and finished
episodes must be equal. Afterwards single pieces of a saved state are put back to what RLlib alone
would have left, and each time the run must become another one: so each piece is needed, and the
comparison sees it.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import ray
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from support.tiny_ppo import Told, build, built, disturb, iterate, unlike

from raytrain.ppo.fast_update.minibatches import minibatch_generator
from raytrain.ppo.fast_update.update import FastUpdate
from raytrain.ppo.state import Restored, StateMismatch
from raytrain.rng import RngStreams
from raytrain.rollout.env_group import EnvGroup
from raytrain.rollout.group_calls import RunnerLost

pytestmark = pytest.mark.usefixtures("local_ray")

LEARNER = ("learners", "default_policy")


@dataclass(frozen=True)
class Case:
    """`moves` names learner metrics that must take another value in every iteration: else a state
    that was lost would not show."""

    strategy: str = "pickle"
    sections: dict[str, Any] = field(default_factory=dict)
    moves: tuple[str, ...] = ()
    after: int = 2

    def build(self) -> Told:
        return build(strategy=self.strategy, **self.sections)


def runners(number: int, **values: Any) -> dict[str, Any]:
    return {"num_env_runners": number, **values}


KL = {"use_kl_loss": True, "kl_coeff": 0.4, "kl_target": 1e-4}
PENDULUM = {"env": "Pendulum-v1", "env_config": {"max_episode_steps": 30}}
EVALUATION = {
    "evaluation_interval": 1,
    "evaluation_duration": 3,
    "evaluation_config": {"explore": True},
}

LSTM: dict[str, Any] = {
    "rl_module": {"model_config": {"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 16}},
    "training": {"train_batch_size_per_learner": 64, "num_epochs": 1},
}

OWN_KEYS = {
    "lr": {"linear": [1e-2, 0]},
    "clip_param": {"linear": [0.3, 0.1]},
    "clip_range_vf": [[0, 1.0], [2000, 0.1]],
    "entropy_coeff": {"linear": [0.1, 0]},
    "adam_epsilon": 1e-4,
    "weight_decay": 0.01,
    "normalize_advantages": "minibatch",
    "target_kl": 0.002,
    "num_epochs": 6,
}
"""With it, most updates end before their sixth epoch."""
OWN_MOVES = ("approx_kl", "default_optimizer_learning_rate", "curr_entropy_coeff")
OWN: dict[str, Any] = {"training": OWN_KEYS, "stop": {"timesteps": 2000}}
OWN_LSTM: dict[str, Any] = {
    **OWN,
    "rl_module": LSTM["rl_module"],
    "training": {**LSTM["training"], **OWN_KEYS},
}

CASES = {
    "local": Case(),
    "own-keys": Case(sections=OWN, moves=OWN_MOVES),
    "own-keys-box": Case(sections={**OWN, "environment": PENDULUM}, moves=OWN_MOVES),
    "own-keys-lstm": Case(sections=OWN_LSTM, moves=OWN_MOVES),
    "own-keys-two-learners": Case(
        sections={**OWN, "env_runners": runners(1), "learners": {"num_learners": 2}},
        moves=OWN_MOVES,
    ),
    "one-runner": Case(sections={"env_runners": runners(1)}),
    "two-runners-box-filter": Case(
        sections={
            "environment": PENDULUM,
            "env_runners": runners(2, observation_filter="MeanStdFilter"),
        }
    ),
    "box-filter": Case(
        sections={
            "environment": PENDULUM,
            "env_runners": {"observation_filter": "MeanStdFilter"},
        }
    ),
    "complete-episodes": Case(sections={"env_runners": {"batch_mode": "complete_episodes"}}),
    "lr-schedule": Case(
        sections={"training": {"lr": [[0, 1e-2], [1000, 1e-4]]}},
        moves=("default_optimizer_learning_rate",),
    ),
    "entropy-schedule": Case(
        sections={"training": {"entropy_coeff": [[0, 0.1], [1000, 0.0]]}},
        moves=("curr_entropy_coeff",),
    ),
    "kl": Case(sections={"training": KL}, moves=("curr_kl_coeff",)),
    "grad-clip": Case(sections={"training": {"grad_clip": 0.05, "shuffle_batch_per_epoch": False}}),
    "lstm": Case(sections=LSTM),
    "lstm-two-runners": Case(sections={**LSTM, "env_runners": runners(2)}),
    "lstm-two-learners": Case(
        sections={**LSTM, "env_runners": runners(1), "learners": {"num_learners": 2}}
    ),
    "nested-actions": Case(
        sections={
            "environment": {"env": "action_envs:Remembering", "env_config": {"space": "everything"}}
        }
    ),
    "masks": Case(
        sections={
            "environment": {"env": "masked_envs:Masked", "action_mask": "info"},
            "env_runners": runners(1),
            "evaluation": EVALUATION,
        }
    ),
    "observed-masks-of-a-table": Case(
        sections={
            "environment": {
                "env": "masked_envs:Masked",
                "env_config": {"space": "table", "where": "legal"},
                "action_mask": "legal",
            }
        }
    ),
    "masks-lstm": Case(
        sections={
            **LSTM,
            "environment": {"env": "masked_envs:Masked", "action_mask": "info"},
        }
    ),
    "global-numpy": Case(sections={"environment": {"env": "awkward_envs:GlobalNoise"}}),
    "wrappers": Case("replay", sections={"environment": {"env": "awkward_envs:drifting"}}),
    "evaluation-local": Case(sections={"evaluation": EVALUATION}),
    "evaluation-runner-filter": Case(
        sections={
            "env_runners": {"observation_filter": "MeanStdFilter"},
            "evaluation": {
                **EVALUATION,
                "evaluation_num_env_runners": 1,
                "evaluation_force_reset_envs_before_iteration": False,
            },
        }
    ),
}
LONG = (
    "nested-actions",
    "observed-masks-of-a-table",
    "masks-lstm",
    "own-keys-lstm",
    "own-keys-two-learners",
    "lstm",
    "lstm-two-runners",
    "lstm-two-learners",
    "evaluation-runner-filter",
    "one-runner",
)
EXTRAS = [
    pytest.param(
        Case("replay", {"environment": {"env": "HalfCheetah-v5"}}),
        id="half-cheetah",
        marks=pytest.mark.mujoco,
    ),
    pytest.param(
        Case("native", {"environment": {"env": "tiny_envs:pong"}}),
        id="pong",
        marks=pytest.mark.atari,
    ),
]


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(CASES[n], id=n, marks=[pytest.mark.slow] * (n in LONG)) for n in CASES),
        *EXTRAS,
    ],
)
def test_what_follows_a_loaded_state_is_what_followed_the_saved_one(
    case: Case, tmp_path: Path
) -> None:
    if case.strategy == "replay" and "HalfCheetah" in str(case.sections):
        pytest.importorskip("mujoco")
    if "pong" in str(case.sections):
        pytest.importorskip("ale_py")
    original = case.build()
    try:
        before = iterate(original, 2)
        original.save_exact(tmp_path / "state")
        expected = iterate(original, case.after)
    finally:
        original.stop()
    _require_movement(case, before + expected)
    disturb()
    again = case.build()
    try:
        restored = again.load_exact(tmp_path / "state")
        assert restored == Restored(iteration=2, exact_lost=None)
        assert unlike(expected, iterate(again, case.after)) == []
    finally:
        again.stop()


def _require_movement(case: Case, trail: list[Any]) -> None:
    weights = [iteration.weights_sha256 for iteration in trail]
    assert len(set(weights)) == len(weights)
    for name in case.moves:
        values = [iteration.row["learners"]["default_policy"][name] for iteration in trail]
        assert len(set(values)) == len(values), (name, values)


def test_an_environment_that_cannot_be_restored_is_said_to_be_so(tmp_path: Path) -> None:
    with built(strategy="reset") as original:
        iterate(original, 2)
        original.save_exact(tmp_path / "state")
    with built(strategy="reset") as again:
        restored = again.load_exact(tmp_path / "state")
        assert restored.iteration == 2
        assert restored.exact_lost == (
            "the environments cannot be restored, so running episodes were started anew"
        )
        (went_on,) = iterate(again, 1)
    assert went_on.row["training_iteration"] == 3
    assert went_on.row["num_env_steps_sampled_lifetime"] >= 3 * 128


# -- every piece of the state is needed ----------------------------------------------------------

ALL_SCHEDULES = {
    "lr": [[0, 1e-2], [1000, 1e-4]],
    "entropy_coeff": [[0, 0.1], [1000, 0.0]],
    **KL,
}


@dataclass(frozen=True)
class Saved:
    """A state, what followed it, and another algorithm to load it into."""

    directory: Path
    expected: list[Any]
    again: Told

    def broken(self, directory: Path, damage: Callable[[Path], None]) -> Path:
        shutil.copytree(self.directory, directory)
        damage(directory)
        return directory


def _saved(directory: Path, **sections: Any) -> Saved:
    with built(**sections) as original:
        iterate(original, 2)
        original.save_exact(directory)
        expected = iterate(original, 2)
    return Saved(directory, expected, build(**sections))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    saved = _saved(
        tmp_path_factory.mktemp("local") / "state",
        env_runners={"observation_filter": "MeanStdFilter"},
        training=ALL_SCHEDULES,
    )
    yield saved
    saved.again.stop()


def _plain(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        file = directory / "resume" / "state.json"
        state = json.loads(file.read_text())
        change(state)
        file.write_text(json.dumps(state))

    return damage


def _pickled(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        file = directory / name
        state = pickle.loads(file.read_bytes())
        change(state)
        file.write_bytes(cloudpickle.dumps(state))

    return damage


def _group(change: Callable[[Any], None]) -> Callable[[Path], None]:
    return _pickled("resume/groups/group_0000.pkl", change)


def _other_rng() -> dict[str, Any]:
    return RngStreams.seeded(1, 2, 3).to_state()


def _no_momentum(state: Any) -> None:
    (optimizer,) = state["optimizer"].values()
    moments = optimizer["state"]["state"] if "state" in optimizer["state"] else optimizer["state"]
    for of_a_weight in moments.values():
        of_a_weight["exp_avg"] = np.zeros_like(of_a_weight["exp_avg"])


def _forget_learner_metrics(state: Any) -> None:
    learner = pickle.loads(state["learners"][0])
    learner["metrics"] = MetricsLogger(root=False).stats
    state["learners"][0] = pickle.dumps(learner)


def _fresh_filter(state: Any) -> None:
    from ray.rllib.utils.filter import RunningStat

    pipeline = state["connectors"]["env_to_module_connector"]
    pipeline["MeanStdFilter"][None]["running_stats"] = [RunningStat((4,)).to_state()]


PIECES = {
    "kl coefficient": _plain(lambda s: s["learners"][0]["kl_coeff"].update(default_policy=0.4)),
    "entropy schedule": _plain(
        lambda s: s["learners"][0]["schedules"].update({"entropy/default_policy": 0.1})
    ),
    "minibatch order": _plain(
        lambda s: s["learners"][0]["minibatch_order"].update(
            minibatch_generator(99, 0).bit_generator.state
        )
    ),
    "group generators": _group(lambda s: s.update(rng=_other_rng())),
    "running episodes": _group(lambda s: s["runner"].update(_needs_initial_reset=True)),
    "environments": _group(lambda s: s["envs"].reverse()),
    "vector environment": _group(
        lambda s: s["vector_env"].update(_autoreset_envs=~s["vector_env"]["_autoreset_envs"])
    ),
    "observations": _group(lambda s: s["progress"]["observations"].fill(0)),
    "returned steps": _group(lambda s: s["progress"]["lengths"].fill(0)),
    "returned rewards": _group(lambda s: s["progress"]["returns"].fill(0)),
    "filter": _pickled("resume/algorithm.pkl", _fresh_filter),
    "metrics": _pickled("resume/algorithm.pkl", lambda s: s.update(metrics={})),
    "learner metrics": _pickled("resume/algorithm.pkl", _forget_learner_metrics),
    "iteration": _plain(lambda s: s.update(iteration=1)),
    "optimizer": _pickled("learner_group/learner/state.pkl", _no_momentum),
}


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES)
def test_without_one_piece_of_the_state_the_run_is_another(
    piece: Any, saved: Saved, tmp_path: Path
) -> None:
    saved.again.load_exact(saved.broken(tmp_path / "state", PIECES[piece]))
    assert unlike(saved.expected, iterate(saved.again, 2))


PIECES_OF_RLLIBS_SAMPLING = {
    "cached observations": _group(lambda s: s["runner"]["_cached_to_module"]["obs"].zero_()),
    "returned chunks": _group(lambda s: s["runner"]["_ongoing_episodes_for_metrics"].clear()),
    # The order of minibatches, where the learner's update is RLlib's too.
    "main generators": _plain(lambda s: s.update(rng=_other_rng())),
    # Where arrays are sampled these hold nothing but times.
    "group metrics": _group(lambda s: s.update(metrics={})),
}


@pytest.fixture(scope="module")
def saved_by_rllibs_sampling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnvGroup, "sampling", "rllib")
        patch.setattr(FastUpdate, "of", lambda learner: "the test says so")
        saved = _saved(tmp_path_factory.mktemp("rllib") / "state")
    yield saved
    saved.again.stop()


@pytest.mark.slow
@pytest.mark.parametrize("piece", PIECES_OF_RLLIBS_SAMPLING)
def test_without_one_piece_of_rllibs_sampling_the_run_is_another(
    piece: Any, saved_by_rllibs_sampling: Saved, tmp_path: Path
) -> None:
    saved = saved_by_rllibs_sampling
    saved.again.load_exact(saved.broken(tmp_path / "state", PIECES_OF_RLLIBS_SAMPLING[piece]))
    assert unlike(saved.expected, iterate(saved.again, 2))
    saved.again.load_exact(saved.directory)
    assert unlike(saved.expected, iterate(saved.again, 2)) == []


def test_an_algorithm_that_went_another_way_becomes_the_saved_one(saved: Saved) -> None:
    disturb()
    iterate(saved.again, 1)
    saved.again.load_exact(saved.directory)
    assert unlike(saved.expected, iterate(saved.again, 2)) == []


# -- what a state is loaded into -----------------------------------------------------------------


def test_weights_that_are_not_the_saved_ones_are_refused(saved: Saved, tmp_path: Path) -> None:
    other = _plain(lambda s: s.update(weights_sha256="0" * 64))
    with pytest.raises(StateMismatch, match=r"the weights digest is [0-9a-f]{64}, the saved one"):
        saved.again.load_exact(saved.broken(tmp_path / "state", other))


def test_another_format_is_refused(saved: Saved, tmp_path: Path) -> None:
    newer = _plain(lambda s: s.update(format=2))
    with pytest.raises(StateMismatch, match="format 2, this raytrain reads 1"):
        saved.again.load_exact(saved.broken(tmp_path / "state", newer))


def test_fewer_groups_than_saved_end_exactness(saved: Saved, tmp_path: Path) -> None:
    def second(directory: Path) -> None:
        groups = directory / "resume" / "groups"
        shutil.copy(groups / "group_0000.pkl", groups / "group_0001.pkl")

    restored = saved.again.load_exact(saved.broken(tmp_path / "state", second))
    assert restored.exact_lost == "the number of env groups changed from 2 to 1"
    assert iterate(saved.again, 1)[0].row["training_iteration"] == 3


def test_two_runners_confirm_the_weights_and_more_groups_end_exactness(saved: Saved) -> None:
    sections = {
        "env_runners": runners(2, observation_filter="MeanStdFilter"),
        "training": ALL_SCHEDULES,
    }
    with built(**sections) as wider:
        restored = wider.load_exact(saved.directory)
        assert restored.exact_lost == "the number of env groups changed from 1 to 2"
        # Two: with the rollout of the second, the runners take over other weights.
        assert iterate(wider, 2)[-1].row["training_iteration"] == 4
        # The second runner does what RLlib's may do with a push: it takes nothing over.
        _, second = wider.env_groups.actors.values()
        ray.get(second.apply.remote(lambda runner: setattr(runner, "take_over", lambda sync: None)))
        with pytest.raises(RunnerLost, match=r"group 1 does not hold the weights that it was sent"):
            wider.load_exact(saved.directory)


@pytest.mark.slow
def test_each_of_two_learners_has_its_own_state(tmp_path: Path) -> None:
    sections = {"learners": {"num_learners": 2}, "training": {**KL, "num_epochs": 3}}
    saved = _saved(tmp_path / "state", **sections)
    disturb()

    def of_another(rank: int, state: Any) -> None:
        state["learners"][rank].update(rng=_other_rng())

    try:
        assert saved.again.load_exact(saved.directory) == Restored(2)
        assert unlike(saved.expected, iterate(saved.again, 2)) == []
        for rank in (0, 1):
            other = _plain(partial(of_another, rank))
            broken = saved.broken(tmp_path / f"broken {rank}", other)
            saved.again.load_exact(broken)
            assert unlike(saved.expected, iterate(saved.again, 1)), rank
    finally:
        saved.again.stop()
    with built(training=sections["training"]) as alone:
        restored = alone.load_exact(saved.directory)
        assert restored.exact_lost == "the number of learners changed from 2 to 1"
        assert iterate(alone, 1)[0].row["training_iteration"] == 3
