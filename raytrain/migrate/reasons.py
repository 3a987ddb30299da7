"""Settings of `PPOConfig` that raytrain does not take over: why, setting by setting.

`WITHOUT_EFFECT`   the run is the same without the setting, or raytrain does better already: a note
`REFUSED`          the run would be another one: an error
"""

from __future__ import annotations

_LOST_RUNNERS = "raytrain replaces a lost env runner and samples its fragment again, exactly"
_NOT_READ = "RLlib's new API stack does not read it"
_REQUESTS = "an iteration of PPO waits for all of its samples"
_AFTER = "raytrain evaluates after an iteration, so that the result belongs to that iteration"

WITHOUT_EFFECT: dict[str, str] = {
    "restart_failed_env_runners": _LOST_RUNNERS,
    "ignore_env_runner_failures": _LOST_RUNNERS,
    "restart_failed_sub_environments": _LOST_RUNNERS,
    "num_consecutive_env_runner_failures_tolerance": _LOST_RUNNERS,
    "delay_between_env_runner_restarts_s": _LOST_RUNNERS,
    "env_runner_health_probe_timeout_s": _LOST_RUNNERS,
    "env_runner_restore_timeout_s": _LOST_RUNNERS,
    "validate_env_runners_after_construction": _LOST_RUNNERS,
    "evaluation_parallel_to_training": _AFTER,
    "clip_rewards": f"{_NOT_READ}; for Atari, wrap_atari_for_new_api_stack clips",
    "compress_observations": _NOT_READ,
    "preprocessor_pref": _NOT_READ,
    "num_gpus": _NOT_READ,
    "create_env_on_local_worker": _NOT_READ,
    "log_sys_usage": "it changes no number of the run",
    "keep_per_episode_custom_metrics": _NOT_READ,
    "metrics_episode_collection_timeout_s": _NOT_READ,
    "metrics_num_episodes_for_smoothing": (
        "raytrain records each episode; stop and checkpoint have windows of their own"
    ),
    "max_requests_in_flight_per_env_runner": _REQUESTS,
    "max_requests_in_flight_per_learner": _REQUESTS,
    "max_requests_in_flight_per_aggregator_actor": _REQUESTS,
    "num_aggregator_actors_per_learner": "PPO does not use aggregators",
    "use_worker_filter_stats": "raytrain merges the statistics of all env groups exactly",
    "update_worker_filter_stats": "raytrain merges the statistics of all env groups exactly",
    "broadcast_env_runner_states": "raytrain merges the statistics of all env groups exactly",
    "merge_env_runner_states": "raytrain merges the statistics of all env groups exactly",
    "export_native_model_files": "`raytrain export` writes the policy",
    "checkpoint_trainable_policies_only": "there is one policy",
    "extra_python_environs_for_driver": _NOT_READ,
    "extra_python_environs_for_worker": _NOT_READ,
}

_ONE_POLICY = "raytrain trains one policy for one agent; remove it"
_ONLINE = "raytrain samples from the environment and reads or writes no offline data; remove it"
_NEW_STACK = "raytrain uses RLlib's new API stack with PyTorch only; remove it"
_OLD_STACK = "the old API stack is not supported; leave api_stack() out"
_ONE_BATCH = "an iteration of raytrain is one batch of training.train_batch_size_per_learner"
_A_SCHEDULE = "write it as the value itself: [[0, value], [timestep, value], ...]"
_COMPILE = "raytrain has fast updates of its own, and compiled ones round differently; remove it"
_SPACES = "raytrain reads the spaces from the environment; remove it"
_CONNECTORS = "raytrain's array sampler needs RLlib's default connectors; remove it"

REFUSED: dict[str, str] = {
    "policies": _ONE_POLICY,
    "policy_mapping_fn": _ONE_POLICY,
    "policies_to_train": _ONE_POLICY,
    "count_steps_by": _ONE_POLICY,
    "observation_fn": _ONE_POLICY,
    "algorithm_config_overrides_per_module": _ONE_POLICY,
    "_per_module_overrides": _ONE_POLICY,
    "enable_rl_module_and_learner": _OLD_STACK,
    "enable_env_runner_and_connector_v2": _OLD_STACK,
    "model": "it configures the old API stack; use rl_module(model_config=...)",
    "exploration_config": "PPO samples its actions; env_runners(explore=False) turns that off",
    "framework_str": _NEW_STACK,
    "remote_worker_envs": "environments are stepped in the env runner's process; remove it",
    "env_runner_cls": "raytrain has an env runner of its own; use connectors or callbacks",
    "render_env": "RLlib's new API stack has no such setting; `raytrain evaluate --video` records",
    "observation_space": _SPACES,
    "action_space": _SPACES,
    "min_time_s_per_iteration": _ONE_BATCH,
    "min_sample_timesteps_per_iteration": _ONE_BATCH,
    "min_train_timesteps_per_iteration": _ONE_BATCH,
    "lr_schedule": _A_SCHEDULE,
    "entropy_coeff_schedule": _A_SCHEDULE,
    "evaluation_auto_duration_max_env_steps_per_sample": "give evaluation_duration a number",
    "evaluation_auto_duration_min_env_steps_per_sample": "give evaluation_duration a number",
    "custom_evaluation_function": "raytrain evaluates itself, so that it is exact; remove it",
    "add_default_connectors_to_env_to_module_pipeline": _CONNECTORS,
    "add_default_connectors_to_module_to_env_pipeline": _CONNECTORS,
    "add_default_connectors_to_learner_pipeline": _CONNECTORS,
    "episodes_to_numpy": _CONNECTORS,
    "torch_ddp_kwargs": "raytrain sums the gradients of learners itself; remove it",
    "log_gradients": "raytrain's updates do not report gradients; remove it",
    "_torch_grad_scaler_class": "there is no mixed precision; remove it",
    "torch_skip_nan_gradients": "raytrain ends the run at the first number that is not finite",
}

_BY_PREFIX: dict[str, str] = {
    "torch_compile": _COMPILE,
    "input_": _ONLINE,
    "output": _ONLINE,
    "offline": _ONLINE,
    "dataset_": _ONLINE,
    "prelearner": _ONLINE,
    "materialize": _ONLINE,
    "policy_map": _ONE_POLICY,
    "policy_states": _ONE_POLICY,
    "tf_": _NEW_STACK,
    "eager": _NEW_STACK,
    "local_tf": _NEW_STACK,
    "callbacks_on_offline": _ONLINE,
    "callbacks_on_evaluate_offline": _ONLINE,
}


def why_refused(name: str) -> str:
    """Why a setting is not taken over, and what to do."""
    if name in REFUSED:
        return REFUSED[name]
    for prefix, reason in _BY_PREFIX.items():
        if name.startswith(prefix):
            return reason
    return "raytrain has no counterpart; remove it"
