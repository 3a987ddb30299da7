"""An env runner actor, in this process."""

from __future__ import annotations

import pytest
import tiny_envs
from support.samplers import config, runner

from raytrain._ray import actors
from raytrain.rollout import env_runner
from raytrain.rollout.env_runner import EnvRunnerActor
from raytrain.rollout.timeout import stall_key


def test_a_call_that_almost_reaches_its_limit_reports_where_it_stalls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reports: list[tuple[str, str]] = []

    def publish(key: str, position: str) -> None:
        reports.append((key, position))
        tiny_envs.RELEASED.set()

    monkeypatch.setattr(actors, "leave_message", publish)
    monkeypatch.setattr(env_runner, "_actor_id", lambda: "me")
    tiny_envs.RELEASED.clear()
    environment = {"env": "tiny_envs:Waiting", "env_config": {"at": 60}}
    actor = runner(EnvRunnerActor, config(environment=environment))
    actor.call(0, "rollout", None, snapshot=False, limit_s=600)
    assert reports == []
    actor.call(0, "rollout", None, snapshot=False, limit_s=1)
    ((key, position),) = reports
    assert key == stall_key("me", 0)
    assert position.startswith("in Waiting.step (tiny_envs.py, line ")
