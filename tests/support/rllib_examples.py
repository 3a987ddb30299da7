"""RLlib's programs in Ray's own wheel (`ray/rllib/examples`) that train one agent with PPO, and
what raytrain makes of each: the table in docs/guide/migration.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """`path`: below `ray/rllib/examples`. `sampling`, `update`: empty for raytrain's fast ways,
    else a part of the reason why RLlib's own are used. `exact`: whether it ends as if it had not
    been killed; else `why`. `iterations`: that the test trains."""

    path: str
    sampling: str = ""
    update: str = ""
    exact: bool = True
    why: str = ""
    arguments: tuple[str, ...] = ()
    iterations: int = 2

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2].removesuffix(".py")


_CONNECTORS = "env-to-module connector pipeline"
_RENDERS = "the callback EnvRenderCallback"
_RECURRENT = "the module is recurrent"

EXAMPLES = [
    Example("connectors/mean_std_filtering.py"),
    Example("connectors/flatten_observations_dict_space.py"),
    Example(
        "connectors/frame_stacking.py",
        sampling=_CONNECTORS,
        update="the learner's connectors are not RLlib's own",
    ),
    Example("connectors/prev_actions_prev_rewards.py", sampling=_CONNECTORS, update=_RECURRENT),
    Example(
        "connectors/single_agent_observation_preprocessor.py",
        sampling=_CONNECTORS,
        update=_RECURRENT,
    ),
    Example(
        "envs/custom_gym_env.py",
        # A reset without a seed seeds Python's generator from the system's entropy.
        exact=False,
        why="the environment itself is not deterministic",
    ),
    Example("envs/custom_env_render_method.py", sampling=_RENDERS),
    Example("envs/env_rendering_and_recording.py", sampling=_RENDERS),
    Example("envs/env_w_protobuf_observations.py", sampling=_CONNECTORS),
    Example("envs/async_gym_env_vectorization.py"),
    Example("learners/ppo_with_custom_loss_fn.py"),
    Example(
        "learners/ppo_with_torch_lr_schedulers.py",
        # Its own `stop` has no iterations, which are of 4000 steps. Evaluation needs a third CPU.
        arguments=("--stop-timesteps=7000", "--num-cpus=3"),
    ),
    Example("learners/separate_vf_lr_and_optimizer.py", update="there are 2 optimizers"),
    Example(
        "rl_modules/action_masking_rl_module.py",
        sampling="Dict",
        update="Dict",
        # Its observations are drawn from their space, which no seed reaches.
        exact=False,
        why="the environment itself is not deterministic",
        # For its evaluation.
        arguments=("--num-cpus=3",),
    ),
    Example("rl_modules/custom_cnn_rl_module.py"),
    Example("rl_modules/custom_lstm_rl_module.py", sampling="stateful", update=_RECURRENT),
    Example(
        "rl_modules/migrate_modelv2_to_new_api_stack_by_config.py",
        sampling="stateful",
        update=_RECURRENT,
    ),
]
