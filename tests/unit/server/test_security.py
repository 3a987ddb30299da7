"""Who is let in, from where, and what nobody may do."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.experiments import FakeRun
from support.serving import TOKEN, Site, serving

from raytrain.server import security
from raytrain.server.settings import Limits

BEARER = {"authorization": f"Bearer {TOKEN}"}
JSON = {"content-type": "application/json"}
CHECK = b'{"yaml": "name: a"}'


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("site")
    FakeRun(place / "results", "cartpole", trials=1, stop=6).start().train(4)
    limits = Limits(body_bytes=2000, streams=2)
    with serving(place, names=("proxy.example",), limits=limits) as site:
        site.scan()
        yield site


def cookie(site: Site) -> dict[str, str]:
    return {"cookie": f"other=1; raytrain_token_{site.port}={TOKEN}; last=2"}


# -- the token -------------------------------------------------------------------------------------


def test_nothing_without_the_token(site: Site) -> None:
    paths = [*site.get("/openapi.json").document["paths"], "/"]
    paths += ["/openapi.json", "/docs", "/docs/begin.js", "/nothing", "/static/x/y"]
    assert "/api/runs" in paths
    for path in paths:
        if path != "/healthz":
            assert site.ask("GET", path).status == 401, path
    assert site.ask("GET", "/healthz").status == 200
    assert json.loads(site.ask("GET", "/healthz").body) == {"status": "ok"}


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer wrong-wrong-wrong-wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": "Bearer \xe9"},
        {"cookie": f"raytrain_token={TOKEN}"},
        {"cookie": "raytrain_token_PORT=wrong"},
        {"cookie": "raytrain_token_PORT"},
    ],
)
def test_a_wrong_token_is_none(site: Site, headers: dict[str, str]) -> None:
    given = {name: value.replace("PORT", str(site.port)) for name, value in headers.items()}
    assert site.ask("GET", "/api/runs", headers=given).status == 401
    # A right cookie does not help a wrong bearer.
    if "authorization" in given and given["authorization"].startswith("Bearer"):
        assert site.ask("GET", "/api/runs", headers=given | cookie(site)).status == 401


def test_the_address_gives_a_cookie_once_and_loses_the_token(site: Site) -> None:
    answer = site.ask("GET", f"/api/runs?token={TOKEN}&q=cart%20pole&page=1")
    assert answer.status == 303
    assert answer.headers["location"] == "/api/runs?q=cart+pole&page=1"
    given = answer.headers["set-cookie"]
    name, _, flags = given.partition(";")
    assert name == f"raytrain_token_{site.port}={TOKEN}"
    assert {flag.strip().lower() for flag in flags.split(";")} == {
        "httponly",
        "samesite=strict",
        "path=/",
    }
    assert site.ask("GET", "/api/runs", headers=cookie(site)).status == 200
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"


def test_a_wrong_token_in_the_address_gives_nothing(site: Site) -> None:
    for query in ("token=", "token=wrong", f"token={TOKEN}&token=wrong"):
        answer = site.ask("GET", f"/?{query}")
        assert answer.status == 401
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("path", ["//evil.example/", "///evil.example", "/\\evil.example"])
def test_the_redirect_stays_on_this_server(site: Site, path: str) -> None:
    place = site.ask("GET", f"{path}?token={TOKEN}").headers["location"]
    assert place.startswith("/")
    assert not place.startswith("//")
    assert "\\" not in place


def test_tokens_are_compared_in_constant_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        seen.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    class Compared:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(security, "hmac", Compared)
    site.ask("GET", "/api/runs", headers=BEARER)
    site.ask("GET", "/api/runs", headers={"authorization": "Bearer a"})
    site.ask("GET", "/api/runs", headers=cookie(site))
    site.ask("GET", "/?token=b")
    assert seen == [(32, 32)] * 4


# -- the name, and the page that asks --------------------------------------------------------------


def test_another_name_that_leads_here_is_refused(site: Site) -> None:
    for host in ("evil.example", f"evil.example:{site.port}", "", "localhost.evil.example"):
        assert site.ask("GET", "/api/runs", headers=BEARER | {"host": host}).status == 403, host
    for host in ("127.0.0.1@evil.example", "[::1", "10.0.0.7", "proxy.example.evil"):
        assert site.ask("GET", "/api/runs", headers=BEARER | {"host": host}).status == 403, host
    for host in (f"localhost:{site.port}", "LOCALHOST", "[::1]:1", "proxy.example"):
        assert site.ask("GET", "/api/runs", headers=BEARER | {"host": host}).status == 200, host


def test_an_address_in_figures_is_a_name_where_others_may_reach_it(tmp_path: Path) -> None:
    with serving(tmp_path, allow_remote=True, host="0.0.0.0") as site:
        assert site.ask("GET", "/api/runs", headers=BEARER | {"host": "10.0.0.7"}).status == 200
        assert site.ask("GET", "/api/runs", headers=BEARER | {"host": "evil.example"}).status == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", ""])
def test_another_page_changes_nothing(site: Site, origin: str) -> None:
    for who in (cookie(site), BEARER):
        headers = who | JSON | {"origin": origin}
        assert site.ask("POST", "/api/config/check", headers=headers, body=CHECK).status == 403


def test_what_changes_something_needs_an_origin_or_a_bearer(site: Site) -> None:
    own = {"origin": f"http://{site.host}"}
    for headers, status in (
        (cookie(site), 403),
        (cookie(site) | own, 200),
        (BEARER, 200),
        (BEARER | own, 200),
        (own, 401),
    ):
        answer = site.ask("POST", "/api/config/check", headers=headers | JSON, body=CHECK)
        assert answer.status == status, headers


def test_a_form_of_another_page_is_no_request(site: Site) -> None:
    """Without JSON's type a browser would not ask first whether it may send it."""
    headers = BEARER | {"content-type": "text/plain"}
    assert site.ask("POST", "/api/config/check", headers=headers, body=CHECK).status == 422


def test_no_answer_is_for_other_origins(site: Site) -> None:
    headers = BEARER | {"origin": "http://evil.example"}
    for method in ("GET", "OPTIONS"):
        answer = site.ask(method, "/api/runs", headers=headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]


# -- headers ---------------------------------------------------------------------------------------


def test_every_answer_has_the_headers(site: Site) -> None:
    answers = [site.get(path) for path in ("/api/runs", "/nothing", "/docs", "/metrics")]
    answers += [
        site.ask("GET", "/healthz"),
        site.ask("GET", "/"),
        site.ask("GET", f"/?token={TOKEN}"),
    ]
    answers.append(site.ask("GET", "/", headers={"host": "evil.example"}))
    for answer in answers:
        policy = dict(
            part.strip().split(" ", 1)
            for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == "'self'"
        inline = " 'unsafe-inline'" if b"swagger" in answer.body else ""
        assert policy["style-src"] == f"'self'{inline}"
        assert policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["form-action"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers


def test_the_documentation_loads_nothing_from_elsewhere(site: Site) -> None:
    page = site.get("/docs").body.decode()
    assert "://" not in page
    assert "<script>" not in page
    assert b"swagger" in site.get("/docs/swagger-ui-bundle.js").body[:2000].lower()
    assert site.get("/docs/swagger-ui.css").status == 200
    assert "/openapi.json" in site.get("/docs/begin.js").body.decode()
    assert site.get("/docs/..%2f..%2fsecurity.py").status in (400, 404)
    document = site.get("/openapi.json").document
    assert {"/api/runs", "/api/runs/{run}/stop", "/healthz", "/metrics"} <= set(document["paths"])


# -- limits ----------------------------------------------------------------------------------------


def test_a_body_is_limited(site: Site) -> None:
    large = json.dumps({"yaml": "#" * 3000}).encode()
    headers = BEARER | JSON
    assert site.ask("POST", "/api/config/check", headers=headers, body=large).status == 413
    for length in ("99999999", "-1", "x"):
        given = headers | {"content-length": length}
        assert site.ask("POST", "/api/config/check", headers=given, body=b"").status in (400, 413)
    chunks = b"bb8\r\n" + b"#" * 3000 + b"\r\n0\r\n\r\n"
    chunked = headers | {"transfer-encoding": "chunked", "content-length": ""}
    del chunked["content-length"]
    assert _chunked(site, chunked, chunks) == 413


def _chunked(site: Site, headers: dict[str, str], body: bytes) -> int:
    import socket

    with socket.create_connection(("127.0.0.1", site.port), timeout=30) as connection:
        lines = [f"{name}: {value}" for name, value in ({"host": site.host} | headers).items()]
        head = "\r\n".join(["POST /api/config/check HTTP/1.1", *lines, "", ""])
        connection.sendall(head.encode() + body)
        return int(connection.recv(4096).split()[1])


def test_the_number_of_streams_is_limited(site: Site) -> None:
    one, two = site.opened("/api/events"), site.opened("/api/events")
    try:
        assert one.readline() == two.readline() == b": raytrain\n"
        answer = site.get("/api/events")
        assert answer.status == 503
        assert answer.headers["content-type"] == "application/problem+json"
    finally:
        one.close()
        two.close()


def test_anchors_within_anchors_are_no_work(site: Site) -> None:
    text = "a: &a [x,x,x,x,x,x,x,x,x]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True):
        text += f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    found = site.post("/api/config/check", {"yaml": text}).document
    assert "anchors" in found["problems"][0]["message"]
    assert found["values"] is None


# -- read-only -------------------------------------------------------------------------------------


def test_read_only_changes_nothing(tmp_path: Path) -> None:
    FakeRun(tmp_path / "results", "cartpole", trials=1, stop=6).start().train(4)
    with serving(tmp_path, read_only=True) as site:
        run = site.run_of("cartpole")
        routes = [
            (method.upper(), path.replace("{run}", run))
            for path, methods in site.get("/openapi.json").document["paths"].items()
            for method in methods
            if method != "get"
        ]
        assert len(routes) > 8
        for method, path in routes:
            allowed = path == "/api/config/check"
            answer = site.post(path, {"yaml": "name: a"}, method=method)
            assert answer.status == (200 if allowed else 403), path
            assert allowed or "--read-only" in answer.document["detail"]
        assert site.get(f"/api/runs/{run}").status == 200
        assert not list(site.configs.iterdir())


# -- problems --------------------------------------------------------------------------------------


def test_every_error_is_a_problem_document(site: Site) -> None:
    cases: list[tuple[str, str, Any, int]] = [
        ("GET", "/nothing", None, 404),
        ("GET", "/api/runs/0123456789abcdef", None, 404),
        ("GET", "/api/runs?state=strange", None, 400),
        ("GET", "/api/runs?page=0", None, 422),
        ("DELETE", "/api/runs", {}, 405),
        ("POST", "/api/runs", {"unknown": 1}, 422),
        ("POST", "/api/config/check", {}, 422),
        ("GET", "/api/tasks/none", None, 404),
    ]
    for method, path, body, status in cases:
        answer = site.get(path) if method == "GET" else site.post(path, body, method=method)
        assert answer.status == status, path
        assert answer.headers["content-type"] == "application/problem+json"
        found = answer.document
        assert found["status"] == status
        assert {"type", "title", "detail"} <= set(found)
        assert "Traceback" not in found["detail"]


def test_a_defect_tells_nothing_of_itself(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("the secret of the defect")

    monkeypatch.setattr(site.app.state.server.history, "runs", broken)
    answer = site.get("/api/runs")
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert answer.headers["content-type"] == "application/problem+json"
