"""A group is sampled into arrays, and nobody can tell: episodes, rows, counters and filter state
are those of RLlib's own sampling from the same random streams, without tolerance."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from support.learner_pairs import DISCRETE
from support.samplers import (
    CONV,
    FILTER,
    Stock,
    config,
    env,
    numbers,
    pair,
    require_same_rollouts,
    runner,
    unlike,
)

from raytrain.errors import RaytrainError
from raytrain.rollout.env_group import EnvGroup
from raytrain.rollout.env_runner import EnvRunnerActor
from raytrain.rollout.fast_sampling.forward import Acting
from raytrain.rollout.rollout import Rollout


def still(given: Any) -> None:
    given.env_runners(
        env_to_module_connector=lambda *_, **__: MeanStdFilter(
            update_stats=False, clip_by_value=1.0
        )
    )


def flattened(given: Any) -> None:
    given.env_runners(env_to_module_connector=lambda *_, **__: FlattenObservations())


class Chatty(DefaultPPOTorchRLModule):
    """Draws random numbers and returns more than it must."""

    def _forward_exploration(self, batch: Any, *, t: int, **kwargs: Any) -> Any:
        outputs = super()._forward_exploration(batch, **kwargs)
        outputs["action_dist_inputs"] += 0.1 * torch.randn(outputs["action_dist_inputs"].shape)
        count = len(outputs["action_dist_inputs"])
        return {**outputs, "age": torch.full((count,), t), "wide": torch.ones(count, 2).double()}


class Decided(DefaultPPOTorchRLModule):
    """Chooses its actions itself."""

    def _forward_exploration(self, batch: Any, **kwargs: Any) -> Any:
        outputs = super()._forward_exploration(batch, **kwargs)
        return {**outputs, "actions": outputs["action_dist_inputs"].argmax(-1)}


class Nested(DefaultPPOTorchRLModule):
    def _forward_exploration(self, batch: Any, **kwargs: Any) -> Any:
        outputs = super()._forward_exploration(batch, **kwargs)
        return {**outputs, "more": {"inputs": outputs["action_dist_inputs"]}}


def module(kind: type) -> dict[str, Any]:
    spec = RLModuleSpec(module_class=kind, model_config=DefaultModelConfig(fcnet_hiddens=[16]))
    return {"change": lambda given: given.rl_module(rl_module_spec=spec)}


def environment(**settings: Any) -> dict[str, Any]:
    return {"change": lambda given: given.environment(**settings)}


def runners(**settings: Any) -> dict[str, Any]:
    return {"change": lambda given: given.env_runners(**settings)}


def model(**settings: Any) -> dict[str, Any]:
    return {"rl_module": {"model_config": settings}}


CASES: dict[str, Any] = {
    "discrete": {},
    "discrete-one-env": {"env_runners": {"num_envs_per_env_runner": 1}},
    "float64-observations": {"environment": {"env": "awkward_envs:Walk"}},
    "multi-discrete": env("levers"),
    "box-unsquashed": env("forces"),
    "box-clipped": {**env("forces"), **environment(normalize_actions=False, clip_actions=True)},
    "box-as-it-is": {**env("one_way"), **environment(normalize_actions=False)},
    "box-half-bounded": env("one_way"),
    "box-float64": env("fine_forces"),
    "infos-and-truncations": env("Drift"),
    "images": {**env("Pictures"), "rl_module": CONV},
    "flattened-by-rllib": {**env("Named"), "change": flattened},
    "filter": {**env("forces"), "env_runners": FILTER},
    "filter-float64": {**env("fine_forces"), "env_runners": FILTER},
    "filter-still": {**env("Drift"), "env_runners": FILTER, "change": still},
    "complete-episodes": {**env("Drift"), "env_runners": {"batch_mode": "complete_episodes"}},
    "likeliest-actions": {**env("forces"), "env_runners": {"explore": False}},
    "likeliest-levers": {**env("levers"), "env_runners": {"explore": False}},
    "shared-layers": model(vf_share_layers=True, fcnet_hiddens=[16, 8]),
    "free-log-std": {**env("forces"), **model(free_log_std=True)},
    "relu": model(fcnet_activation="relu"),
    "silu": model(fcnet_activation="silu", head_fcnet_hiddens=[8]),
    "own-module": module(Chatty),
    "own-module-of-actions": {**module(Decided), "env_runners": {"num_env_runners": 2}},
    "longer-lookback": {**env("Drift"), **runners(episode_lookback_horizon=4)},
    "no-lookback": {**env("Drift"), **runners(episode_lookback_horizon=0)},
    "short-fragments": {**env("Drift"), **runners(rollout_fragment_length=2)},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_episodes_are_those_of_rllib(name: str) -> None:
    ours, theirs = pair(config(**CASES[name]))
    for version in (1, 2, 3):
        one = require_same_rollouts(ours, theirs, version)
        assert ours._streams == theirs._streams
    assert one.episodes


def test_what_is_wanted_of_a_single_call_is_what_rllib_brings() -> None:
    ours, theirs = pair(config(**env("Drift")))
    for wanted in (
        {"num_timesteps": 20},
        {"num_episodes": 4},
        {"num_timesteps": 7, "explore": False},
        {"num_timesteps": 16, "force_reset": True},
        {"num_episodes": 1, "explore": False},
    ):
        assert unlike(ours.sample(**wanted), theirs.sample(**wanted)) == [], wanted
        assert ours.take_finished() == theirs.take_finished()


class OtherVectorEnv(SyncVectorEnv):
    """Not the one that is known to the last line, so stepped as a whole."""


def test_another_vector_environment_is_stepped_as_a_whole() -> None:
    ours, theirs = pair(config(**env("Drift")))
    ours.env.env.__class__ = OtherVectorEnv
    for _ in range(2):
        one, other = ours.rollout(None, snapshot=True), theirs.rollout(None, snapshot=True)
        assert unlike(one.episodes, other.episodes) == []
        assert one.finished == other.finished


def test_an_episode_keeps_its_id_and_no_other_has_it() -> None:
    ours = runner(EnvGroup, config(**env("Drift")))
    episodes = [each for _ in range(3) for each in ours.rollout(None, snapshot=False).episodes]
    chunks: dict[str, list[Any]] = {}
    for each in episodes:
        chunks.setdefault(each.id_, []).append(each)
    for of_one in chunks.values():
        assert [each.t_started for each in of_one] == [0, *(each.t for each in of_one[:-1])]
        assert not any(each.is_done for each in of_one[:-1])
        for before, after in pairwise(of_one):
            assert (before.get_observations(-1) == after.get_observations(0)).all()
            assert after.observations.lookback == 1
    assert max(map(len, chunks.values())) > 1
    assert len(chunks) > 10


def test_episodes_and_what_is_sampled_later_leave_each_other_alone() -> None:
    ours, theirs = pair(config(**env("Drift")))
    first, expected = ours.sample(), theirs.sample()
    assert unlike(ours.sample(), theirs.sample()) == []
    assert unlike(first, expected) == []
    for each in first:  # as a learner connector may
        each.observations.data[:] = 99
        each.rewards.data[:] = 99
        each.infos.data.clear()
    assert unlike(ours.sample(), theirs.sample()) == []


# -- snapshots and groups --------------------------------------------------------------------------


def rollouts(pool: dict[int, Any], groups: range, times: int) -> list[list[Rollout]]:
    return [[pool[g].call(g, "rollout", None, snapshot=True) for g in groups] for _ in range(times)]


def test_a_snapshot_goes_on_as_its_group_does() -> None:
    given = config(**env("forces"), env_runners=FILTER)
    original = runner(EnvGroup, given)
    original.rollout(None, snapshot=False)
    saved, weights = original.snapshot(), original.get_state(components=["rl_module"])
    other = runner(EnvGroup, given)
    np.random.seed(11)
    other.rollout(None, snapshot=False)
    other.load("pickle", weights, saved, iteration=1)
    for _ in range(2):
        a, b = original.rollout(None, snapshot=True), other.rollout(None, snapshot=True)
        assert unlike(a.episodes, b.episodes) == []
        assert [each.id_ for each in a.episodes] == [each.id_ for each in b.episodes]
        assert a.finished == b.finished
        assert numbers(a.metrics) == numbers(b.metrics)


@pytest.mark.parametrize("mode", ["truncate_episodes", "complete_episodes"])
def test_a_state_of_rllibs_sampling_is_refused_in_plain_words(mode: str) -> None:
    given = config(env_runners={"batch_mode": mode})
    ours, theirs = pair(given)
    ours.sample()
    theirs.sample()
    for one, saved in ((ours, theirs.snapshot()), (theirs, ours.snapshot())):
        with pytest.raises(RaytrainError, match="env group 0 was saved by a run that sampled"):
            one.restore(saved, iteration=1)


@pytest.mark.parametrize("kind", [EnvGroup, Stock])
def test_a_groups_data_are_the_same_whoever_hosts_it(
    kind: type[EnvGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EnvGroup, "sampling", kind.sampling)
    given = config(
        **env("forces"), env_runners={**FILTER, "num_env_runners": 3, "num_envs_per_env_runner": 2}
    )
    groups = range(3)
    apart = {group: runner(EnvRunnerActor, given, group) for group in groups}
    together = runner(EnvRunnerActor, given, 1)  # whose own group is one of them
    weights = apart[0].get_state(components=["rl_module"])
    for group in groups:
        apart[group].load("pickle", weights, None, iteration=0)
        together.call(group, "load", "pickle", weights, None, iteration=0)
    alone = rollouts(apart, groups, 3)
    hosted = rollouts(dict.fromkeys(groups, together), groups, 2)
    # The last iteration by an actor that gets all of it from snapshots, in another order.
    late = runner(EnvRunnerActor, given, 2)
    for group in reversed(groups):
        saved = hosted[-1][group].snapshot
        late.call(group, "load", "pickle", weights, saved, iteration=2)
    hosted += rollouts(dict.fromkeys(groups, late), groups, 1)
    for one, other in zip(alone, hosted, strict=True):
        for group in groups:
            assert unlike(one[group].episodes, other[group].episodes) == []
            assert one[group].finished == other[group].finished
            assert repr(one[group].connectors) == repr(other[group].connectors)
            assert {row["group"] for row in one[group].finished} <= {group}
    first = [each.episodes[0].get_observations(0).tolist() for each in alone[0]]
    assert first[0] != first[1] != first[2]


# -- who is served --------------------------------------------------------------------------------


class Watching(RLlibCallback):
    def on_episode_step(self, **_: Any) -> None: ...


class Doubled(ConnectorV2):
    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        return batch


def doubled(*_: Any, **__: Any) -> Any:
    return Doubled()


NOT_SERVED = {
    "nested": (module(Nested), "Nested returns 'more' in another form than arrays"),
    "lstm": ({"rl_module": {"model_config": {"use_lstm": True}}}, "module is stateful"),
    "callbacks": (
        {"change": lambda c: c.callbacks(callbacks_class=Watching)},
        "the callback Watching.on_episode_step looks at running episodes",
    ),
    "callback-function": (
        {"change": lambda c: c.callbacks(on_episode_step=lambda **_: None)},
        "the callback <lambda> looks at running episodes",
    ),
    "connector": (
        {"change": lambda c: c.env_runners(env_to_module_connector=doubled)},
        "env-to-module connector pipeline has Doubled",
    ),
    "after-the-module": (
        {"change": lambda c: c.env_runners(module_to_env_connector=doubled)},
        "module-to-env connector pipeline has Doubled",
    ),
    "restarts": (
        {"change": lambda c: c.fault_tolerance(restart_failed_sub_environments=True)},
        "restart_failed_sub_environments",
    ),
}


@pytest.mark.parametrize("name", NOT_SERVED)
def test_what_arrays_cannot_do_is_left_to_rllib_with_the_reason(name: str) -> None:
    sections, reason = NOT_SERVED[name]
    ours = runner(EnvGroup, config(**sections))
    said = ours.why_not_into_arrays()
    assert said is not None
    assert reason in said
    assert ours.rollout(None, snapshot=True).episodes


def test_nan_ends_the_run_and_names_the_observation() -> None:
    ours = runner(EnvGroup, config(**env("Faulty")))
    with pytest.raises(
        RaytrainError, match=r"NaN after 0 steps .* the observation \[nan nan nan\]"
    ):
        ours.sample()


@pytest.mark.parametrize("kind", [EnvGroup, Stock])
def test_what_an_environment_puts_into_its_infos_is_recorded_as_it_was(
    kind: type[EnvGroup],
) -> None:
    made = runner(kind, config(**env("Reusing")))
    made.sample(num_timesteps=300)
    rows = made.take_finished()
    assert len(rows) > 20
    for index in range(3):
        mine = [row for row in rows if row["env_index"] == index]
        counted = [(row["custom/counted/of/episode"], row["custom/number"]) for row in mine]
        assert counted == [(each, each) for each in range(1, len(mine) + 1)]


def test_an_environment_that_writes_into_its_actions_changes_none_of_the_learners() -> None:
    plain = {"normalize_actions": False, "clip_actions": False}
    given = config(environment={**env("Meddling")["environment"], **plain})
    (episode, *_) = runner(EnvGroup, given).sample(num_timesteps=30)
    assert (np.asarray(episode.get_actions()["force"]) != 0).all()


def test_where_the_time_went_is_in_the_metrics() -> None:
    ours = runner(EnvGroup, config())
    timers = ours.rollout(None, snapshot=False).metrics["timers"]
    seconds = {name: float(each.peek()) for name, each in timers.items()}
    assert seconds.keys() == {"env_step_s", "inference_s", "other_s"}
    assert all(0 < each < 3600 for each in seconds.values())


def test_what_torch_computes_with_is_aligned() -> None:
    """MKL promises the same sums only for arrays that are aligned to 64 bytes."""
    ours = runner(EnvGroup, config())
    policies = [Acting(ours.module, DISCRETE, explore=True) for _ in range(1, 20)]
    for size, policy in enumerate(policies, 1):
        policy.act(np.zeros((size, 4), np.float32), 0)
    assert {policy._observations.data_ptr() % 64 for policy in policies} == {0}
