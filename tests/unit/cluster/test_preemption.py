"""Notices of a cloud that a node will be taken away."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raytrain.cluster.preemption import Notice


def notice(**given: Any) -> Notice:
    keys: dict[str, Any] = {
        "command": None,
        "url": None,
        "headers": {},
        "match": ".",
        "poll_s": 0.1,
        "grace_s": 30,
    }
    return Notice(**{**keys, **given})


def test_a_command_announces_a_preemption(tmp_path: Path) -> None:
    asked = notice(command=f"test -e {tmp_path}/notice")
    assert not asked.given()
    (tmp_path / "notice").touch()
    assert asked.given()


@pytest.fixture
def cloud() -> Any:
    """A cloud's metadata server: `cloud.answer` is (code, body), for who sends the header."""
    state = SimpleNamespace(answer=(404, ""))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = state.answer if self.headers["Metadata"] == "true" else (400, "no header")
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}/events"
    yield state
    server.shutdown()
    server.server_close()


def test_a_url_announces_a_preemption(cloud: Any) -> None:
    asked = notice(url=cloud.url, headers={"Metadata": "true"}, match='"EventType": *"Preempt"')
    assert not asked.given()
    cloud.answer = (200, '{"Events": [{"EventType": "Reboot"}]}')
    assert not asked.given()
    cloud.answer = (200, '{"Events": [{"EventType": "Preempt"}]}')
    assert asked.given()
    assert not notice(url=cloud.url, match="Preempt").given(), "without the header it is refused"
    assert not notice(url="http://127.0.0.1:9/").given(), "nobody answers there"
