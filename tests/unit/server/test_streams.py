"""Server-sent events, read as a browser reads them."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.experiments import FakeRun
from support.serving import Site, serving

from raytrain.storage import Location


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "results", "cartpole", stop=20).start().train(4).kill().start()


@pytest.fixture
def site(tmp_path: Path, run: FakeRun) -> Iterator[Site]:
    with serving(tmp_path) as site:
        yield site


def messages(reply: http.client.HTTPResponse) -> Iterator[tuple[str | None, Any]]:
    name = None
    for line in reply:
        text = line.decode().rstrip("\n")
        if text.startswith("event: "):
            name = text.removeprefix("event: ")
        elif text.startswith("data: "):
            yield name, json.loads(text.removeprefix("data: "))
            name = None


def first(found: Iterator[tuple[str | None, Any]], name: str | None) -> Any:
    return next(data for event, data in found if event == name)


def test_a_change_of_any_run(site: Site, run: FakeRun) -> None:
    wanted = site.run_of("cartpole")
    reply = site.opened("/api/events")
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = messages(reply)
    run.train(2)
    site.scan()
    assert first(found, None) == {"id": wanted}
    reply.close()


def test_the_past_comes_first_and_then_what_is_new(site: Site, run: FakeRun) -> None:
    wanted = site.run_of("cartpole")
    one, two = site.opened(f"/api/runs/{wanted}/events"), None
    found = messages(one)
    event = first(found, "event")
    assert (event["trial"], event["kind"]) == ("trial_00000", "recovered")
    assert {"time", "attempt", "iteration", "message"} <= set(event)
    row = first(found, "row")
    assert (row["trial"], row["iteration"], row["timesteps"]) == ("trial_00000", 4, 16000)
    assert first(found, "state")["state"] == "stopped"
    run.train(1)
    assert first(found, "row")["iteration"] == 5
    run.event(run.trials[0], "preemption", "a notice")
    assert first(found, "event")["message"] == "a notice"
    two = site.opened(f"/api/runs/{wanted}/events")
    late = messages(two)
    assert [first(late, "event")["kind"] for _ in range(2)] == ["recovered", "preemption"]
    assert first(late, "row")["iteration"] == 5
    with run.running():
        site.scan()
        while first(found, "state")["state"] != "running":
            pass
    one.close()
    two.close()


def test_a_log_is_followed_also_into_the_next(site: Site) -> None:
    wanted = site.run_of("cartpole")
    assert site.get(f"/api/runs/{wanted}/log").status == 404
    place = Location.of(site.results / "cartpole")
    directory = site.app.state.settings.launch_directory(place)
    directory.mkdir(parents=True)
    log = directory / "20260101-000000-000000.log"
    log.write_text("".join(f"line {i}\n" for i in range(10)) + "begun")
    reply = site.opened(f"/api/runs/{wanted}/log?tail=2")
    found = messages(reply)
    assert [next(found)[1] for _ in range(2)] == ["line 8", "line 9"]
    with log.open("a") as file:
        file.write(" and ended\n")
    assert next(found) == (None, "begun and ended")
    (directory / "20260102-000000-000000.log").write_text("after a resume\n")
    assert next(found) == (None, "after a resume")
    reply.close()


def test_streams_end_with_the_server(site: Site) -> None:
    wanted = site.run_of("cartpole")
    replies = [site.opened(path) for path in ("/api/events", f"/api/runs/{wanted}/events")]
    for reply in replies:
        assert reply.readline() == b": raytrain\n"
    ends: list[bytes] = []
    threads = [threading.Thread(target=lambda r=reply: ends.append(r.read())) for reply in replies]
    for thread in threads:
        thread.start()
    site.app.state.server.streams.end()
    for thread in threads:
        thread.join(60)
    assert len(ends) == 2
    assert site.get("/api/events").status == 503


def test_a_stream_that_is_left_is_counted_no_more(site: Site) -> None:
    streams = site.app.state.server.streams
    reply = site.opened("/api/events")
    assert reply.readline() == b": raytrain\n"
    assert streams.open == 1
    reply.close()
    deadline = time.monotonic() + 60
    while streams.open:
        assert time.monotonic() < deadline
        time.sleep(0.02)
