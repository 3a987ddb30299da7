"""Hangs are noticed, named and ended; a node that is taken away ends its trial in time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError
from support.clusters import until

from raytrain import _ray
from raytrain.cluster import nodes
from raytrain.cluster.adaptive_timeout import AdaptiveTimeout
from raytrain.cluster.nodes import Hung, NodeLost, PeerDied, loss_of, node_is_gone
from raytrain.driver.pending_trials import PendingTrials
from raytrain.driver.trial_watchdog import TrialWatchdog
from raytrain.storage import Location
from raytrain.trial import watchdog
from raytrain.trial.watchdog import LAST_WORDS, Watchdog

pytestmark = pytest.mark.usefixtures("local_ray")


@ray.remote(num_cpus=0)
class Learner:
    """Waits for a peer that never comes."""

    def update(self) -> None:
        time.sleep(600)

    def pid(self) -> int:
        return os.getpid()


@ray.remote(num_cpus=0)
class Stuck:
    """A process whose own work never ends."""

    def work(self, place: str) -> None:
        # Not by `looking`: a worker does not find this module.
        where, limits = Location.of(place), partial(AdaptiveTimeout, 1.5, 0.2)
        found = Watchdog(where, limits, actors=dict, save_kept=lambda: None)
        found.attempt = 7
        found.start()
        with found.phase("update"):
            time.sleep(600)


def looking(
    place: Path,
    actors: dict[str, Any],
    limits: Callable[[], AdaptiveTimeout],
    clock: Callable[[], float] = time.monotonic,
) -> Watchdog:
    where = Location.of(place)
    found = Watchdog(where, limits, actors=lambda: actors, save_kept=lambda: None, clock=clock)
    found.start()
    return found


@pytest.mark.slow
def test_a_collective_whose_peer_is_gone_does_not_hang(tmp_path: Path) -> None:
    one, other = Learner.remote(), Learner.remote()
    ray.get([one.pid.remote(), other.pid.remote()])
    found = looking(
        tmp_path, {"learner 0": one, "learner 1": other}, partial(AdaptiveTimeout, 10, 600)
    )
    with pytest.raises(RayActorError), found.phase("update"):
        waiting = one.update.remote()
        ray.kill(other)
        ray.get(waiting, timeout=600)
    found.close()
    assert isinstance(found.verdict, PeerDied)
    assert str(found.verdict).startswith("learner 1 (node ")
    assert found.explain(RuntimeError("connection reset by peer")) is found.verdict


def test_an_update_that_hangs_is_named(tmp_path: Path) -> None:
    learner = Learner.remote()
    ray.get(learner.pid.remote())
    now = [0.0]
    found = looking(
        tmp_path, {"learner 0": learner}, partial(AdaptiveTimeout, 3, 2.0), clock=lambda: now[0]
    )
    for _ in range(3):
        with found.phase("update"):
            ray.get(learner.pid.remote())
            now[0] += 1.0
    with pytest.raises(RayActorError), found.phase("update"):
        waiting = learner.update.remote()
        now[0] += 2.9
        until(lambda: found._phase and found._phase.asked, 600, lambda: "nobody was asked")
        assert found.verdict is None
        now[0] += 0.2
        ray.get(waiting, timeout=600)
    found.close()
    assert isinstance(found.verdict, Hung)
    address = ray.nodes()[0]["NodeManagerAddress"]
    assert f"no sign of life from learner 0 (node {address})" in str(found.verdict)


def test_a_process_that_is_stuck_ends_itself_and_leaves_word(tmp_path: Path) -> None:
    stuck = Stuck.remote()
    with pytest.raises(RayActorError) as died:
        ray.get(stuck.work.remote(str(tmp_path)), timeout=600)
    assert (tmp_path / LAST_WORDS).exists(), died.value
    words = json.loads((tmp_path / LAST_WORDS).read_text())
    assert (words["attempt"], words["loss"]) == (7, "failure")
    assert "the update has taken" in words["message"]
    assert "the trial's process (pid " in words["message"]


def test_a_long_phase_is_left_alone_while_it_is_within_its_limits(tmp_path: Path) -> None:
    learner = Learner.remote()
    found = looking(tmp_path, {"learner 0": learner}, partial(AdaptiveTimeout, 10, 60))
    with found.phase("update"), found.phase("weights"):
        ray.get(learner.pid.remote())
        time.sleep(3 * watchdog._LOOK_EVERY_S + watchdog._ASK_AFTER_S)
    found.close()
    assert found.verdict is None
    assert found.usual("weights") is None, "a phase within another is a part of it"
    ray.get(learner.pid.remote())


def test_earlier_durations_set_the_limit_of_a_phase(tmp_path: Path) -> None:
    now = [0.0]
    where, limits = Location.of(tmp_path), partial(AdaptiveTimeout, 10, 0.2)
    actors = {"learner 0": Learner.remote()}
    found = Watchdog(
        where, limits, actors=lambda: actors, save_kept=lambda: None, clock=lambda: now[0]
    )
    with found.phase("update"):
        now[0] += 100
    found.start()
    with found.phase("update"):
        now[0] += 990
        time.sleep(3 * watchdog._LOOK_EVERY_S)
    found.close()
    assert found.verdict is None


def test_what_died_by_itself_is_a_failure_and_a_node_that_is_gone_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = Learner.remote()
    pid = ray.get(learner.pid.remote())
    os.kill(pid, 9)
    with pytest.raises(RayActorError) as died:
        ray.get(learner.update.remote())
    assert loss_of(died.value) == ("failure", None)
    with monkeypatch.context() as patch:
        patch.setattr(nodes, "node_is_gone", lambda node: True)
        assert loss_of(died.value) == ("lost_node", ray.nodes()[0]["NodeManagerAddress"])
    assert loss_of(NodeLost("its node")) == ("lost_node", None)
    assert loss_of(ValueError("broken")) == ("failure", None)
    assert loss_of(None) == ("failure", None)
    assert not node_is_gone(ray.nodes()[0]["NodeID"])
    assert node_is_gone("f" * 56)


def test_a_trial_that_stopped_reporting_is_killed_and_named() -> None:
    now = [0.0]
    overdue = TrialWatchdog(3.0, 10.0, clock=lambda: now[0])
    actor = Learner.remote()
    ray.get(actor.pid.remote())
    trial = SimpleNamespace(status="RUNNING", temporary_state=SimpleNamespace(ray_actor=actor))
    overdue.started(str(trial))
    now[0] = 199.0
    assert overdue.look([trial]) == {}, "a start may take ten times the floor, twice"
    for _ in range(4):
        now[0] += 5.0
        overdue.reported(str(trial))
    now[0] += 29.0
    assert overdue.look([trial]) == {}
    now[0] += 2.0
    (sentence,) = overdue.look([trial]).values()
    assert f"(node {ray.nodes()[0]['NodeManagerAddress']}) has not reported for 31 s" in sentence
    with pytest.raises(RayActorError):
        while True:  # It may answer for a moment yet.
            ray.get(actor.pid.remote(), timeout=600)


def test_a_wall_clock_that_is_set_ends_no_trial_before_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, ended = [0.0], []  # type: list[float], list[Exception]
    found = Watchdog(
        Location.of(tmp_path),
        partial(AdaptiveTimeout, 10, 60),
        actors=dict,
        save_kept=lambda: "the last iteration is saved",
        clock=lambda: now[0],
    )
    node, ends = ray.get_runtime_context().get_node_id(), time.time() + 120
    monkeypatch.setattr(found, "_end", ended.append)
    monkeypatch.setattr(_ray.cluster, "draining_nodes", lambda: {node: ends})
    with found.phase("update"):
        found._look_at_nodes()
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: ends + 3600)
            found._look_at_nodes()
        assert found.leaving is not None and ended == []
        now[0] += 119
        found._look_at_nodes()
    assert "is taken away before the iteration ends" in str(ended[0])


def test_a_trial_that_no_node_has_resources_for_waits_with_a_message() -> None:
    now = [100.0]
    waiting = PendingTrials(clock=lambda: now[0])

    def trial(**needs: float) -> Any:
        factory = SimpleNamespace(bundles=[{"CPU": 1.0}, needs])
        return SimpleNamespace(status="PENDING", placement_group_factory=factory)

    def look(*trials: Any) -> list[str]:
        now[0] += 2.0
        return waiting.look(list(trials))

    assert look(trial(CPU=1.0)) == []
    big = trial(GPU=1.0)
    assert [look(big), look(big)] == [[], []]
    (sentence,) = look(big)
    assert "needs: 1 CPU, 1 GPU" in sentence
    assert "waits for a node to join" in sentence
    assert look(big) == [], "not again at once"
    assert look(trial(CPU=1.0)) == [
        "A node with the resources is available again; the run continues."
    ]
    assert look(trial(CPU=1.0)) == []
