"""`raytrain.Tuner` under a Ray that the program has started: what `fit` returns, Tune's callbacks,
trials that fail, restoring."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import pytest
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune import Callback, RunConfig

import raytrain
from raytrain import BadInput, Tuner
from raytrain.migrate.results import TrialFailed

pytestmark = pytest.mark.usefixtures("local_ray")


class Breaks(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole that breaks in its second iteration (of 64 steps each), if told so."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self._left = 80 if config["breaks"] else None

    def step(self, action: Any) -> Any:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise ValueError("worn out")
        return super().step(action)


class Heard(Callback):
    """What Tune tells a program's callback."""

    results: ClassVar[list[tuple[str, int]]] = []

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
    ) -> None:
        self.results.append((str(trial), result["training_iteration"]))


def small() -> PPOConfig:
    return (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(train_batch_size_per_learner=128, minibatch_size=64, num_epochs=1)
        .rl_module(model_config={"fcnet_hiddens": [8]})
    )


def run_config(place: Path, **options: Any) -> RunConfig:
    stop = {"training_iteration": 2}
    return RunConfig(**{"name": "run", "storage_path": str(place), "stop": stop, **options})


def test_the_results_of_two_trials(tmp_path: Path) -> None:
    Heard.results.clear()
    config = small().training(lr=tune.grid_search([1e-3, 1e-4]))
    tuned = tune.TuneConfig(metric="env_runners/episode_return_mean", mode="max")
    results = Tuner(
        "PPO",
        param_space=config,
        run_config=run_config(tmp_path, callbacks=[Heard()]),
        tune_config=tuned,
    ).fit()
    assert (len(results), results.num_terminated, results.num_errors) == (2, 2, 0)
    assert [result.config["lr"] for result in results if result.config] == [1e-3, 1e-4]
    assert sorted(Heard.results) == [
        (f"trial_0000{index}_lr={lr}", iteration)
        for index, lr in enumerate(["0.001", "0.0001"])
        for iteration in (1, 2)
    ]
    name = "env_runners/episode_return_mean"
    frame = results.get_dataframe(filter_metric=name, filter_mode="max")
    best = results.get_best_result(scope="all")
    assert best.metrics_dataframe is not None
    assert best.metrics_dataframe[name].max() == frame[name].max()
    assert best.checkpoint is not None
    assert raytrain.load_policy(best.checkpoint.path).act(
        gym.make("CartPole-v1").reset(seed=0)[0]
    ) in (0, 1)
    with pytest.raises(BadInput, match="a metric and a mode"):
        Tuner.restore(str(tmp_path / "run"), "PPO").get_results().get_best_result()

    # The same settings are the same run, which is finished; a later end continues it.
    again = Tuner("PPO", param_space=config, run_config=run_config(tmp_path)).fit()
    assert again.get_dataframe().equals(results.get_dataframe())
    longer = run_config(tmp_path, stop={"training_iteration": 3})
    assert [
        len(result.metrics_dataframe)
        for result in Tuner("PPO", param_space=config, run_config=longer).fit()
        if result.metrics_dataframe is not None
    ] == [3, 3]
    with pytest.raises(BadInput, match=r"training.gamma: was 0.99, is now 0.9"):
        other = small().training(lr=tune.grid_search([1e-3, 1e-4]), gamma=0.9)
        Tuner("PPO", param_space=other, run_config=run_config(tmp_path)).fit()


@pytest.mark.slow
def test_trials_that_fail(tmp_path: Path) -> None:
    config = small().environment(Breaks, env_config={"breaks": tune.grid_search([False, True])})
    results = Tuner("PPO", param_space=config, run_config=run_config(tmp_path)).fit()
    assert (len(results), results.num_terminated, results.num_errors) == (2, 1, 1)
    assert "worn out" in str(results.errors[0])
    assert results[0].error is None
    failures = tune.FailureConfig(fail_fast="raise")
    raising = run_config(tmp_path, failure_config=failures)
    with pytest.raises(TrialFailed, match="worn out"):
        Tuner("PPO", param_space=config, run_config=raising).fit()


def test_train_takes_a_ppo_config(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="stop: must be given"):
        raytrain.train(small())
    outcome = raytrain.train(
        small(), stop={"iterations": 2}, checkpoint={"num_to_keep": 1}, storage_path=tmp_path
    )
    assert outcome.exit_code == 0
    assert Path(outcome.path).name.startswith("PPO_CartPole-v1_")
    assert raytrain.resume(outcome.path).message.startswith(Path(outcome.path).name)


def test_restoring_needs_a_run_of_raytrain(tmp_path: Path) -> None:
    assert not Tuner.can_restore(tmp_path)
    with pytest.raises(BadInput, match="not an experiment's directory"):
        Tuner.restore(str(tmp_path), "PPO")
    for name, value in (
        ("restart_errored", True),
        ("param_space", {}),
        ("resume_unfinished", False),
    ):
        options: dict[str, Any] = {name: value}
        with pytest.raises(BadInput, match=r"Tuner\.restore: "):
            Tuner.restore(str(tmp_path), "PPO", **options)
