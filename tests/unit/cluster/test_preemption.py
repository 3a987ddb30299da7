"""Notices of a cloud that a node will be taken away."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raytrain.cluster.preemption import notice_given
from raytrain.config.schema import Preemption


def test_a_command_announces_a_preemption(tmp_path: Path) -> None:
    asked = Preemption(notice_command=f"test -e {tmp_path}/notice")
    assert not notice_given(asked)
    (tmp_path / "notice").touch()
    assert notice_given(asked)


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
    asked = Preemption(
        notice_url=cloud.url,
        notice_headers={"Metadata": "true"},
        notice_match='"EventType": *"Preempt"',
    )
    assert not notice_given(asked)
    cloud.answer = (200, '{"Events": [{"EventType": "Reboot"}]}')
    assert not notice_given(asked)
    cloud.answer = (200, '{"Events": [{"EventType": "Preempt"}]}')
    assert notice_given(asked)
    assert not notice_given(Preemption(notice_url=cloud.url, notice_match="Preempt")), (
        "without the header it is refused"
    )
    assert not notice_given(Preemption(notice_url="http://127.0.0.1:9/")), "nobody answers there"
