"""Daily trading of one stock: gym-anytrading's environment, made fit for training and for judging.

`Stocks` is gym-anytrading's `StocksEnv`: the same two actions (0 out of the market, 1 in it with
everything), the same fees (0.5 % to buy, 1 % to sell) and the same profit. The order of a day t:

    the agent sees the closing prices up to p_t and acts
    its order is carried out at the next close, p_(t+1), which it has not seen
    it sees p_(t+1), and is rewarded for the step from p_t to p_(t+1)

What is changed, and why:

- Observations are logarithmic daily returns over the window, in units of 2 % (about the standard
  deviation of a stock's day), not dollars: at 200 dollars a share a policy would learn nothing that
  holds at 1000. Every number is made of prices up to t; nothing is normalized over the series.
- The observation also says whether the stock is held. Otherwise the same window would ask for
  different actions.
- The reward is the step's change of log(wealth), fees included, so that an episode's return is
  exactly the log of gym-anytrading's `total_profit`. Its own reward is in dollars, knows no fees,
  and forgets a position that is still open at the end.
- Episodes of `days` begin anywhere in the range, drawn from the environment's generator. Without
  `days` the one episode is the whole range.
- `history`, which grows with every step, is not kept.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
from gym_anytrading.datasets import STOCKS_GOOGL
from gym_anytrading.envs import Positions, StocksEnv

TYPICAL_RETURN = 0.02
TRADING_DAYS = 252
"""A year, for the Sharpe ratio."""


class Stocks(StocksEnv):
    """`prices` has one row a day with a column `Close`. The days acted in are the rows from
    `first` to `last`, both included; the `window` of rows before `first` is seen at the start.

    The last `info` of an episode has `profit` (wealth over the wealth at the start, less 1: 0.1 is
    10 %), `sharpe` (annual, of the daily changes of log(wealth), without a risk-free rate),
    `max_drawdown` (the largest fall from an earlier wealth, 0.1 is 10 %), `trades`, and
    `hold_profit`: what buying at the first chance and selling at the end gives, with the same fees.
    """

    df: Any
    _start_tick: int
    _end_tick: int

    def __init__(
        self, prices: pd.DataFrame, first: int, last: int, window: int = 20, days: int | None = None
    ) -> None:
        if not window <= first < last < len(prices):
            raise ValueError(
                f"the days {first} to {last} with a window of {window} before them do not fit into "
                f"{len(prices)} rows of prices"
            )
        if days is not None and not 2 <= days <= last - first:
            raise ValueError(f"days is {days}; the range allows for 2 to {last - first}")
        # One row more than the window: a return needs two prices.
        super().__init__(prices, window_size=window, frame_bound=(first, last + 1))
        self.df = None  # not needed any more, and it would be part of every snapshot
        self._days = days
        self._first_tick, self._last_tick = self._start_tick, self._end_tick
        self._growth: list[float] = []
        self._trades = 0
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (window + 1,), np.float32)

    def _process_data(self) -> tuple[np.ndarray, np.ndarray]:
        first, behind = self.frame_bound
        closes = self.df["Close"].to_numpy(np.float64)[first - self.window_size : behind]
        returns = np.diff(np.log(closes), prepend=np.log(closes[0]))
        # float64 prices: NumPy 2 would otherwise keep the profit in single precision.
        return closes, (returns / TYPICAL_RETURN).astype(np.float32)[:, None]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        gym.Env.reset(self, seed=seed)
        if self._days is not None:
            last_start = self._last_tick - self._days
            self._start_tick = int(self.np_random.integers(self._first_tick, last_start + 1))
            self._end_tick = self._start_tick + self._days
        self._growth, self._trades = [], 0
        observation, info = super().reset(options=options)
        # For render_all, which counts from the first tick of the range.
        self._position_history = [None] * self._start_tick + [self._position]
        return observation, info

    def _get_observation(self) -> np.ndarray:
        seen = self.signal_features[self._current_tick - self.window_size + 1 :][: self.window_size]
        return np.append(seen, np.float32(self._position is Positions.Long))

    def _calculate_reward(self, action: int) -> float:
        """Called by `step` when the day has passed and before the order is carried out."""
        held, wanted = self._position is Positions.Long, action == 1
        growth = 0.0
        if held:
            growth = math.log(self.prices[self._current_tick] / self.prices[self._current_tick - 1])
        if held and (not wanted or self._truncated):
            growth += math.log(1 - self.trade_fee_bid_percent)  # 0.01, in spite of its name
        elif wanted and not held and not self._truncated:
            growth += math.log(1 - self.trade_fee_ask_percent)
            self._trades += 1
        self._growth.append(growth)
        return growth

    def _get_info(self) -> dict[str, Any]:
        if not self._truncated:
            return {}
        growth = np.array(self._growth)
        deviation = float(growth.std())
        wealth = np.exp(np.append(0.0, growth.cumsum()))
        bought, sold = self.prices[self._start_tick + 1], self.prices[self._end_tick]
        fees = (1 - self.trade_fee_ask_percent) * (1 - self.trade_fee_bid_percent)
        return {
            "profit": float(self._total_profit) - 1,
            "sharpe": float(growth.mean()) / deviation * TRADING_DAYS**0.5 if deviation else 0.0,
            "max_drawdown": float(1 - (wealth / np.maximum.accumulate(wealth)).min()),
            "trades": self._trades,
            "hold_profit": float(fees * sold / bought) - 1,
        }

    def _update_history(self, info: dict[str, Any]) -> None:
        pass


def google(first: str, last: str, window: int = 20, days: int | None = None) -> Stocks:
    """Google's shares from the day `first` to `last` (2009-06-22 to 2018-08-29), as
    gym-anytrading ships them. Days without trade count as the next one, or the one before."""
    index = STOCKS_GOOGL.index
    return Stocks(
        STOCKS_GOOGL,
        int(index.searchsorted(pd.Timestamp(first))),
        int(index.searchsorted(pd.Timestamp(last), side="right")) - 1,
        window,
        days,
    )
