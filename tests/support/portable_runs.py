"""Short runs of several networks in one process, and the digests of the weights that they end with.

    python -m support.portable_runs [NAME ...]      prints {"NAME": "weights_sha256", ...}

It computes as its environment variables say, `raytrain.arithmetic.portable.VARIABLES` for example.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from support import tiny_ppo

_CNN = {"conv_filters": [[8, 3, 2], [16, 3, 2], [16, 3, 1]], "fcnet_hiddens": [32]}
_LSTM = {"use_lstm": True, "lstm_cell_size": 32, "max_seq_len": 8, "fcnet_hiddens": [32]}
RUNS: dict[str, dict[str, Any]] = {
    "mlp": {"rl_module": {"model_config": {"fcnet_hiddens": [64, 64]}}},
    "wide-mlp": {"rl_module": {"model_config": {"fcnet_hiddens": [256, 256]}}},
    "pendulum": {
        "environment": {"env": "Pendulum-v1"},
        "env_runners": {"observation_filter": "MeanStdFilter"},
        "rl_module": {"model_config": {"fcnet_hiddens": [64, 64], "fcnet_activation": "relu"}},
    },
    "cnn": {
        "environment": {"env": "spot:Spot"},
        "rl_module": {"model_config": _CNN},
    },
    "lstm": {"rl_module": {"model_config": _LSTM}},
}


def digest(name: str, iterations: int = 3) -> str:
    training = {"train_batch_size_per_learner": 256, "minibatch_size": 64, "grad_clip": 0.5}
    with tiny_ppo.built(training=training, **RUNS[name]) as algorithm:
        return tiny_ppo.iterate(algorithm, iterations)[-1].weights_sha256


if __name__ == "__main__":
    print(json.dumps({name: digest(name) for name in sys.argv[1:] or RUNS}))
