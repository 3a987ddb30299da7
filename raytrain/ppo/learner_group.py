"""All learners of a trial: asked in rank order, and none left out.

RLlib's `foreach_learner` hands back what the healthy ones answered, errors among the answers. Here an
error is raised and a missing answer is one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from raytrain.errors import RaytrainError
from raytrain.ppo.fast_update.eligibility import RLLIB
from raytrain.ppo.learner import ExactPPOTorchLearner, torch_rank


class LearnersDiffer(RaytrainError):
    """The learners do not hold the same weights."""


class Learners:
    """The learners of one RLlib `LearnerGroup`."""

    def __init__(self, learner_group: Any) -> None:
        self._group = learner_group

    def sampler_weights(self, names: Collection[str]) -> dict[str, Any]:
        """The parameters and buffers `names` of the policy module, with their sequence number, as
        `EnvGroup.take_over` wants them. `names` are those that the env runners' module has: a
        feed-forward one acts without the critic; a recurrent one computes the critic's states too.

        Raises:
            RaytrainError: the learners' module has no tensor of such a name.
        """
        asked = self._group.foreach_learner(
            partial(_weights_for_sampling, names=tuple(names)), **self._first_only()
        )
        (answer,) = [each.get() for each in asked]
        if isinstance(answer, Exception):
            raise answer
        weights, version = answer
        return {COMPONENT_RL_MODULE: weights, WEIGHTS_SEQ_NO: version}

    def _first_only(self) -> dict[str, Any]:
        return {} if self._group.is_local else {"remote_actor_ids": [0]}

    def weights_check(self) -> tuple[str, list[str]]:
        """The weights digest, which is the same on all learners, and the names of tensors that hold a
        NaN or an infinity.

        Raises:
            LearnersDiffer: the digests differ.
        """
        checks: list[tuple[str, list[str]]] = self._each(_weights_check)
        digests = sorted({digest for digest, _ in checks})
        if len(digests) != 1:
            raise LearnersDiffer(f"{len(checks)} learners hold different weights: {digests}")
        return checks[0]

    def why_not_lean(self) -> str | None:
        """Why the learners update in RLlib's own, slower way; None if they do not."""
        reason: str | None = self._each(_why_not_lean)[0]
        return reason

    def states(self) -> list[dict[str, Any]]:
        """`exact_state()` of every learner, in rank order."""
        return sorted(self._each(_exact_state), key=lambda state: int(state["rank"]))

    def load(self, states: list[dict[str, Any]]) -> str | None:
        """Give every learner the state of its rank. If there were more or fewer when they were saved,
        they are dealt out again, and that is what is returned: a reason why this is not exact."""
        present = max(1, len(self._group))
        dealt = [states[rank % len(states)] for rank in range(present)]
        self._each(_Load(dealt))
        if len(states) != present:
            return f"the number of learners changed from {len(states)} to {present}"
        return None

    def read_files(self, directory: Path) -> None:
        """Have every learner, wherever it is, become what a directory of RLlib's files holds, which only
        this process need be able to read."""
        files = {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in directory.rglob("*")
            if path.is_file()
        }
        self._each(partial(_read_files, files=ray.put(files)))

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Give every learner the same weights (see `ExactPPOTorchLearner.load_weights`)."""
        self._each(partial(_load_weights, weights=weights))

    def use_settings(self, config: Any, timesteps: int, kl_coeff: float | None) -> None:
        """Go on with the training values of `config` (see `ExactPPOTorchLearner.use_settings`)."""
        # RLlib deals a batch out to several learners by the group's own copy.
        self._group.config = config.copy(copy_frozen=False)
        self._each(partial(_use_settings, config=config, timesteps=timesteps, kl_coeff=kl_coeff))

    def _each(self, function: Callable[[ExactPPOTorchLearner], Any]) -> list[Any]:
        results = [answer.get() for answer in self._group.foreach_learner(function)]
        for result in results:
            if isinstance(result, Exception):
                raise result
        expected = max(1, len(self._group))
        if len(results) != expected:
            raise RaytrainError(f"{expected - len(results)} of {expected} learners did not answer.")
        return results


class _Load:
    def __init__(self, states: list[dict[str, Any]]) -> None:
        self._states = states

    def __call__(self, learner: ExactPPOTorchLearner) -> None:
        learner.load_exact_state(self._states[torch_rank() if len(self._states) > 1 else 0])


def _weights_for_sampling(
    learner: ExactPPOTorchLearner, names: tuple[str, ...]
) -> tuple[dict[str, Any], int]:
    return learner.weights_for_sampling(names)


def _weights_check(learner: ExactPPOTorchLearner) -> tuple[str, list[str]]:
    return learner.weights_check()


def _why_not_lean(learner: ExactPPOTorchLearner) -> str | None:
    return learner.tier.reason if learner.tier.name == RLLIB else None


def _read_files(learner: ExactPPOTorchLearner, files: Any) -> None:
    with TemporaryDirectory() as place:
        for name, data in ray.get(files).items():
            path = Path(place, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        learner.restore_from_path(place)


def _load_weights(learner: ExactPPOTorchLearner, weights: dict[str, Any]) -> None:
    learner.load_weights(weights)


def _use_settings(
    learner: ExactPPOTorchLearner, config: Any, timesteps: int, kl_coeff: float | None
) -> None:
    learner.use_settings(config, timesteps=timesteps, kl_coeff=kl_coeff)


def _exact_state(learner: ExactPPOTorchLearner) -> dict[str, Any]:
    return {**learner.exact_state(), "rank": torch_rank()}
