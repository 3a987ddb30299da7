"""configs/trading_env.py: what gym-anytrading counts is what is learned, and nobody
sees the future."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("gym_anytrading", reason="needs the extra trading")

from gym_anytrading.datasets import STOCKS_GOOGL
from gym_anytrading.envs import StocksEnv
from trading_env import Stocks, google

pytestmark = pytest.mark.trading


def walk(days: int, seed: int | None = 0) -> pd.DataFrame:
    steps = np.random.default_rng(seed).normal(0.0, 0.02, days)
    return pd.DataFrame({"Close": 100.0 * np.exp(np.cumsum(steps))})


def orders(count: int, seed: int | None = 0) -> np.ndarray:
    """Stay for some days, then change one's mind."""
    return np.cumsum(np.random.default_rng(seed).random(count) < 0.2) % 2


def play(env: Stocks, actions: np.ndarray, seed: int | None = 0) -> Any:
    """Observations (steps + 1, features), rewards, and the last info."""
    observation, info = env.reset(seed=seed)
    observations, rewards = [observation], []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        assert not terminated
        if truncated:
            break
        assert info == {}
    return np.array(observations), rewards, info


@pytest.mark.parametrize("last_action", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_the_return_is_the_profit_that_gym_anytrading_counts(seed: Any, last_action: int) -> None:
    prices, actions = walk(300, seed), orders(200, seed)
    actions[-1] = last_action
    theirs = StocksEnv(df=prices, window_size=20, frame_bound=(99, 300))
    theirs.reset(seed=0)
    for action in actions:
        *_, ended, info = theirs.step(action)
    assert ended
    _, rewards, own = play(Stocks(prices, 99, 299), actions)
    assert math.exp(sum(rewards)) == pytest.approx(1 + own["profit"], rel=1e-12)
    # Theirs is in single precision.
    assert own["profit"] + 1 == pytest.approx(float(info["total_profit"]), rel=1e-5)


def test_an_order_is_carried_out_at_a_close_that_was_not_seen() -> None:
    prices = pd.DataFrame({"Close": [100.0] * 12 + [100.0, 50.0, 200.0, 400.0, 400.0]})
    env = Stocks(prices, 12, 16, window=5)
    env.reset()
    assert env.step(1)[1] == pytest.approx(math.log(0.995))  # bought at 50: the fall cost nothing
    assert env.step(1)[1] == pytest.approx(math.log(200 / 50))
    assert env.step(0)[1] == pytest.approx(math.log(400 / 200 * 0.99))  # sold at 400
    assert env.step(0)[1] == 0.0
    assert env._total_profit == pytest.approx(400 / 50 * 0.995 * 0.99)


@pytest.mark.parametrize("day", [0, 1, 37, 150, 198])
def test_no_look_ahead(day: int) -> None:
    """Other prices after the day t: everything up to t is the same, and the step to t +
    1 is not."""
    prices, actions = walk(300), orders(200)
    actions[day:] = 1  # held from here on, so that the reward tells
    changed = prices.copy()
    changed.loc[99 + day + 1 :, "Close"] *= np.random.default_rng(9).uniform(0.2, 5.0, 200 - day)
    seen, rewards, _ = play(Stocks(prices, 99, 299), actions)
    others, other_rewards, _ = play(Stocks(changed, 99, 299), actions)
    assert len(seen) == 201
    assert np.array_equal(seen[: day + 1], others[: day + 1])
    assert rewards[:day] == other_rewards[:day]
    # What has changed is seen and paid for as soon as it has happened.
    assert not np.array_equal(seen[day + 1], others[day + 1])
    assert rewards[day + 1 :] != other_rewards[day + 1 :]


def test_an_observation_is_made_of_the_window_alone() -> None:
    """Prices before it do not matter either, and there is no scale of the whole series."""
    prices = walk(300)
    changed = prices.copy()
    changed.loc[:78, "Close"] *= 17.0
    rest = orders(200)
    seen = play(Stocks(prices, 99, 299), rest)[0]
    assert np.array_equal(seen, play(Stocks(changed, 99, 299), rest)[0])
    dearer = prices * 7.0
    np.testing.assert_allclose(seen, play(Stocks(dearer, 99, 299), rest)[0], atol=1e-5)
    closes = prices["Close"].to_numpy()
    returns = np.diff(np.log(closes))[79:99] / 0.02
    np.testing.assert_allclose(seen[0], [*returns, 0.0], atol=1e-6)


def test_the_position_is_part_of_the_observation() -> None:
    env = Stocks(walk(60), 30, 59, window=5)
    held = [env.reset()[0][-1], *(env.step(action)[0][-1] for action in (0, 1, 1, 0, 0, 1))]
    assert held == [0, 0, 1, 1, 0, 0, 1]


def test_episodes_begin_anywhere_in_the_range_and_nowhere_else() -> None:
    index = STOCKS_GOOGL.index
    first, last = index.searchsorted(["2010-01-01", "2010-06-30"])
    env = google("2010-01-01", "2010-06-30", days=100)
    begins = set()
    env.reset(seed=1)
    for _ in range(300):
        env.reset()
        begins.add(env._start_tick)
        *_, info = play(env, np.ones(200, int), seed=None)
        assert env._current_tick - env._start_tick == 100
        assert info["trades"] == 1
    assert begins == set(range(20, 20 + (last - first) - 100 + 1))
    again = google("2010-01-01", "2010-06-30", days=100)
    assert np.array_equal(again.reset(seed=5)[0], env.reset(seed=5)[0])


def test_held_out_days_are_those_after_the_training() -> None:
    training, held_out = google("2010-01-01", "2015-12-31"), google("2016-01-01", "2016-12-31")
    days = STOCKS_GOOGL.index
    closes = STOCKS_GOOGL["Close"].to_numpy()
    # The window reaches back before the range, into the past.
    assert np.array_equal(training.prices[-1510:], closes[(days >= "2010") & (days < "2016")])
    assert np.array_equal(held_out.prices[20:], closes[(days >= "2016") & (days < "2017")])
    first, second = held_out.reset(seed=1)[0], held_out.reset(seed=2)[0]
    assert np.array_equal(first, second)


def test_the_report_of_an_episode() -> None:
    prices = pd.DataFrame({"Close": [100.0] * 6 + [100.0, 100.0, 200.0, 150.0, 300.0, 300.0]})
    actions = np.array([1, 1, 1, 0, 0])
    _, rewards, info = play(Stocks(prices, 6, 11, window=5), actions)
    growth = np.log([0.995, 2.0, 0.75, 2.0 * 0.99, 1.0])
    np.testing.assert_allclose(rewards, growth)
    assert info["profit"] == pytest.approx(0.995 * 3.0 * 0.99 - 1)
    assert info["hold_profit"] == pytest.approx(0.995 * 3.0 * 0.99 - 1)
    assert info["max_drawdown"] == pytest.approx(0.25)
    assert info["sharpe"] == pytest.approx(growth.mean() / growth.std() * math.sqrt(252))
    assert info["trades"] == 1
    *_, idle = play(Stocks(prices, 6, 11, window=5), np.zeros(5, int))
    assert (idle["profit"], idle["sharpe"], idle["max_drawdown"], idle["trades"]) == (0, 0, 0, 0)


def test_a_range_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="the days 5 to 20 with a window of 20"):
        Stocks(walk(30), 5, 20)
    with pytest.raises(ValueError, match="days is 50; the range allows for 2 to 9"):
        Stocks(walk(60), 30, 39, days=50)
