"""What runs in the processes that are measured, beside `raytrain train`.

    python programs.py stock CONFIG          stock RLlib PPO: `algo.train()` in this process
    python programs.py tune CONFIG           the same under stock Tune, with Tune's checkpoints;
                                             given again, it restores the experiment
    python programs.py timed CONFIG [slow]   the same with the seconds of each save in `saves.json`,
                                             to the disk or to the store `slow://`
    python programs.py sb3 CONFIG            Stable-Baselines3 PPO
    python programs.py maskable CONFIG       MaskablePPO of sb3-contrib
    python programs.py raytrain CONFIG       `raytrain train` that knows the store `slow://`
    python programs.py arithmetic CONFIG     nothing but env steps and matrix products

CONFIG is a YAML file of raytrain. Each appends its results to a `result.json`.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import pkgutil
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import yaml

STEPS = "num_env_steps_sampled_lifetime"
SAVES = "saves.json"


def main() -> None:
    which, config = sys.argv[1], Path(sys.argv[2])
    extra = sys.argv[3:]
    {
        "stock": stock,
        "tune": tune,
        "timed": timed,
        "sb3": stable_baselines3,
        "maskable": maskable,
        "raytrain": raytrain_cli,
        "arithmetic": arithmetic,
    }[which](config, *extra)


def stock(path: Path) -> None:
    from raytrain.config import load_config, to_algorithm_config

    config = load_config(path)
    quiet()
    algorithm = to_algorithm_config(config).build_algo()
    with rows(path) as out:
        for _ in range(config.stop.iterations or 1):
            result = algorithm.train()
            write(
                out,
                {
                    STEPS: int(result[STEPS]),
                    "episode_return_mean": float(
                        result["env_runners"].get("episode_return_mean", "nan")
                    ),
                },
            )
    algorithm.stop()


def tune(path: Path) -> None:
    from ray.tune import Tuner

    from raytrain.config import load_config

    config = load_config(path, check_env=False)
    quiet()
    experiment = Path(config.storage_path) / "stock"
    if Tuner.can_restore(experiment):
        Tuner.restore(str(experiment), "PPO", resume_errored=True).fit()
    else:
        tuner("PPO", config, config.storage_path).fit()


def timed(path: Path, store: str = "") -> None:
    from ray.rllib.algorithms import ppo

    from raytrain.config import load_config

    config = load_config(path, check_env=False)
    place, file_system = config.storage_path, None
    if store == "slow":
        import slow_store

        place = str(slow_store.local_path(config.storage_path))
        file_system = slow_store.arrow_file_system()
    saves = path.parent / SAVES

    class PPO(ppo.PPO):
        """Its `save` writes the checkpoint and takes it to storage, before it trains on."""

        def save(self, *args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            saved = super().save(*args, **kwargs)
            with saves.open("a") as out:
                write(out, {"seconds": time.perf_counter() - began})
            return saved

    quiet()
    tuner(PPO, config, place, file_system).fit()


def tuner(trainable: Any, config: Any, place: str, file_system: Any = None) -> Any:
    from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner

    from raytrain.config import to_algorithm_config

    return Tuner(
        trainable,
        param_space=to_algorithm_config(config).to_dict(),
        tune_config=TuneConfig(num_samples=config.tune.num_samples),
        run_config=RunConfig(
            name="stock",
            storage_path=place,
            storage_filesystem=file_system,
            stop={"training_iteration": config.stop.iterations},
            checkpoint_config=CheckpointConfig(
                checkpoint_frequency=config.checkpoint.checkpoint_frequency,
                num_to_keep=config.checkpoint.num_to_keep,
            ),
            failure_config=FailureConfig(max_failures=config.failure.max_failures),
            verbose=0,
        ),
    )


def raytrain_cli(path: Path) -> None:
    import slow_store

    from raytrain.cli import main as cli

    slow_store.register()
    sys.argv = ["raytrain", "train", str(path)]
    cli()


def stable_baselines3(path: Path) -> None:
    from stable_baselines3 import PPO

    learn(PPO, path)


def maskable(path: Path) -> None:
    from sb3_contrib import MaskablePPO

    learn(MaskablePPO, path)


def learn(kind: Any, path: Path) -> None:
    """Train a PPO of Stable-Baselines3."""
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.set_num_threads(1)
    config = yaml.safe_load(path.read_text())
    values, envs = config["training"], config["env_runners"]["num_envs_per_env_runner"]
    layers = config["rl_module"]["model_config"]["fcnet_hiddens"]
    batch = values["train_batch_size_per_learner"]

    class Rows(BaseCallback):
        """A row when an iteration has learned: at the start of the next rollout, and at the end."""

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.num_timesteps:
                self._write()

        def _on_training_end(self) -> None:
            self._write()

        def _write(self) -> None:
            # RLlib's mean is of the episodes that ended in the iteration, and so is this one.
            ended: Any = self.model.ep_info_buffer
            mean = sum(episode["r"] for episode in ended) / max(1, len(ended))
            ended.clear()
            write(out, {STEPS: self.num_timesteps, "episode_return_mean": mean})

    made: Any = config["environment"]["env"]
    if ":" in made:
        sys.path.insert(0, str(path.parent))
        made = pkgutil.resolve_name(made)
    model = kind(
        "MlpPolicy",
        make_vec_env(made, envs, seed=config["seed"], vec_env_cls=DummyVecEnv),
        learning_rate=values["lr"],
        n_steps=batch // envs,
        batch_size=values["minibatch_size"],
        n_epochs=values["num_epochs"],
        gamma=values["gamma"],
        gae_lambda=values["lambda_"],
        clip_range=values["clip_param"],
        ent_coef=values["entropy_coeff"],
        vf_coef=values["vf_loss_coeff"],
        max_grad_norm=values["grad_clip"],
        policy_kwargs={
            "net_arch": {"pi": layers, "vf": layers},
            "activation_fn": torch.nn.Tanh,
        },
        device="cpu",
        seed=config["seed"],
    )
    with rows(path) as out:
        model.learn(batch * config["stop"]["iterations"], callback=Rows())


def arithmetic(path: Path, most_minibatches: str = "0") -> None:
    """Rows of `env_s` and `matmul_s`, seconds of one iteration's env steps and matrix products.

    The products are those of separate policy and value networks, each a chain of dense layers: the
    policy once a vector step, the value network once over the batch, then for each minibatch
    both forward, and backward to the weights of all and the inputs of all but the first layer.
    Activations, losses, the optimizer and the sampling of actions are not among them.
    """
    import gymnasium as gym
    import numpy as np
    import torch

    torch.set_num_threads(1)
    config = yaml.safe_load(path.read_text())
    values, envs = config["training"], config["env_runners"]["num_envs_per_env_runner"]
    layers = config["rl_module"]["model_config"]["fcnet_hiddens"]
    batch, rows_of = values["train_batch_size_per_learner"], values["minibatch_size"]
    vector = gym.vector.SyncVectorEnv(
        [lambda: gym.make(config["environment"]["env"]) for _ in range(envs)]
    )
    inputs = int(np.prod(vector.single_observation_space.shape))
    space = vector.single_action_space
    outputs = int(space.n) if isinstance(space, gym.spaces.Discrete) else int(np.prod(space.shape))
    policy, value = Chain(inputs, layers, outputs), Chain(inputs, layers, 1)
    vector.reset(seed=0)
    steps = -(-batch // envs)
    minibatches = values["num_epochs"] * -(-batch // rows_of)
    tried = min(minibatches, int(most_minibatches) or minibatches)
    with rows(path) as out, torch.no_grad():
        for _ in range(config["stop"]["iterations"]):
            actions = [vector.action_space.sample() for _ in range(steps)]
            began, cpu = time.perf_counter(), time.process_time()
            for action in actions:
                vector.step(action)
            env_s, env_cpu_s = time.perf_counter() - began, time.process_time() - cpu
            began, cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                policy.forward(envs)
            value.forward(batch)
            for _ in range(tried):
                policy.forward_backward(rows_of)
                value.forward_backward(rows_of)
            scale = minibatches / tried
            matmul_s = scale * (time.perf_counter() - began)
            matmul_cpu_s = scale * (time.process_time() - cpu)
            write(
                out,
                {
                    STEPS: batch,
                    "env_s": env_s,
                    "matmul_s": matmul_s,
                    "env_cpu_s": env_cpu_s,
                    "matmul_cpu_s": matmul_cpu_s,
                },
            )


class Chain:
    """The matrix products of a chain of dense layers, and nothing between them."""

    def __init__(self, inputs: int, hiddens: list[int], outputs: int) -> None:
        import torch

        sizes = [inputs, *hiddens, outputs]
        self._sizes = sizes
        self._weights = [torch.randn(b, a) for a, b in itertools.pairwise(sizes)]
        self._biases = [torch.randn(b) for b in sizes[1:]]
        self._rows: dict[int, list[Any]] = {}

    def forward(self, rows: int) -> None:
        from torch.nn.functional import linear

        at = self._buffers(rows)
        for index, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            linear(at[index], weight, bias)

    def forward_backward(self, rows: int) -> None:
        self.forward(rows)
        at = self._buffers(rows)
        for index in reversed(range(len(self._weights))):
            gradient = at[index + 1]
            gradient.t().mm(at[index])
            if index:
                gradient.mm(self._weights[index])

    def _buffers(self, rows: int) -> list[Any]:
        import torch

        if rows not in self._rows:
            self._rows[rows] = [torch.randn(rows, size) for size in self._sizes]
        return self._rows[rows]


def rows(path: Path) -> TextIO:
    return (path.parent / "result.json").open("a")


def write(out: TextIO, row: dict[str, Any]) -> None:
    out.write(json.dumps(row) + "\n")
    out.flush()


def quiet() -> None:
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        # A cluster that is there has what it has.
        num_cpus=None if "RAY_ADDRESS" in os.environ else max(8, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


if __name__ == "__main__":
    main()
