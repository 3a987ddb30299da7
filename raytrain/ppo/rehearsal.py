"""What a learner computes for the run's own network, from fixed weights and episodes: the learning
part of the fingerprint of arithmetic (see `arithmetic.fingerprint`).
"""

from __future__ import annotations

import copy
import math
from contextlib import suppress
from typing import Any

from raytrain import _ray
from raytrain.arithmetic.fingerprint import Fingerprint, add_libraries
from raytrain.rng import preserved
from raytrain.rollout.rehearsal import RehearsalFailed, fix_weights, rehearse, results_of

_ENVS = 4
_MINIBATCHES = 2


def learning_fingerprint(learner: Any) -> str:
    """What the process of a built `ExactPPOTorchLearner` computes in two minibatches of the run's
    size: forward and backward pass, loss, clipping and optimizer; of the libraries alone if the
    module cannot act on made-up observations. A learner of its own does it; this one and the
    process's generators do not change.
    """
    fingerprint = Fingerprint()
    add_libraries(fingerprint)
    with suppress(RehearsalFailed), preserved():
        fingerprint.add(*_update(learner))
    return fingerprint.text()


def _update(learner: Any) -> list[Any]:
    """Outputs of the policy, and the weights after the update."""
    config = learner.config.copy(copy_frozen=False)
    size = config.minibatch_size or config.train_batch_size_per_learner
    spec = copy.deepcopy(_ray.learners.module_spec(learner))
    stand_in = type(learner)(config=config.learners(num_learners=0), module_spec=spec)
    stand_in.build()
    module = stand_in.policy_module()
    fix_weights(module)
    steps = math.ceil(_MINIBATCHES * size / _ENVS)
    episodes = rehearse(module, module.action_space, envs=_ENVS, steps=steps)
    outputs = results_of(episodes)
    for episode in episodes:
        episode.to_numpy()
    stand_in.update(
        episodes=episodes,
        timesteps={},
        num_epochs=1,
        minibatch_size=size,
        shuffle_batch_per_epoch=False,
    )
    return outputs + [tensor for _, tensor in sorted(module.state_dict().items())]
