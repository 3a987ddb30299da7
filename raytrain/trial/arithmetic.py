"""What computes a trial, as its manifests hold it, and what has changed since one was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raytrain.arithmetic.fingerprint import comparable
from raytrain.arithmetic.machine import other_arithmetic
from raytrain.arithmetic.settings import ROLES, ArithmeticSettings
from raytrain.checkpoint import ExperimentFile
from raytrain.config import ExperimentConfig

LEARNER, ENV_RUNNER, EVALUATION_RUNNER = "learner", "env_runner", "evaluation_runner"

_SETTINGS = "settings"
_NAMES = {
    LEARNER: "the learner's machine",
    ENV_RUNNER: "the env runners' machine",
    EVALUATION_RUNNER: "the evaluation runners' machine",
}


def settings_of(experiment: ExperimentFile, config: ExperimentConfig) -> ArithmeticSettings | None:
    """The settings of a trial with this config; None in an experiment that has none."""
    if experiment.arithmetic is None:
        return None
    settings = ArithmeticSettings.read(experiment.arithmetic[_SETTINGS])
    threads = config.debugging.threads
    return settings if threads is None else replace(settings, threads=dict.fromkeys(ROLES, threads))


def record(
    settings: ArithmeticSettings | None, computed_by: Mapping[str, tuple[str, Mapping[str, str]]]
) -> dict[str, Any]:
    """The entry of a manifest. `computed_by`: fingerprint and machine by role."""
    roles = {
        role: {"fingerprint": fingerprint, "machine": dict(machine)}
        for role, (fingerprint, machine) in computed_by.items()
    }
    return {**({} if settings is None else {_SETTINGS: settings.to_dict()}), **roles}


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs between the settings of two such entries; None if nothing is known to."""
    old, new = before.get(_SETTINGS), now.get(_SETTINGS)
    if old is None or new is None:
        return None
    if old["threads"] != new["threads"]:
        was, is_now = (_threads_text(entry["threads"]) for entry in (old, new))
        return f"the threads of arithmetic changed from {was} to {is_now}"
    if old["portable"] != new["portable"]:
        return f"debugging.portable changed from {old['portable']} to {new['portable']}"
    if old["hash_seed"] != new["hash_seed"]:
        return "the order of hashes changed"
    return None


def other_machines(
    before: Mapping[str, Any], now: Mapping[str, Any], *, local: frozenset[str]
) -> tuple[str, str] | None:
    """The role that computes differently, and a sentence about it; None if none does. `local`: the
    roles that the trial's own process has."""
    for role, name in _NAMES.items():
        old, new = before.get(role), now.get(role)
        if not old or not new or old["fingerprint"] == new["fingerprint"]:
            continue
        if comparable(old["fingerprint"], new["fingerprint"]):
            what = "this machine" if role in local else name
            return role, other_arithmetic(what, old["machine"], new["machine"])
    return None


def _threads_text(threads: Mapping[str, int]) -> str:
    if len(set(threads.values())) == 1:
        return str(threads["trial"])
    return ", ".join(f"{number} ({role})" for role, number in threads.items())
