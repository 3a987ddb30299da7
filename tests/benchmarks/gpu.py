"""PPO with the learner on a GPU: an update alone, and whole runs, against stock RLlib on
the same card.

An update is RLlib's `learner.update(episodes=...)` in this process, 10 epochs over a batch of 8 x
256 steps; a rate counts every row of every minibatch. Runs are as in `throughput`, but not held on
one core."""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import settings
from measuring import Options, Table, interleave, ratios, say, spread, whole
from runs import program, raytrain_command, scratch, watch, write_config

TESTS = Path(__file__).parents[1]
ROUNDS = 3
STEPS, PIECES, EPOCHS = 256, 8, 10


@dataclass(frozen=True, eq=False)
class Network:
    name: str
    env: str
    minibatch: int
    hiddens: tuple[int, ...] = (64, 64)


NETWORKS = (
    Network("dense [64, 64], minibatch 64", "CartPole-v1", 64),
    Network("dense [256, 256], minibatch 512", "CartPole-v1", 512, (256, 256)),
    Network("84x84x4 picture, minibatch 256", "chase:Chase", 256),
)


def measure(options: Options) -> list[Table]:
    import torch

    sys.path[:0] = [str(TESTS), str(TESTS / "envs")]
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        sys.exit("gpu: Torch sees no CUDA device on this machine")
    card = f"{torch.cuda.get_device_name()}, Torch {torch.__version__}"
    rounds = options.rounds_or(ROUNDS)
    updates = tuple(row for network in NETWORKS for row in update_rows(network, rounds))
    found = [Table(f"Updates alone, {card}", updates)]
    # What was measured so far is not lost if time runs out.
    say(str(found))
    networks = NETWORKS[1:]
    rows = tuple(row for network in networks for row in run_rows(network, options))
    return [*found, Table(f"Whole runs, the learner on the GPU, {card}", rows)]


# -- updates ---------------------------------------------------------------------------------------


def learners() -> dict[str, tuple[bool, str, dict[str, Any]]]:
    """Whether it is raytrain's, its device, and what it is told."""
    return {
        "stock RLlib": (False, "cuda", {}),
        "raytrain, no graphs": (True, "cuda", {"cuda_graphs": False}),
        "raytrain": (True, "cuda", {}),
        "raytrain, not deterministic": (True, "cuda", {"deterministic": False}),
        "raytrain on the CPU": (True, "cpu", {}),
    }


def update_rows(network: Network, rounds: int) -> list[dict[str, Any]]:
    from support import learner_pairs

    rates: dict[str, list[float]] = {}
    sampler = made(network, own=False)
    chunks = learner_pairs.episodes(sampler, lengths=(STEPS,) * PIECES)
    for name, (own, device, told) in learners().items():
        if device == "cpu" and "picture" in network.name:
            continue  # Minutes each.
        # Whether kernels are deterministic is a matter of the process, so each has its turn alone.
        update = prepared(network, chunks, own, device, told)
        update()
        rates[name] = [update() for _ in range(rounds)]
        say(f"{network.name}, {name}: {statistics.median(rates[name]):.0f} rows/s")
    return [
        {
            "network": network.name,
            "learner": name,
            "rows/s": whole(found),
            "against stock": spread(ratios(found, rates["stock RLlib"])),
        }
        for name, found in rates.items()
    ]


def made(network: Network, own: bool, **arguments: Any) -> Any:
    """raytrain's own learner, or RLlib's."""
    import gymnasium as gym
    from chase import Chase
    from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
    from support import learner_pairs

    from raytrain.ppo.learner import ExactPPOTorchLearner

    env = Chase() if network.env.startswith("chase") else gym.make(network.env)
    return learner_pairs.build(
        ExactPPOTorchLearner if own else PPOTorchLearner,
        env.action_space,
        observations=env.observation_space,
        model={"fcnet_hiddens": list(network.hiddens)},
        training={"grad_clip": 0.5, "lr": 3e-4},
        minibatch_size=network.minibatch,
        **arguments,
    )


def prepared(
    network: Network, chunks: list[Any], own: bool, device: str, told: dict[str, Any]
) -> Callable[[], float]:
    """An update that ends when the device is done; it returns rows of minibatches a second."""
    import torch
    from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

    torch.use_deterministic_algorithms(False)
    on_card = {"num_gpus_per_learner": int(device == "cuda"), "learner_config_dict": told}
    learner = made(network, own, learner=on_card)

    def update() -> float:
        # An update may change the episodes that it is given.
        copies = copy.deepcopy(chunks)
        started = time.perf_counter()
        learner.update(
            episodes=copies,
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 100},
            num_epochs=EPOCHS,
            minibatch_size=network.minibatch,
            shuffle_batch_per_epoch=True,
        )
        if device == "cuda":
            torch.cuda.synchronize()
        return EPOCHS * STEPS * PIECES / (time.perf_counter() - started)

    return update


# -- runs ------------------------------------------------------------------------------------------


def run_rows(network: Network, options: Options) -> list[dict[str, Any]]:
    config = settings.ppo(
        network.env,
        iterations=6,
        batch=2048,
        hiddens=network.hiddens,
        minibatch=network.minibatch,
        learners={"num_gpus_per_learner": 1},
    )

    def run(stock: bool) -> float:
        with scratch() as place:
            values = {**config, "stop": {"iterations": 4}} if stock else config
            (place / "chase.py").write_bytes((TESTS / "envs" / "chase.py").read_bytes())
            path = write_config(place, values)
            command = program("stock", path) if stock else raytrain_command(path)
            return watch(command, place, gpu=True).steps_per_s()

    rivals = {"raytrain": lambda: run(False), "stock RLlib": lambda: run(True)}
    rates = interleave(rivals, options.rounds_or(2), network.name)
    return [
        {
            "network": network.name,
            "steps/s, raytrain": whole(rates["raytrain"]),
            "steps/s, stock RLlib": whole(rates["stock RLlib"]),
            "raytrain is faster by": spread(ratios(rates["raytrain"], rates["stock RLlib"])),
        }
    ]
