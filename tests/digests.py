"""Digests of short runs of every kind, to prove that a change altered no number.

    python tests/digests.py before.json               # at the commit before
    python tests/digests.py after.json before.json    # after it; exit code 1 if any differs

Equal digests are to be expected on one machine alone.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

LSTM = {"model_config": {"use_lstm": True, "lstm_cell_size": 32, "max_seq_len": 8}}
RUNS: dict[str, dict[str, Any]] = {
    **{f"cartpole-{n}-runners": {"env_runners": {"num_env_runners": n}} for n in (0, 1, 2)},
    "pendulum": {"environment": {"env": "Pendulum-v1"}, "training": {"num_epochs": 3}},
    "lstm": {"rl_module": LSTM},
    "mean-std-filter": {"env_runners": {"observation_filter": "MeanStdFilter"}},
    "kl": {"training": {"use_kl_loss": True, "kl_coeff": 0.3, "kl_target": 0.002}},
    "schedules": {
        "training": {
            "lr": [[0, 1e-3], [3000, 1e-5]],
            "entropy_coeff": [[0, 0.02], [3000, 0.0]],
        }
    },
    "own-keys": {
        "training": {
            "clip_param": {"linear": [0.3, 0.1]},
            "clip_range_vf": 0.2,
            "normalize_advantages": "minibatch",
            "target_kl": 0.01,
            "adam_epsilon": 1e-5,
            "weight_decay": 0.001,
        },
        "stop": {"timesteps": 3072},
    },
    "2-learners": {"learners": {"num_learners": 2}},
    "curriculum": {
        "curriculum": [
            {"name": "short", "until": {"timesteps": 1000}, "training": {"lr": 1e-4}},
            {"name": "long"},
        ]
    },
    "grid-of-4": {
        "training": {"lr": {"grid_search": [1e-4, 1e-3]}, "gamma": {"grid_search": [0.9, 0.99]}},
        "tune": {"max_concurrent_trials": 2},
    },
}


def config_of(name: str, directory: Path, changes: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": name,
        "storage_path": str(directory),
        "seed": 7,
        "environment": {"env": "CartPole-v1"},
        "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 4},
        "training": {
            "train_batch_size_per_learner": 512,
            "minibatch_size": 128,
            "num_epochs": 2,
        },
        "rl_module": {"model_config": {"fcnet_hiddens": [32, 32]}},
        "stop": {"iterations": 6},
        "checkpoint": {"checkpoint_frequency": 2, "num_to_keep": 2},
    }
    for key, value in changes.items():
        known = config.get(key)
        is_section = isinstance(known, dict) and isinstance(value, dict)
        config[key] = {**(known or {}), **value} if is_section else value
    return config


def train(config: dict[str, Any], directory: Path, *arguments: str) -> str:
    """The digest of what each trial recorded and ended with."""
    file = directory / f"{config['name']}.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "raytrain", "train", str(file), *arguments]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    content = []
    for trial in sorted((directory / config["name"]).glob("trial_*")):
        lines = (trial / "result.json").read_text().splitlines()
        content.append([json.loads(line)["weights_sha256"] for line in lines])
        content.append([_mean_return(json.loads(line)) for line in lines])
        manifest = json.loads((trial / "final" / "manifest.json").read_text())
        manifest = manifest.get("manifest", manifest)
        content.append([manifest["weights_sha256"], manifest["episodes"], manifest["timesteps"]])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _mean_return(row: dict[str, Any]) -> float | None:
    value: float | None = row["env_runners"].get("episode_return_mean")
    return value


def main(out: str, before: str | None = None) -> int:
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        found = {}
        for name, changes in RUNS.items():
            found[name] = train(config_of(name, directory, changes), directory)
            print(name, found[name][:16], flush=True)
        fork = config_of("fork", directory, {"training": {"lr": 1e-5}, "stop": {"iterations": 9}})
        origin = str(directory / "cartpole-0-runners" / "trial_00000" / "final")
        found["fork"] = train(fork, directory, "--from", origin)
        print("fork", found["fork"][:16])
    Path(out).write_text(json.dumps(found, indent=2) + "\n")
    if before is None:
        return 0
    known = json.loads(Path(before).read_text())
    differing = [name for name in known if found.get(name) != known[name]]
    print("differ:", ", ".join(differing) or "none")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
