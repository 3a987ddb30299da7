"""What `raytrain/_ray` relies on in Ray. Each test fails when Ray changes that; then look at the
entry of the same name."""

from __future__ import annotations

import inspect
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
from ray.rllib.algorithms import algorithm as rllib_algorithm
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors import connector_v2
from ray.rllib.connectors.common import NumpyToTensor
from ray.rllib.connectors.env_to_module.mean_std_filter import MeanStdFilter
from ray.rllib.connectors.learner import GeneralAdvantageEstimation
from ray.rllib.core.learner.learner import Learner
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.filter import RunningStat
from ray.tune.experiment import Trial
from ray.tune.search.basic_variant import BasicVariantGenerator
from support import own_ray
from support.tiny_ppo import Told, build

from raytrain import _ray
from raytrain._ray import actors as _ray_actors
from raytrain.rollout.env_group import EnvGroup
from raytrain.rollout.filters import merge_connector_states

PPO_SETTINGS = {
    "lr": [[0, 1e-2], [1000, 1e-4]],
    "entropy_coeff": [[0, 0.1], [1000, 0.0]],
    "kl_coeff": 0.4,
}


def test_quick_connectors_know_the_arguments_that_rllibs_own_know() -> None:
    def made() -> list[dict[str, object]]:
        pieces = [
            MeanStdFilter(clip_by_value=3.0),
            GeneralAdvantageEstimation(gamma=0.9, lambda_=0.5),
            NumpyToTensor(),
        ]
        return [piece.get_ctor_args_and_kwargs()[1] for piece in pieces]

    own = made()
    with _ray.runners.quick_connectors(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", None)
        assert made() == own
    assert own[0]["clip_by_value"] == 3.0
    assert connector_v2.inspect is inspect


@pytest.fixture(scope="module")
def algorithm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One that has trained for an iteration, with the learner and the runner in this process."""
    own_ray.ensure()
    with pytest.MonkeyPatch.context() as patch:
        # What is private to RLlib's sampling shows only where RLlib samples.
        patch.setattr(EnvGroup, "sampling", "rllib")
        made = build(training=PPO_SETTINGS, env_runners={"observation_filter": "MeanStdFilter"})
    made.train()
    yield made
    made.stop()
    ray.shutdown()


@pytest.fixture
def runner(algorithm: Told) -> SingleAgentEnvRunner:
    return algorithm.env_runner


@pytest.fixture
def learner(algorithm: Told) -> Learner:
    return algorithm.learner_group._learner


def test_ray_is_the_version_that_this_was_written_against() -> None:
    assert ray.__version__.startswith("2.60.")


# -- env runner actors (`_ray.actors`) -----------------------------------------------------------


def test_an_env_runner_group_makes_its_actors_where_ours_intervenes() -> None:
    parameters = {
        name: set(inspect.signature(getattr(EnvRunnerGroup, name)).parameters)
        for name in ("__init__", "_setup", "add_workers", "_make_worker")
    }
    assert "pg_offset" in parameters["__init__"]
    assert {"num_env_runners", "local_env_runner"} <= parameters["_setup"]
    assert {"num_workers", "validate"} <= parameters["add_workers"]
    # What `make` hands to an actor by itself, but for what RLlib's own method chooses.
    assert parameters["_make_worker"] == {
        "self", "env_creator", "validate_env", "worker_index", "num_workers", "recreated_worker",
        "config", "spaces",
    }  # fmt: skip
    source = inspect.getsource(Algorithm.setup)
    assert source.count("EnvRunnerGroup(") == 2
    assert "pg_offset=self.config.num_env_runners" in source


def test_an_algorithm_is_set_up_with_our_group(algorithm: Any) -> None:
    assert isinstance(algorithm.env_runner_group, _ray_actors.ElasticRunnerGroup)
    assert rllib_algorithm.EnvRunnerGroup is EnvRunnerGroup  # Put back.


def test_a_word_is_taken_once(algorithm: Any) -> None:
    assert _ray_actors.take_message("nobody") is None
    thread = threading.Thread(target=_ray_actors.leave_message, args=("somebody", "in step"))
    thread.start()
    thread.join()
    assert _ray_actors.take_message("somebody") == "in step"
    assert _ray_actors.take_message("somebody") is None


# -- env runners ---------------------------------------------------------------------------------


def test_a_runner_has_the_attributes_and_no_others_that_change(
    runner: SingleAgentEnvRunner,
) -> None:
    state = _ray.runners.runner_attributes(runner)
    assert all(len(episode) == 0 for episode in state["_ongoing_episodes"])
    assert state["_needs_initial_reset"] is False
    assert "obs" in state["_cached_to_module"]
    # What else a sample() replaces would be state that nobody saves.
    before = dict(vars(runner))
    runner.sample()
    changed = {name for name, value in vars(runner).items() if value is not before.get(name)}
    ours = {"_finished", "_streams"}
    clocks = {"_time_after_sampling"}
    assert changed - ours - clocks <= set(state)
    present = _ray.runners.runner_attributes(runner)
    _ray.runners.set_attributes(runner, {**present, "num_env_steps_sampled_lifetime": 7})
    assert runner.num_env_steps_sampled_lifetime == 7
    _ray.runners.set_attributes(runner, present)


def test_sampling_into_arrays_leaves_rllibs_memory_alone(algorithm: Any) -> None:
    runner = EnvGroup(config=algorithm.config)
    runner.sample()
    before = dict(vars(runner))
    version, seed = _ray.runners.weights_version(runner), _ray.runners.runner_seed(runner)
    assert (_ray.runners.needs_reset(runner), version, runner._seed) == (False, 0, seed)
    runner.sample()
    changed = {name for name, value in vars(runner).items() if value is not before.get(name)}
    assert changed <= {"_finished", "_streams", "_sampled_at", "_seconds"}
    _ray.runners.set_needs_reset(runner, True)
    assert runner._needs_initial_reset is True


def test_episodes_are_logged_as_rllib_logs_them(algorithm: Any) -> None:
    ended = [(3, 2.5, 0.1), (5, -1.0, 0.2), (4, 7.0, 0.3)]
    ours, theirs = (EnvGroup(config=algorithm.config) for _ in range(2))
    _ray.runners.log_episodes(ours, [])
    assert ours.metrics.stats == {}
    _ray.runners.log_episodes(ours, ended)
    _ray.runners.log_sampled(ours, 12, 3, 6)
    for each in ended:
        theirs._log_episode_metrics(*each)
    theirs._increase_sampled_metrics(12, 3)
    assert list(ours.metrics.stats) == list(theirs.metrics.stats)
    for name, stats in theirs.metrics.stats.items():
        assert "throughput" in name or repr(ours.metrics.stats[name]) == repr(stats)
        if "episode_" in name and "mean" in name and not isinstance(stats, dict):
            assert list(ours.metrics.stats[name].values) == list(stats.values)


def test_a_filter_is_found_before_its_first_use(algorithm: Any) -> None:
    pipeline, _ = _ray.runners.connectors(EnvGroup(config=algorithm.config))
    found, updates = _ray.runners.mean_std_filter(pipeline.connectors[0])
    assert (found.running_stats.shape, found.clip, updates) == ((4,), 10.0, True)


def test_a_runner_without_a_state_server_has_none(runner: SingleAgentEnvRunner) -> None:
    assert _ray.runners.state_server(runner) is None
    assert "_env_runner_state_server.pull_if_newer" in inspect.getsource(
        SingleAgentEnvRunner.sample
    )


def test_a_vector_environment_has_the_attributes_and_cannot_be_pickled(
    runner: SingleAgentEnvRunner,
) -> None:
    vector_env = runner.env.unwrapped
    assert isinstance(vector_env, gym.vector.SyncVectorEnv)
    state = _ray.runners.vector_env_attributes(vector_env)
    assert len(state["_autoreset_envs"]) == vector_env.num_envs
    before = dict(vars(vector_env))
    vector_env.step(vector_env.action_space.sample())
    changed = {name for name, value in vars(vector_env).items() if value is not before.get(name)}
    assert changed <= set(state)
    _ray.runners.set_attributes(vector_env, state)
    with pytest.raises(TypeError, match="generator"):
        pickle.dumps(vector_env)


def test_the_first_reset_takes_the_seed_that_was_set(algorithm: Any) -> None:
    # In the source, since a second environment would have to be made to see it.
    source = inspect.getsource(SingleAgentEnvRunner._reset_envs)
    assert "seed=self._seed" in source.replace(" ", "")
    assert "_needs_initial_reset" in inspect.getsource(SingleAgentEnvRunner._sample)
    assert isinstance(algorithm.env_runner._seed, int)


def test_chunks_of_running_episodes_are_kept_by_episode(runner: SingleAgentEnvRunner) -> None:
    runner.sample()
    runner.get_metrics()  # drops those of episodes that have ended
    chunks = _ray.runners.unfinished_chunks(runner)
    assert chunks
    running = {episode.id_ for episode in runner._ongoing_episodes}
    assert chunks.keys() <= running
    assert all(isinstance(each, list) for each in chunks.values())


def test_a_runner_has_both_connector_pipelines(runner: SingleAgentEnvRunner) -> None:
    to_module, to_env = _ray.runners.connectors(runner)
    assert "MeanStdFilter" in runner.get_state()["env_to_module_connector"]
    assert dict(to_module.get_checkpointable_components())["MeanStdFilter"]
    assert dict(to_env.get_checkpointable_components())


def test_older_weights_are_still_dropped_without_a_word(runner: SingleAgentEnvRunner) -> None:
    state = runner.get_state(components=["rl_module"])
    weights = state["rl_module"]
    module = weights.get("default_policy", weights)
    name = next(iter(module))
    other = {**module, name: np.asarray(module[name]) + 1}
    changed = {"default_policy": other} if "default_policy" in weights else other
    version = runner._weights_seq_no
    assert version > 0
    runner.set_state({"rl_module": changed, "weights_seq_no": version})
    assert _same(runner, name, module[name])  # the trap: nothing was taken over
    _ray.runners.set_weights_version(runner, 0)
    runner.set_state({"rl_module": changed, "weights_seq_no": version})
    assert _same(runner, name, np.asarray(module[name]) + 1)
    _ray.runners.set_weights_version(runner, 0)
    runner.set_state({"rl_module": weights, "weights_seq_no": version})


def _same(runner: SingleAgentEnvRunner, name: str, value: np.ndarray) -> bool:
    return bool(np.array_equal(runner.module.state_dict()[name].numpy(), value))


def test_actors_are_by_worker_index_and_their_config_stays_in_the_object_store(
    algorithm: Any,
) -> None:
    assert _ray.runners.runner_actors(algorithm.env_runner_group) == {}
    assert "self._worker_manager" in inspect.getsource(EnvRunnerGroup.__init__)
    # Ray starts an actor again with a reference to the config; as long as the group holds it, so
    # does the object store (it warns of this at every start).
    assert isinstance(algorithm.env_runner_group._remote_config_obj_ref, ray.ObjectRef)


def test_the_sync_at_the_end_of_a_step_can_be_switched_off() -> None:
    config = PPOConfig()
    assert config._dont_auto_sync_env_runner_states is False
    _ray.runners.set_auto_sync(config, False)
    assert "self.config._dont_auto_sync_env_runner_states" in inspect.getsource(Algorithm.step)


def test_a_step_that_raises_still_becomes_an_error_without_a_message() -> None:
    # `EnvGroup.sample` raises what the environment raised instead.
    assert "raise RuntimeError from e" in inspect.getsource(SingleAgentEnvRunner._try_env_step)


# -- filters -------------------------------------------------------------------------------------


def _two_runners_see(rounds: int, merge: Callable[..., Any]) -> tuple[RunningStat, np.ndarray]:
    """20 rounds of 2 runners that see numbers around 5, merged after each."""
    random, seen = np.random.default_rng(0), []
    stats = RunningStat((2,))
    for _ in range(rounds):
        each = []
        for _ in range(2):
            own = RunningStat.from_state(stats.to_state())
            for value in random.normal(5.0, 1.0, (50, 2)):
                own.push(value)
                seen.append(value)
            each.append(own)
        stats = merge(stats, each)
    return stats, np.array(seen)


def test_rllib_still_merges_filters_wrongly() -> None:
    def theirs(before: RunningStat, after: list[RunningStat]) -> RunningStat:
        for stats in after:
            before.update(stats)
        before = RunningStat.from_state(before.to_state())
        before.num_pushes_delta = 0
        before.mean_delta_array, before.sum_sq_diff_delta_array = np.zeros(2), np.zeros(2)
        return before

    stats, _ = _two_runners_see(20, theirs)
    assert stats.num_pushes == 2000
    assert (stats.mean < 1.0).all()  # of numbers around 5


def test_merged_filters_are_those_of_all_observations() -> None:
    connector = MeanStdFilter()
    pipeline = SimpleNamespace(get_checkpointable_components=lambda: [("Filter", connector)])

    def state(stats: RunningStat) -> dict[str, Any]:
        return {"Filter": {None: {"shape": [2], "running_stats": [stats.to_state()]}}}

    def ours(before: RunningStat, after: list[RunningStat]) -> RunningStat:
        merged = merge_connector_states(pipeline, state(before), [state(each) for each in after])
        return RunningStat.from_state(merged["Filter"][None]["running_stats"][0])

    stats, seen = _two_runners_see(20, ours)
    assert stats.num_pushes == len(seen)
    # Another order of summation: not an exactness that the run depends on.
    np.testing.assert_allclose(stats.mean, seen.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.var, seen.var(axis=0, ddof=1), rtol=1e-6)

    def alone(before: RunningStat, after: list[RunningStat]) -> RunningStat:
        return ours(before, after[:1])

    stats, _ = _two_runners_see(3, alone)
    own, _ = _two_runners_see(3, lambda before, after: after[0])
    assert np.array_equal(stats.mean_array, own.mean_array)
    assert np.array_equal(stats.sum_sq_diff_array, own.sum_sq_diff_array)


# -- learners ------------------------------------------------------------------------------------


def test_schedulers_have_values_that_can_be_set(learner: Learner) -> None:
    found = _ray.learners.schedulers(learner)
    assert sorted(found) == ["entropy/default_policy", "lr/default_policy_default_optimizer"]
    for scheduler in found.values():
        before = float(scheduler.get_current_value())
        _ray.learners.set_scheduler_value(scheduler, 0.25)
        assert float(scheduler.get_current_value()) == 0.25
        _ray.learners.set_scheduler_value(scheduler, before)


def test_rllib_still_does_not_save_what_exact_state_saves(learner: Learner) -> None:
    (coefficient,) = _ray.learners.kl_coefficients(learner).values()
    before = coefficient.clone()
    state = learner.get_state()
    coefficient.fill_(123.0)
    learner.set_state(state)
    assert float(coefficient) == 123.0  # the trap: RLlib has not put it back
    coefficient.copy_(before)
    assert not any("entropy" in key or "kl" in key or "rng" in key for key in state)


def test_a_learner_has_its_other_parts(learner: Learner) -> None:
    assert _ray.learners.torch_schedulers(learner) == {}
    assert _ray.learners.grad_scalers(learner) == {}
    assert _ray.learners.learner_connector(learner).get_state() is not None


def test_rllibs_ppo_learner_has_the_connectors_that_the_lean_update_stands_in_for(
    learner: Learner,
) -> None:
    assert _ray.learners.has_default_connectors(learner)
    taken = learner._learner_connector.connectors.pop()
    assert not _ray.learners.has_default_connectors(learner)
    learner._learner_connector.connectors.append(taken)


def test_a_learner_tells_its_optimizers_and_rarer_settings(learner: Learner) -> None:
    ((name, optimizer),) = _ray.learners.optimizers(learner)
    assert name == "default_optimizer"
    assert len(optimizer.param_groups[0]["params"]) == len(
        list(learner.module["default_policy"].parameters())
    )
    config = learner.config.copy(copy_frozen=False)
    assert _ray.learners.unusual_torch_settings(config) == []
    config.torch_skip_nan_gradients = True
    assert _ray.learners.unusual_torch_settings(config) == ["torch_skip_nan_gradients"]


def test_an_update_is_counted_where_rllib_counts_it(learner: Learner) -> None:
    before = learner.get_state(components="nothing")["weights_seq_no"]
    assert _ray.learners.begin_update(learner) == before + 1
    assert learner.get_state(components="nothing")["weights_seq_no"] == before + 1
    with _ray.learners.time_minibatches(learner):
        _ray.learners.count_trained_steps(learner, env_steps=3, module_steps=4)


# -- an algorithm outside of Tune, and Tune ------------------------------------------------------


def test_an_algorithm_outside_of_tune_puts_its_files_where_it_is_told(
    algorithm: Any, tmp_path: Path
) -> None:
    with _ray.local.files_below(str(tmp_path)):
        algorithm._setup_logdir()
    assert Path(algorithm.logdir).parent == tmp_path


def test_a_checkpoint_on_storage_is_what_save_may_return(tmp_path: Path) -> None:
    from pyarrow.fs import LocalFileSystem

    result = _ray.tune.training_result(str(tmp_path), LocalFileSystem(), {"training_iteration": 3})
    assert result.checkpoint.path == str(tmp_path)
    assert result.metrics == {"training_iteration": 3}


def test_a_trial_has_what_is_read_and_reset() -> None:
    trial = Trial("PPO", stub=True)
    assert _ray.tune.trial_actor(trial) is None
    trial.run_metadata.num_failures = 5
    trial.run_metadata.num_failures_after_restore = 4
    _ray.tune.reset_failure_count([trial], 7)
    assert (trial.max_failures, trial.num_failures) == (7, 0)
    manager = trial.run_metadata.checkpoint_manager
    gone = SimpleNamespace(checkpoint=SimpleNamespace(path="gone"))
    manager._checkpoint_results = [gone]
    _ray.tune.forget_checkpoints(trial, lambda path: path != "gone")
    assert manager._checkpoint_results == []


def test_tune_asks_whether_a_failed_trial_may_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("should_recover", "handle_error"):
        monkeypatch.setattr(Trial, name, getattr(Trial, name))
    source = inspect.getsource(ray.tune.execution.tune_controller)
    assert "trial.should_recover()" in source
    assert "trial.handle_error(" in source
    trial = Trial("PPO", stub=True, max_failures=1)
    trial.storage = SimpleNamespace(trial_driver_staging_path=None)
    _ray.tune.decide_retries(lambda error: True, lambda trial, error: isinstance(error, ValueError))
    assert trial.should_recover()
    counted = []
    for error in (OSError("a node"), OSError("another"), ValueError("ours"), ValueError("again")):
        trial.handle_error(error)
        assert _ray.tune.last_error(trial) is error
        counted.append(trial.num_failures)
    assert counted == [0, 0, 1, 2]
    assert not trial.should_recover()
    trial.max_failures = -1
    assert trial.should_recover()
    _ray.tune.decide_retries(lambda error: False, lambda trial, error: True)
    assert not trial.should_recover()


def test_a_tuner_says_its_run_config() -> None:
    tuner = ray.tune.Tuner("PPO", run_config=ray.tune.RunConfig(name="x"))
    _ray.tune.set_run_config(tuner, callbacks=[], failure_config="ours", scheduler="ours too")
    assert tuner._local_tuner.get_run_config().failure_config == "ours"
    assert tuner._local_tuner._tune_config.scheduler == "ours too"


def test_the_driver_prints_through_a_function_that_can_be_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray._private import worker

    assert callable(worker.print_to_stdstream)
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    _ray.tune.quiet_driver()
    assert worker.print_to_stdstream("anything") is None


def test_whole_and_torn_pickles_are_told_apart() -> None:
    data = pickle.dumps({"tuner": list(range(100))})
    assert _ray.tune.unpickled(data) == {"tuner": list(range(100))}
    assert _ray.tune.unpickled(data[: len(data) // 2]) is None


def test_a_search_says_whether_it_has_made_all_trials(tmp_path: Path) -> None:
    search = BasicVariantGenerator(max_concurrent=1)
    search.add_configurations({"x": {"run": "PPO", "num_samples": 2}})

    def all_made() -> Any:
        search.save_to_dir(str(tmp_path), "x")
        (state,) = tmp_path.glob("basic-variant-state-*.json")
        return _ray.tune.has_named_all_trials(_ray.tune.unpickled(state.read_bytes()))

    first = search.next_trial()
    assert not all_made()
    search.on_trial_complete(first.trial_id)
    assert search.next_trial() is not None
    assert not all_made(), "it does not know that there is no third one"
    search.on_trial_complete(first.trial_id)
    search.max_concurrent = 0
    assert search.next_trial() is None
    assert all_made()
    assert not _ray.tune.has_named_all_trials(_ray.tune.unpickled(b"torn"))


def test_rllib_repeats_an_evaluation_in_later_results(
    algorithm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which `ExactPPO` takes out."""
    monkeypatch.setattr(Told, "_report_evaluation", lambda self, result: None)
    made = build(evaluation={"evaluation_interval": 2, "evaluation_duration": 1})
    try:
        means = [
            made.train().get("evaluation", {}).get("env_runners", {}).get("episode_return_mean")
            for _ in range(3)
        ]
    finally:
        made.stop()
    assert means[0] is None
    assert means[1] == means[2] is not None


def test_the_default_pipelines_of_a_runner_are_known(runner: SingleAgentEnvRunner) -> None:
    to_module, to_env = _ray.runners.connectors(runner)
    for pipeline, defaults in (
        (to_module, _ray.connectors.ENV_TO_MODULE),
        (to_env, _ray.connectors.MODULE_TO_ENV),
    ):
        # Connectors of a config come before them.
        kinds = [type(connector) for connector in pipeline.connectors][-len(defaults) :]
        assert _ray.connectors.why_not_default(kinds, defaults) is None
        assert "not RLlib's default" in str(_ray.connectors.why_not_default(kinds[1:], defaults))
        of_same_name = type(kinds[0].__name__, (), {})
        why = _ray.connectors.why_not_default([of_same_name, *kinds[1:]], defaults)
        assert why == f"has {kinds[0].__name__}"
