"""Two learners that should do the same: RLlib's own `PPOTorchLearner`, and raytrain's.

stock, lean = pair(BOX, training={"grad_clip": 0.5})
same = first_update(stock, lean, episodes(BOX, lean))

Both begin with equal weights, and minibatches follow one random stream.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tree
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from raytrain.policy.action_masks import COLUMN, MASKED, MaskLayout
from raytrain.policy.arithmetic import unstack
from raytrain.ppo.learner import MODULE_ID, ExactPPOTorchLearner

OBSERVATIONS = gym.spaces.Box(-5.0, 5.0, (5,), np.float32)
DISCRETE = gym.spaces.Discrete(3)
BOX = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
MULTI = gym.spaces.MultiDiscrete([3, 2])
NESTED = gym.spaces.Dict(
    {"go": DISCRETE, "how": gym.spaces.Tuple((MULTI, BOX, gym.spaces.Box(-1.0, 1.0, (1,))))}
)

LENGTHS = (17, 1, 40, 9, 33)
"""Of the chunks of a batch: the second is a single timestep."""


ENDS = ("terminated", "cut", "truncated", "cut", "both")


@dataclass(frozen=True)
class Settings:
    """What an update is called with."""

    minibatch_size: int = 24
    num_epochs: int = 3
    shuffle: bool = True
    minibatches: int = 0
    """How many there must be, whatever the batch's length; several learners agree on it."""


def build(
    cls: type[PPOTorchLearner],
    actions: gym.Space[Any],
    *,
    observations: gym.Space[Any] = OBSERVATIONS,
    training: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    learner: dict[str, Any] | None = None,
    minibatch_size: int = 24,
    **rl_module: Any,
) -> Any:
    config = PPOConfig()
    config.environment(observation_space=observations, action_space=actions)
    config.training(
        **{"lr": 3e-3, "lambda_": 0.95, "minibatch_size": minibatch_size, **(training or {})}
    )
    config.rl_module(model_config={"fcnet_hiddens": [16, 8], **(model or {})}, **rl_module)
    config.learners(learner_class=cls, **(learner or {}))
    config.debugging(seed=3)
    torch.manual_seed(3)
    return config.build_learner(spaces={MODULE_ID: (observations, actions)})


def pair(actions: gym.Space[Any], **arguments: Any) -> tuple[Any, Any]:
    """RLlib's learner and raytrain's, with equal weights; free log-stds are not all 0."""
    stock = build(PPOTorchLearner, actions, **arguments)
    lean = build(ExactPPOTorchLearner, actions, **arguments)
    module = stock.module[MODULE_ID]
    with torch.no_grad():
        for parameter in module.parameters():
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    lean.module[MODULE_ID].load_state_dict(module.state_dict())
    return stock, lean


def episodes(
    learner: Any,
    *,
    seed: int = 0,
    scale: float = 1.0,
    lengths: Sequence[int] = LENGTHS,
    mask: MaskLayout | None = None,
    always: Sequence[bool] | None = None,
) -> list[SingleAgentEpisode]:
    """Chunks with all ways to end, sampled from a policy that is not quite the learner's. With
    `mask`, choices are masked by chance, or by `always`."""
    random = np.random.default_rng(seed)
    module = learner.module[MODULE_ID].unwrapped()

    def masks(count: int) -> np.ndarray[Any, Any] | None:
        if mask is None:
            return None
        if always is not None:
            return np.tile(np.array(always), (count, 1))
        allowed = random.random((count, mask.entries)) < 0.6
        first = np.cumsum([0, *mask.sizes[:-1]])
        for row in allowed:
            row[first + random.integers(mask.sizes)] = True
        return allowed

    return [
        _episode(module, length, end, random, scale=scale, masks=masks)
        for length, end in zip(lengths, itertools.cycle(ENDS), strict=False)
    ]


def _episode(
    module: Any,
    length: int,
    end: str,
    random: np.random.Generator,
    *,
    scale: float,
    masks: Callable[[int], np.ndarray[Any, Any] | None],
) -> SingleAgentEpisode:
    space = module.observation_space
    obs: np.ndarray[Any, Any]
    if isinstance(space, gym.spaces.Box):
        obs = random.normal(size=(length + 1, *space.shape)).astype(np.float32)
    else:
        obs = random.integers(space.n, size=length + 1)
    with torch.no_grad():
        out = module.forward_train({Columns.OBS: torch.from_numpy(obs[:-1])})
    inputs = out[Columns.ACTION_DIST_INPUTS].numpy()
    inputs = (inputs + 0.4 * random.normal(size=inputs.shape)).astype(np.float32)
    allowed = masks(length)
    if allowed is not None:
        inputs = np.where(allowed, inputs, np.float32(MASKED))
    old = module.get_exploration_action_dist_cls().from_logits(torch.from_numpy(inputs))
    torch.manual_seed(int(random.integers(2**31)))
    actions = old.sample()
    return SingleAgentEpisode(
        observation_space=space,
        action_space=module.action_space,
        observations=list(obs),
        actions=unstack(tree.map_structure(lambda leaf: leaf.numpy(), actions)),
        rewards=[scale * float(x) for x in random.normal(size=length)],
        infos=[{} for _ in range(length + 1)],
        extra_model_outputs={
            Columns.ACTION_DIST_INPUTS: list(inputs),
            Columns.ACTION_LOGP: list(old.logp(actions).numpy()),
            "weights_seq_no": [float(random.integers(3))] * length,
            **({} if allowed is None else {COLUMN: list(allowed)}),
        },
        terminated=end in ("terminated", "both"),
        truncated=end in ("truncated", "both"),
        len_lookback_buffer=0,
    ).to_numpy()


def update(
    learner: Any, chunks: list[Any], settings: Settings, *, seed: int = 11
) -> dict[str, Any]:
    """One update, its minibatches in the order of RLlib's generator with this seed; the results."""
    np.random.seed(seed)
    if isinstance(learner, ExactPPOTorchLearner):
        learner.minibatch_generator = np.random.RandomState(seed)
    stats = learner.update(
        episodes=copy.deepcopy(chunks),
        timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 100},
        num_epochs=settings.num_epochs,
        minibatch_size=settings.minibatch_size,
        shuffle_batch_per_epoch=settings.shuffle,
        num_total_minibatches=settings.minibatches,
    )
    return flat(stats)


def flat(stats: Any, prefix: str = "") -> dict[str, Any]:
    """Results as plain numbers, by slash-separated name."""
    found: dict[str, Any] = {}
    for key, value in stats.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found.update(flat(value, f"{name}/"))
        else:
            found[name] = value.peek() if hasattr(value, "peek") else value
    return found


def weights(learner: Any) -> dict[str, np.ndarray]:
    module = learner.module[MODULE_ID].unwrapped()
    return {name: value.cpu().numpy().copy() for name, value in module.state_dict().items()}


def moments(learner: Any) -> dict[str, dict[str, np.ndarray]]:
    """What the optimizer holds for each parameter, by the parameter's name."""
    module = learner.module[MODULE_ID].unwrapped()
    (optimizer,) = learner._named_optimizers.values()
    return {
        name: {key: value.cpu().numpy().copy() for key, value in optimizer.state[parameter].items()}
        for name, parameter in module.named_parameters()
    }
