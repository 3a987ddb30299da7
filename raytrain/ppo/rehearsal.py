"""What a learner computes for the run's own network, from fixed weights and episodes: the learning
part of the fingerprint of arithmetic (see `arithmetic.fingerprint`).
"""

from __future__ import annotations

import copy
import math
from typing import Any

from raytrain import _ray
from raytrain.arithmetic.fingerprint import Fingerprint, add_libraries
from raytrain.rng import preserved
from raytrain.rollout.rehearsal import fix_weights, rehearse, results_of

_STEPS = 8


def learning_fingerprint(learner: Any) -> str:
    """What the process of a built `ExactPPOTorchLearner` computes in two minibatches of the run's
    size (one of images): forward and backward pass, loss, clipping and optimizer; of the libraries
    alone if the module cannot act on made-up observations. A learner of its own does it; this one
    and the process's generators do not change.
    """
    fingerprint = Fingerprint()
    add_libraries(fingerprint)
    size = learner.config.minibatch_size or learner.config.train_batch_size_per_learner
    try:
        with preserved():
            fingerprint.add(*_update(learner, size))
    except Exception:  # Of a user's module: of any kind.
        return fingerprint.text()
    return fingerprint.text(str(size))


def _update(learner: Any, size: int) -> list[Any]:
    """Outputs of the policy, and the weights after an update with minibatches of this size."""
    config = learner.config.copy(copy_frozen=False)
    spec = copy.deepcopy(_ray.learners.module_spec(learner))
    stand_in = type(learner)(config=config.learners(num_learners=0), module_spec=spec)
    stand_in.build()
    module = stand_in.policy_module()
    fix_weights(module)
    minibatches = 1 if len(module.observation_space.shape or ()) > 1 else 2  # Images take long.
    envs = math.ceil(minibatches * size / _STEPS)
    episodes = rehearse(module, module.action_space, envs=envs, steps=_STEPS)
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
