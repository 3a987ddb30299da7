"""The names that other programs have for the keys of the config: RLlib's old API stack, Tune,
Stable-Baselines3 and rl-zoo, CleanRL. For such an unknown key, the message names the key here.

    RENAMED   their name -> the key here
    NOTES     their name -> what is different, or why there is no such key
"""

from __future__ import annotations

_NAMES = {
    "storage_path": ("local_dir", "tensorboard_log"),
    "environment.env": ("env_id",),
    "environment.env_config": ("env_kwargs",),
    "env_runners.num_env_runners": ("num_workers", "num_rollout_workers"),
    "env_runners.num_envs_per_env_runner": ("num_envs_per_worker", "n_envs", "num_envs"),
    "env_runners.observation_filter": ("normalize",),
    "env_runners.gym_env_vectorize_mode": ("remote_worker_envs",),
    "env_runners.num_cpus_per_env_runner": ("num_cpus_per_worker",),
    "env_runners.num_gpus_per_env_runner": ("num_gpus_per_worker",),
    "env_runners.custom_resources_per_env_runner": ("custom_resources_per_worker",),
    "training.lr": ("lr_schedule", "learning_rate", "anneal_lr"),
    "training.lambda_": ("lambda", "gae_lambda"),
    "training.train_batch_size_per_learner": ("train_batch_size", "n_steps", "num_steps"),
    "training.minibatch_size": (
        "sgd_minibatch_size",
        "mini_batch_size_per_learner",
        "batch_size",
        "num_minibatches",
    ),
    "training.num_epochs": ("num_sgd_iter", "n_epochs", "update_epochs"),
    "training.shuffle_batch_per_epoch": ("shuffle_sequences",),
    "training.clip_param": ("clip_range", "clip_coef"),
    "training.clip_range_vf": ("clip_vloss",),
    "training.normalize_advantages": ("normalize_advantage", "norm_adv"),
    "training.vf_loss_coeff": ("vf_coef",),
    "training.entropy_coeff": ("entropy_coeff_schedule", "ent_coef"),
    "training.grad_clip": ("max_grad_norm",),
    "learners.num_learners": ("num_learner_workers",),
    "learners.num_cpus_per_learner": ("num_cpus_per_learner_worker",),
    "learners.num_gpus_per_learner": ("num_gpus", "num_gpus_per_learner_worker", "device"),
    "learners.cuda_graphs": ("compile_updates",),
    "rl_module.module_class": ("custom_model",),
    "rl_module.model_config": ("model", "policy_kwargs"),
    "rl_module.model_config.fcnet_hiddens": ("net_arch",),
    "rl_module.model_config.fcnet_activation": ("activation_fn",),
    "rl_module.model_config.orthogonal_init": ("ortho_init",),
    "evaluation.evaluation_interval": ("eval_freq",),
    "evaluation.evaluation_duration": (
        "evaluation_num_episodes",
        "n_eval_episodes",
        "eval_episodes",
    ),
    "evaluation.evaluation_num_env_runners": ("evaluation_num_workers",),
    "evaluation.evaluation_config.env_config": ("eval_env_kwargs",),
    "fault_tolerance.max_num_env_runner_restarts": ("max_num_worker_restarts",),
    "debugging.log_level": ("verbose",),
    "resources.num_cpus_for_main_process": ("num_cpus_for_driver", "num_cpus_for_local_worker"),
    "stop.timesteps": (
        "timesteps_total",
        "num_env_steps_sampled",
        "num_env_steps_sampled_lifetime",
        "total_timesteps",
        "n_timesteps",
    ),
    "stop.episode_return_mean": (
        "episode_reward_mean",
        "episode_reward",
        "mean_reward",
        "reward",
        "return",
        "reward_threshold",
    ),
    "stop.iterations": ("training_iteration",),
    "stop.time_s": ("time_total_s",),
    "stop.episodes": ("episodes_total",),
    "stop.window": ("metrics_num_episodes_for_smoothing",),
    "checkpoint.checkpoint_frequency": ("checkpoint_freq",),
    "checkpoint.every_timesteps": ("save_freq",),
    "checkpoint.num_to_keep": ("keep_checkpoints_num",),
    "checkpoint.score": ("checkpoint_score_attr", "checkpoint_score_attribute", "metric"),
    "checkpoint.score_order": ("checkpoint_score_order", "mode"),
}
RENAMED = {name: key for key, names in _NAMES.items() for name in names}

_PER_ENVIRONMENT = "it counts the steps of all environments together"
_A_SCHEDULE = (
    "a schedule is written as the value: [[0, x], [timestep, y], ...], or {linear: [x, 0]}"
)
_IN_MINIBATCHES = "`minibatch` standardizes advantages in each minibatch"
_ONLY_PPO = "PPO is the only algorithm"
_LOST_RUNNERS = "a lost env runner is always restarted, with the state of its env group"
_NO_SEARCHERS = "there are grids and random draws only (see `tune` and search spaces)"

NOTES = {
    "n_steps": _PER_ENVIRONMENT,
    "num_steps": _PER_ENVIRONMENT,
    "num_minibatches": "this is the size of a minibatch, not the number of minibatches",
    "lr_schedule": _A_SCHEDULE,
    "entropy_coeff_schedule": _A_SCHEDULE,
    "anneal_lr": _A_SCHEDULE,
    "normalize": "`MeanStdFilter` normalizes observations; for rewards, use a wrapper in the "
    "factory",
    "clip_vloss": "a clip range; the larger of the clipped and the unclipped loss, which CleanRL "
    "takes, has no counterpart",
    "eval_freq": "counted in iterations",
    "metrics_num_episodes_for_smoothing": "and checkpoint.score_window for the score",
    "tensorboard_log": "TensorBoard's files are beside the results",
    "normalize_advantage": _IN_MINIBATCHES,
    "norm_adv": _IN_MINIBATCHES,
    "use_sde": "there is no state-dependent exploration",
    "sde_sample_freq": "there is no state-dependent exploration",
    "policy": "the network is described under rl_module.model_config",
    "env_wrapper": "wrap the environment in its factory (environment.env: module:factory)",
    "frame_stack": "wrap the environment in its factory (environment.env: module:factory)",
    "horizon": "limit an episode in the environment, such as env_config: {max_episode_steps: 500}",
    "framework": "Torch is the only framework",
    "simple_optimizer": "RLlib's new API stack has no such choice",
    "multiagent": "there is one policy only",
    "policies": "there is one policy only",
    "exploration_config": "PPO samples its actions; env_runners.explore turns that off",
    "record_env": "`raytrain evaluate --video` records episodes",
    "render_env": "`raytrain evaluate --video` records episodes",
    "ignore_worker_failures": _LOST_RUNNERS,
    "recreate_failed_workers": _LOST_RUNNERS,
    "run": _ONLY_PPO,
    "algo": _ONLY_PPO,
    "algorithm": _ONLY_PPO,
    "config": "its keys are in the sections `training`, `env_runners`, `learners`, ...",
    "param_space": "write a search space in the place of the value",
    "checkpoint_at_end": "the last checkpoint is always written, as final/",
    "resources_per_trial": "they follow from the sections env_runners, learners and resources",
    "scheduler": _NO_SEARCHERS,
    "search_alg": _NO_SEARCHERS,
}
