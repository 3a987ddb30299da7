"""What every node of a cluster is asked before a run: real nodes, each wrong in one way."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.authentication_test_utils import reset_auth_token_state
from support.clusters import NO_TOKEN, Cluster, Node, environment, run, until
from support.paths import ROOT
from support.running import Run, write_config

from raytrain import _ray
from raytrain.cluster import preflight as room
from raytrain.cluster.join_check import JoinCheck
from raytrain.cluster.node_checks import NodeActor
from raytrain.cluster.preflight import (
    ClusterNotReady,
    NodeActors,
    alive_nodes,
    nodes_to_ask,
    preflight,
)
from raytrain.driver.signals import InterruptedEarly, Interrupts

HOUR = 3600


class Fixed:
    """A head and nodes that are known by a custom resource."""

    def __init__(self, cluster: Cluster, places: Path) -> None:
        self.cluster = cluster
        self.places = places
        self.processes: dict[str, Node] = {}

    def add(self, name: str, *, path: Path | None = None, **env: Any) -> None:
        if path is not None:
            env["PYTHONPATH"] = f"{path}:{environment()['PYTHONPATH']}"
        resource = f"--resources={json.dumps({name: 1})}"
        self.processes[name] = self.cluster.add(resource, **env)

    def node(self, name: str, timeout: float = 600) -> room.Node:
        def found() -> str | None:
            ids = [n["NodeID"] for n in ray.nodes() if n["Alive"] and name in n["Resources"]]
            return ids[0] if ids else None

        id_ = until(found, timeout, lambda: str(ray.nodes()))
        return next(node for node in alive_nodes() if node.id == id_)


def other_torch(place: Path) -> Path:
    """A place in front of Python's path where torch seems to be another one."""
    metadata = place / "torch-9.9.9.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    return place


def other_source(place: Path) -> Path:
    shutil.copytree(
        ROOT / "raytrain", place / "raytrain", ignore=shutil.ignore_patterns("__pycache__")
    )
    with (place / "raytrain" / "versions.py").open("a") as file:
        file.write("# changed\n")
    return place


def other_clock(place: Path) -> Path:
    """Python's clock is ahead there, in the processes of that node alone."""
    text = f"import time\nreal = time.time\ntime.time = lambda: real() - {HOUR}\n"
    (place / "sitecustomize.py").write_text(text)  # Python reads it at its start.
    return place


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fixed]:
    places = tmp_path_factory.mktemp("nodes")
    ray.shutdown()
    with Cluster(places, dashboard=False) as cluster, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        patch.setenv("RAY_AUTH_MODE", NO_TOKEN["RAY_AUTH_MODE"])
        patch.setattr(room, "_LATE_FILE_S", 1.0)
        reset_auth_token_state()  # Ray remembers the mode for as long as the process lives.
        _ray.tune.quiet_driver()
        empty = places / "empty"
        empty.mkdir()
        # A driver without a working directory gives its workers its own current one to import from.
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            runtime_env={"working_dir": str(empty)},
        )
        fixed = Fixed(cluster, places)
        (places / "home").mkdir()
        fixed.add("good", HOME=str(places / "home"))
        fixed.add("bad", path=other_clock(other_source(places / "bad")))
        yield fixed
        ray.shutdown()
    reset_auth_token_state()


def refused(storage: Path | str, *asked: room.Node, **options: Any) -> str:
    with NodeActors(asked) as actors, pytest.raises(ClusterNotReady) as error:
        preflight(str(storage), actors, **options)
    assert error.value.exit_code == 2
    return str(error.value)


@contextmanager
def silenced(nodes: Fixed) -> Iterator[room.Node]:
    """A node whose raylet is there and does not answer."""
    found = nodes.node("good")
    raylets = [p for p in nodes.processes["good"].processes() if p.name() == "raylet"]
    raylets[0].send_signal(signal.SIGSTOP)
    try:
        yield found
    finally:
        raylets[0].send_signal(signal.SIGCONT)


def asks_in_another_job() -> bool:
    """Whether an actor of another job is at its node, so that only the silent one is waited for."""
    own = ray.get_runtime_context().get_job_id()
    actors = ray._private.state.actors().values()
    return any(
        (each["ActorClassName"], each["State"]) == ("NodeActor", "ALIVE") and each["JobID"] != own
        for each in actors
    )


def test_good_nodes_pass_and_nothing_stays(nodes: Fixed, tmp_path: Path) -> None:
    with NodeActors([nodes.node("good")]) as actors:
        preflight(str(tmp_path), actors)
    assert list(tmp_path.iterdir()) == []


def test_only_the_drivers_own_node_is_not_asked_if_nothing_can_run_there(
    nodes: Fixed, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, good = ray.get_runtime_context().get_node_id(), nodes.node("good").id
    there = alive_nodes()
    assert {here, good} <= {node.id for node in nodes_to_ask(there)}
    found = ray.nodes()
    for node in found:
        node["Resources"].pop("CPU", None)
    monkeypatch.setattr(ray, "nodes", lambda: found)
    asked = {node.id for node in nodes_to_ask(there)}
    assert here not in asked
    assert good in asked


def test_other_source_files_under_the_same_version_are_found(nodes: Fixed, tmp_path: Path) -> None:
    bad = nodes.node("bad")
    said = refused(tmp_path, nodes.node("good"), bad)
    assert f"{bad.name} has raytrain" in said
    assert "with other source files" in said
    assert nodes.node("good").name not in said


def test_a_clock_that_is_wrong_is_found(nodes: Fixed, tmp_path: Path) -> None:
    bad = nodes.node("bad")
    said = refused(tmp_path, bad)
    assert f"{bad.name} has a clock at least " in said
    assert " s behind this machine's" in said
    assert 0 <= HOUR - int(said.split("at least ")[1].split()[0]) < 600


def test_a_storage_path_on_each_nodes_own_disk_is_found(nodes: Fixed) -> None:
    """Each node expands `~` to its own directory, as each has its own disk."""
    here, there = Path.home() / "raytrain-preflight-test", nodes.places / "home"
    try:
        said = refused("~/raytrain-preflight-test", nodes.node("good"))
        assert "is not shared" in said
        assert f"{nodes.node('good').name} does not see what this machine wrote" in said
        assert f"this machine does not see what {nodes.node('good').name} wrote" in said
        assert "mount a network file system" in said
        assert [*here.iterdir(), *(there / here.name).iterdir()] == []
    finally:
        shutil.rmtree(here, ignore_errors=True)


def test_storage_that_a_node_cannot_write_is_found(nodes: Fixed, tmp_path: Path) -> None:
    """A file is where that node has its storage, while this machine has a directory."""
    (nodes.places / "home" / "blocked").write_text("")
    here = Path.home() / "blocked"
    try:
        said = refused("~/blocked", nodes.node("good"))
        assert f"{nodes.node('good').name} cannot write to ~/blocked" in said
    finally:
        shutil.rmtree(here, ignore_errors=True)


def test_what_ray_says_is_told_without_ids_and_tracebacks() -> None:
    died = "The actor died.\n\tactor_id: 12\nIts owner has ended.\n"
    assert room._short(RuntimeError(died)) == "The actor died. Its owner has ended."
    told = 'Traceback (most recent call last):\n  File "x.py", line 6\nOSError: no such archive\n'
    assert room._short(RuntimeError(told)) == "OSError: no such archive"
    assert room._short(RuntimeError()) == "RuntimeError"


@pytest.mark.slow
def test_a_signal_ends_the_wait_for_a_node(nodes: Fixed, tmp_path: Path) -> None:
    with silenced(nodes) as silent:
        with NodeActors([silent]) as actors, Interrupts() as interrupts, interrupts.deferred():
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(InterruptedEarly):
                preflight(str(tmp_path), actors, check=interrupts.raise_early, timeout_s=10_000)
        config = write_config(tmp_path / "run.yaml")
        arguments = ("train", str(config), "--address", nodes.cluster.address)
        command = Run(*arguments, log=tmp_path / "log.txt", env=environment())
        command.until(asks_in_another_job)
        command.process.send_signal(signal.SIGINT)
        assert command.wait() == 130, command.output()
        assert "Stopped before training began" in command.output()
        assert "Traceback" not in command.output()


@pytest.mark.slow
def test_a_node_that_has_just_died_is_left_out(nodes: Fixed, tmp_path: Path) -> None:
    """Ray takes it for alive for some more seconds."""
    nodes.add("dying")
    dying = nodes.node("dying")
    with NodeActors([dying, nodes.node("good")]) as actors:
        preflight(str(tmp_path), actors)
        nodes.processes["dying"].kill()
        preflight(str(tmp_path), actors)


@pytest.mark.slow
def test_a_node_that_does_not_answer_is_named(nodes: Fixed, tmp_path: Path) -> None:
    with silenced(nodes) as silent:
        said = refused(tmp_path, silent, timeout_s=5)
    assert f"{silent.name} has not answered within 5 s" in said


@pytest.mark.slow
def test_a_node_that_joins_is_asked_and_a_dead_one_is_not(nodes: Fixed, tmp_path: Path) -> None:
    with JoinCheck(str(tmp_path), alive_nodes()) as join_check:
        nodes.add("late", path=other_torch(nodes.places / "torch"))
        late = nodes.node("late")
        said = until(join_check.problems, 600, lambda: nodes.cluster.log("head"))
    assert f"{late.name} has torch 9.9.9; this machine has" in said[0]
    assert "joined during the run" in said[0]
    nodes.processes["late"].kill()
    until(lambda: late not in alive_nodes(), 600, lambda: str(ray.nodes()))
    with NodeActors([late, nodes.node("good")]) as actors:
        preflight(str(tmp_path), actors)


@pytest.mark.slow
def test_a_node_that_is_being_drained_is_left_out(nodes: Fixed, tmp_path: Path) -> None:
    nodes.add("leaving")
    leaving = nodes.node("leaving")
    keeper = ray.remote(num_cpus=0, resources={"leaving": 0.1})(NodeActor).remote()
    ray.get(keeper.call.remote(int))  # Without work the node would end at once.
    assert _ray.cluster.drain_node(leaving.id, "It is taken away.", HOUR) is None
    with NodeActors([leaving, nodes.node("good")]) as actors:
        preflight(str(tmp_path), actors)
    assert leaving in alive_nodes()
    nodes.processes["leaving"].kill()


@pytest.mark.slow
def test_the_command_ends_before_training(nodes: Fixed, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml")
    code, said = run(
        *("raytrain", "train", str(config), "--address", nodes.cluster.address),
        env=environment(),
        cwd=tmp_path,
    )
    assert code == 2, said
    assert "The cluster is not ready to train:" in said
    assert "with other source files" in said
    assert "Traceback" not in said
    assert not (tmp_path / "results" / "run" / "trial_00000").exists()


def test_actors_that_outlive_ray_start_no_other(
    nodes: Fixed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, NodeActors([nodes.node("good")]) as actors:
        patch.setattr(ray, "is_initialized", lambda: False)
        patch.setattr(ray, "kill", lambda actor: pytest.fail("it starts a Ray"))
    assert actors.nodes == []
