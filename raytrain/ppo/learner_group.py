"""All learners of a trial, called in rank order.

RLlib's `foreach_learner` returns what the healthy learners answered, errors among the answers. Here
an error is raised, and a missing answer is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from operator import attrgetter, methodcaller
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from raytrain.errors import RaytrainError
from raytrain.ppo.learner import ExactPPOTorchLearner, torch_rank


class LearnersDiffer(RaytrainError):
    """The learners do not hold the same weights."""


class Learners:
    """The learners of one RLlib `LearnerGroup`."""

    def __init__(self, learner_group: Any) -> None:
        self._group = learner_group

    def sampler_weights(self, names: Collection[str]) -> dict[str, Any]:
        """The parameters and buffers `names` of the policy module, with their sequence number, as
        `EnvGroup.take_over` takes them. `names` are those of the env runners' module: a
        feed-forward one acts without the critic, a recurrent one computes the critic's states too.

        Raises:
            RaytrainError: the learners' module lacks one of the names.
        """
        first = {} if self._group.is_local else {"remote_actor_ids": [0]}
        call = methodcaller("weights_for_sampling", tuple(names))
        ((weights, version),) = self._each(call, expected=1, **first)
        return {COMPONENT_RL_MODULE: weights, WEIGHTS_SEQ_NO: version}

    def weights_check(self) -> tuple[str, list[str]]:
        """The weights digest, the same on all learners, and the names of tensors with a NaN
        or an infinity.

        Raises:
            LearnersDiffer: the digests differ.
        """
        checks: list[tuple[str, list[str]]] = self._each(methodcaller("weights_check"))
        digests = sorted({digest for digest, _ in checks})
        if len(digests) != 1:
            raise LearnersDiffer(f"{len(checks)} learners hold different weights: {digests}")
        return checks[0]

    def arithmetic(self) -> tuple[str, dict[str, str]]:
        """`ExactPPOTorchLearner.arithmetic` of the learners. Of several that compute differently
        the fingerprint names all, and the machine is the first's."""
        answers: list[tuple[str, dict[str, str]]] = self._each(methodcaller("arithmetic"))
        fingerprints = [fingerprint for fingerprint, _ in answers]
        return "+".join(dict.fromkeys(fingerprints)), answers[0][1]

    def nodes(self) -> list[str]:
        """The ids of the nodes that learners are on, sorted."""
        return sorted(set(self._each(_node)))

    def local(self) -> list[ExactPPOTorchLearner]:
        """The learner in this process, if there is one."""
        return self._each(_itself) if self._group.is_local else []

    def why_not_fast(self) -> str | None:
        """Why the learners use RLlib's own, slower update; None if they do not."""
        reason: str | None = self._each(attrgetter("why_not_fast"))[0]
        return reason

    def states(self) -> list[dict[str, Any]]:
        """`exact_state()` of every learner, in rank order."""
        return sorted(self._each(methodcaller("exact_state")), key=lambda state: int(state["rank"]))

    def load(self, states: list[dict[str, Any]]) -> str | None:
        """Load into every learner the state of its rank. If another number of learners saved them,
        they are dealt out again, and a reason is returned why the run is not exact."""
        present = max(1, len(self._group))
        dealt = [states[rank % len(states)] for rank in range(present)]
        self._each(partial(_load, states=dealt))
        if len(states) != present:
            return f"the number of learners changed from {len(states)} to {present}"
        return None

    def read_files(self, directory: Path) -> None:
        """Restore every learner from a directory of RLlib's files, which only this process has to
        be able to read."""
        files = {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in directory.rglob("*")
            if path.is_file()
        }
        self._each(partial(_read_files, files=ray.put(files)))

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Load the same weights into every learner (see `ExactPPOTorchLearner.load_weights`)."""
        self._each(methodcaller("load_weights", weights))

    def use_settings(self, config: Any, timesteps: int, kl_coeff: float | None) -> None:
        """Use the training values of `config` (see `ExactPPOTorchLearner.use_settings`)."""
        # By its own copy of the config the group splits a batch among learners.
        self._group.config = config.copy(copy_frozen=False)
        call = methodcaller("use_settings", config, timesteps=timesteps, kl_coeff=kl_coeff)
        self._each(call)

    def _each(
        self,
        function: Callable[[ExactPPOTorchLearner], Any],
        expected: int | None = None,
        **options: Any,
    ) -> list[Any]:
        """The answers of all learners, or of `expected` ones that `options` choose."""
        answers = [result.get() for result in self._group.foreach_learner(function, **options)]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        expected = expected or max(1, len(self._group))
        if len(answers) != expected:
            raise RaytrainError(f"{expected - len(answers)} of {expected} learners did not answer.")
        return answers


def _node(_: ExactPPOTorchLearner) -> str:
    node: str = ray.get_runtime_context().get_node_id()
    return node


def _itself(learner: ExactPPOTorchLearner) -> ExactPPOTorchLearner:
    return learner


def _load(learner: ExactPPOTorchLearner, states: list[dict[str, Any]]) -> None:
    learner.load_exact_state(states[torch_rank() if len(states) > 1 else 0])


def _read_files(learner: ExactPPOTorchLearner, files: Any) -> None:
    with TemporaryDirectory() as place:
        for name, data in ray.get(files).items():
            path = Path(place, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        learner.restore_from_path(place)
