"""The hyperparameters of all trainers, in the shape of raytrain's YAML; each reads
the same file."""

from __future__ import annotations

from typing import Any

ENVS = 8
BATCH = 2048
EPOCHS = 10


def ppo(
    env: str,
    *,
    hiddens: tuple[int, ...] = (64, 64),
    minibatch: int = 64,
    batch: int = BATCH,
    epochs: int = EPOCHS,
    envs: int = ENVS,
    iterations: int,
    seed: int = 0,
    continuous: bool = False,
    **sections: Any,
) -> dict[str, Any]:
    """PPO with Stable-Baselines3's defaults, in one process; `sections` are laid over it.

    `batch`: steps of all environments in an iteration. Log-std is a parameter of its own, as in
    Stable-Baselines3, where actions are `continuous`.
    """
    model: dict[str, Any] = {"fcnet_hiddens": list(hiddens), "fcnet_activation": "tanh"}
    if continuous:
        model["free_log_std"] = True
    settings: dict[str, Any] = {
        "name": "bench",
        "seed": seed,
        "environment": {"env": env},
        "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": envs},
        "training": {
            "lr": 3e-4,
            "gamma": 0.99,
            "lambda_": 0.95,
            "train_batch_size_per_learner": batch,
            "minibatch_size": minibatch,
            "num_epochs": epochs,
            "clip_param": 0.2,
            "vf_clip_param": float("inf"),
            "vf_loss_coeff": 0.5,
            "entropy_coeff": 0.0,
            "use_kl_loss": False,
            "grad_clip": 0.5,
            "grad_clip_by": "global_norm",
        },
        "rl_module": {"model_config": model},
        "stop": {"iterations": iterations},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return settings
