"""`raytrain.Client` against a real server, with runs that `fake_training` makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support import fake_training
from support.serving import TOKEN, Site, serving

import raytrain
from raytrain.errors import BadInput, RaytrainError
from raytrain.server import launcher
from raytrain.server.client import ServerProblem

CONFIG = {"environment": {"env": "CartPole-v1"}, "stop": {"iterations": 8}}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(launcher, "PROGRAM", fake_training.PROGRAM)
    with serving(tmp_path) as site:
        yield site


def test_a_run_from_start_to_end(site: Site, tmp_path: Path) -> None:
    client = raytrain.Client(f"{site.url}/?token={TOKEN}")
    file = tmp_path / "cartpole.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    run = client.start(file)
    assert (run["name"], run["state"]) == ("cartpole", "running")
    assert client.start(str(file), set=[])["id"] == run["id"]
    events = client.events(run["id"])
    assert next(data for name, data in events if name == "row")["trial"] == "trial_00000"
    stopped = client.stop(run["id"])
    assert stopped["state"] == "interrupted"
    assert client.wait(run["id"], timeout_s=60)["state"] == "interrupted"
    (site.results / "cartpole.go").touch()
    client.resume(run["id"])
    assert client.wait(run["id"], timeout_s=60)["state"] == "finished"
    assert list(client.log(run["id"], tail=1)) == ["iteration 8"]
    (latest,) = client.checkpoints(run["id"], latest=1)
    assert latest["iteration"] == 8
    assert client.done(client.verify(run["id"]), timeout_s=60)["result"]["good"]
    assert not client.prune(run["id"])["deleted"]
    assert client.runs(q="cart")[0]["id"] == run["id"]
    assert client.models()[0]["name"] == "cartpole"
    assert client.curves(run["id"], points=10)["trials"]
    child = client.fork(run["id"], "child", "best")
    assert child["parent"]["experiment"] == "cartpole"
    client.stop(child["id"])


def test_what_the_server_refuses_is_an_error_with_lines(site: Site) -> None:
    client = raytrain.Client(site.url, TOKEN)
    text = "name: a\nenvironment: {env: CartPole-v1}\nstop:\n  iterations: 0\n"
    with pytest.raises(ServerProblem, match=r"line 4: stop\.iterations: 0: must be") as caught:
        client.start(text)
    assert caught.value.status == 422
    assert caught.value.errors[0]["line"] == 4
    with pytest.raises(ServerProblem, match="no run") as caught:
        client.run("0" * 16)
    assert caught.value.status == 404
    with pytest.raises(ServerProblem, match="token"):
        raytrain.Client(site.url, "another-token-0123456789").runs()


def test_a_proxy_is_not_asked_for_this_machine(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert raytrain.Client(site.url, TOKEN).runs() == []


def test_the_token_has_three_places(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="needs the server's token"):
        raytrain.Client(site.url)
    monkeypatch.setenv("RAYTRAIN_SERVER_TOKEN", TOKEN)
    assert raytrain.Client(site.url).runs() == []
    with pytest.raises(BadInput, match="is no address"):
        raytrain.Client("127.0.0.1:8200", TOKEN)


def test_a_server_that_is_gone_is_said(tmp_path: Path) -> None:
    with serving(tmp_path) as site:
        client = raytrain.Client(site.url, TOKEN)
    with pytest.raises(RaytrainError, match="does not answer"):
        client.runs()
