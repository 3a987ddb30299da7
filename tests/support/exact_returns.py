"""What a policy of a toy environment is worth exactly: no episodes, no noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np

_CARDS = {**dict.fromkeys(range(1, 10), 1 / 13), 10: 4 / 13}


def of_toy_text(env: gym.Env[Any, Any], act: Callable[[Any], Any], steps: int) -> float:
    """The mean return of at most `steps` steps in an environment that has its transitions as `P`
    (FrozenLake, Taxi). `act` takes an array of states."""
    table: Any = env.unwrapped
    states = len(table.initial_state_distrib)
    actions, values = act(np.arange(states)), np.zeros(states)
    for _ in range(steps):
        ways = [table.P[state][int(action)] for state, action in enumerate(actions)]
        values = np.array(
            [
                sum(
                    p * (reward + (0.0 if ended else values[after]))
                    for p, after, reward, ended in way
                )
                for way in ways
            ]
        )
    return float(values @ table.initial_state_distrib)


def of_blackjack(act: Callable[[Any], Any]) -> float:
    """The mean return in Blackjack-v1 (`natural` and `sab` False); at best -0.04656. `act` takes
    arrays of the player's sums, the dealer's cards and the usable aces."""
    hands = [(total, shown, ace) for total in range(4, 22) for shown in _CARDS for ace in (0, 1)]
    columns = tuple(np.array(column) for column in zip(*hands, strict=True))
    hits = dict(zip(hands, act(columns).tolist(), strict=True))

    @cache
    def value(total: int, ace: bool, shown: int) -> float:
        if total > 21:
            return -1.0
        if hits[total, shown, int(ace)]:
            return sum(p * value(*_with(total, ace, card), shown) for card, p in _CARDS.items())
        dealer = _dealer(*_with(0, False, shown))
        return sum(p * ((total > other) - (total < other)) for other, p in dealer.items())

    return sum(
        p * q * r * value(*_with(*_with(0, False, first), second), shown)
        for first, p in _CARDS.items()
        for second, q in _CARDS.items()
        for shown, r in _CARDS.items()
    )


def _with(total: int, ace: bool, card: int) -> tuple[int, bool]:
    """A hand and one more card; a usable ace counts 11."""
    if card == 1 and total + 11 <= 21:
        return total + 11, True
    total += card
    return (total - 10, False) if total > 21 and ace else (total, ace)


@cache
def _dealer(total: int, ace: bool) -> dict[int, float]:
    """How probable each final sum of the dealer is; 0 is a bust."""
    if total >= 17:
        return {total if total <= 21 else 0: 1.0}
    found: dict[int, float] = {}
    for card, p in _CARDS.items():
        for final, q in _dealer(*_with(total, ace, card)).items():
            found[final] = found.get(final, 0.0) + p * q
    return found
