"""Whether a config continues a run, and which fields it changes.

_MAY_DIFFER           fields that may differ freely
_GIVE_UP_EXACTNESS    may differ, and exactness ends
all others            may not differ; the config's digest covers them

Two values are the same if their JSON with sorted keys is the same: `1`, `1.0` and `true` are three
values, as an environment can distinguish them; a tuple is a list; `.nan` is `.nan`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raytrain.config.loading import config_from_dict
from raytrain.config.schema import ExperimentConfig
from raytrain.config.search import space_kind

_MAY_DIFFER = frozenset(
    {
        "stop",
        "checkpoint",
        "failure",
        "preemption",
        "fault_tolerance",
        "resources",
        # The samples of an env group do not depend on the actor that hosts it.
        "env_runners.min_actors",
        "env_runners.max_actors",
        # Name and place of the directory: an experiment that was moved is the same run.
        "name",
        "storage_path",
        "import_path",
        "tune.max_concurrent_trials",
        # Settings of arithmetic: the trial compares those of its checkpoint (`arithmetic`).
        "debugging.threads",
        "debugging.portable",
        # The same bits, only faster.
        "learners.cuda_graphs",
        "debugging.log_level",
    }
)
_GIVE_UP_EXACTNESS = frozenset(
    {
        "env_runners.num_env_runners",
        "env_runners.num_envs_per_env_runner",
        "learners.num_learners",
    }
)
_FORMER_DEFAULTS = {"learners.compile_updates": False}
"""Keys of earlier versions; the digest of every run contains them."""

_LATER_DEFAULTS = {
    "environment.action_mask": None,
    "training.adam_epsilon": 1e-8,
    "training.weight_decay": 0.0,
    "training.target_kl": None,
    "training.normalize_advantages": "batch",
    "training.clip_range_vf": None,
}
"""Keys that earlier versions lacked, with the values by which they trained: a digest contains these
keys only with other values."""

_PLAIN_KEY = re.compile(r'[^."]+')


@dataclass(frozen=True)
class Difference:
    """A dotted field (a key that contains dots is quoted) and its two values; None where a config
    has no such key."""

    field: str
    old: Any
    new: Any


def differences(
    old: ExperimentConfig | Mapping[str, Any], new: ExperimentConfig | Mapping[str, Any]
) -> list[Difference]:
    """Every field that differs, sorted by name.

    A stored dictionary is first completed with the present defaults, so a field that a newer
    raytrain added is no difference. Lists and search spaces are compared as a whole.
    """
    before, after = dict(_leaves(_complete(old))), dict(_leaves(_complete(new)))
    return [
        Difference(field, before.get(field), after.get(field))
        for field in sorted(before.keys() | after.keys())
        if (field in before) != (field in after)
        or not same_value(before.get(field), after.get(field))
    ]


def same_value(one: Any, other: Any) -> bool:
    """Whether two values of a config are the same; see the module's docstring."""
    return _text(one) == _text(other)


def allowed_on_continue(field: str) -> bool:
    """Whether a continued run may differ in this dotted field and stay exact."""
    return any(field == allowed or field.startswith(f"{allowed}.") for allowed in _MAY_DIFFER)


def gives_up_exactness(field: str) -> bool:
    """Whether a run that differs in this dotted field continues, but not exactly."""
    return field in _GIVE_UP_EXACTNESS


def config_digest(config: ExperimentConfig | Mapping[str, Any]) -> str:
    """SHA-256 in hex of every field that may not differ: of what defines the run.

    The bytes are JSON of {dotted field: value}, keys sorted, without spaces, ASCII only; without
    `_LATER_DEFAULTS`.
    """
    return _digest(config, allowed_on_continue, gives_up_exactness)


def has_digest(config: ExperimentConfig | Mapping[str, Any], digest: str) -> bool:
    """Whether a manifest with `digest` belongs to a run that this config continues. Digests of
    earlier versions contain the fields that end exactness."""
    return digest in (config_digest(config), _digest(config, allowed_on_continue))


def _digest(config: ExperimentConfig | Mapping[str, Any], *left_out: Callable[[str], bool]) -> str:
    leaves = _leaves(_complete(config))
    defining = {
        field: value for field, value in leaves if not any(rule(field) for rule in left_out)
    }
    for field, value in _LATER_DEFAULTS.items():
        if field in defining and same_value(defining[field], value):
            del defining[field]
    defining.update(_FORMER_DEFAULTS)
    return hashlib.sha256(_text(defining).encode("ascii")).hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _complete(config: ExperimentConfig | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(config, ExperimentConfig):
        config = config_from_dict(config)
    return config.to_dict()


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        field = prefix + (key if _PLAIN_KEY.fullmatch(key) else json.dumps(key))
        if isinstance(value, Mapping) and value and space_kind(value) is None:
            yield from _leaves(value, f"{field}.")
        else:
            yield field, value
