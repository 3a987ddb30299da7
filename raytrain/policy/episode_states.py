"""What a recurrent policy remembers of the episodes it acts in, a state for each."""

from __future__ import annotations

from typing import Any

import numpy as np

from raytrain.errors import BadInput


class ObservationError(BadInput):
    """An observation that is neither one of the policy's observation space nor a batch of such."""


class EpisodeStates:
    """`initial` is the state of an episode that begins; states are nested arrays without a batch axis."""

    def __init__(self, initial: Any) -> None:
        self._initial = initial
        self._states: list[Any] | None = None

    def reset(self, mask: np.ndarray[Any, Any] | None) -> None:
        """Forget all episodes, or those where `mask` is true."""
        if mask is None or self._states is None:
            self._states = None
            return
        if mask.shape != (len(self._states),):
            raise BadInput(
                f"reset got a mask of shape {mask.shape}, but the policy acts in "
                f"{len(self._states)} episodes"
            )
        self._states = [
            self._initial if starts else state
            for starts, state in zip(mask, self._states, strict=True)
        ]

    def of(self, size: int) -> list[Any]:
        """The states of the `size` episodes that act next."""
        if self._states is None:
            return [self._initial] * size
        if len(self._states) != size:
            raise ObservationError(
                f"got {size} observations, but the policy keeps the recurrent state of "
                f"{len(self._states)} episodes. Call reset() before acting in others."
            )
        return self._states

    def keep(self, states: list[Any]) -> None:
        """The states after that step."""
        self._states = states
