"""What the API answers of runs on storage; what runs may be called; what nobody may read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.commands import here
from support.experiments import FakeRun
from support.serving import Site, serving

from raytrain.records import node_notice
from raytrain.server import launcher
from raytrain.server.problems import problem

HOSTILE = "<script>alert(1)</script>\"'&\x1b[2J\u202e\n\udcff"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("site")
    run = FakeRun(place / "results", "cartpole", trials=2, stop=10).start().train(6)
    run.kill().start().train(2)
    run.fork("child", "best").start().train(2)
    FakeRun(place / "results", "gone", stop=4).start().train(4)
    with serving(place) as site:
        site.scan()
        FakeRun(place / "results", "gone", stop=4).delete()
        yield site


def api(site: Site, run: str, rest: str = "") -> Any:
    answer = site.get(f"/api/runs/{site.run_of(run)}{rest}")
    assert answer.status == 200, answer.body
    return answer.document


# -- reading ---------------------------------------------------------------------------------------


def test_a_run_is_what_the_command_line_prints(site: Site) -> None:
    found = api(site, "cartpole")
    printed = here("show", site.results / "cartpole", "--json").document
    assert found["experiment"] == printed
    assert found["run"]["timesteps"] == sum(each["timesteps"] for each in printed["trials"])
    assert found["config"]["values"] == printed["config"]
    assert "import_path" not in found["config"]["yaml"]
    assert found["verdicts"] == found["launches"] == []
    assert found["model_card"] is None


def test_runs_are_found_sorted_and_paged(site: Site) -> None:
    site.scan()
    found = site.get("/api/runs?sort=name&per_page=2").document
    assert [row["name"] for row in found["runs"]] == ["cartpole", "child"]
    assert (found["total"], found["page"], found["pages"]) == (3, 1, 2)
    assert found["states"]["gone"] == 1
    assert "config" not in found["runs"][0]
    assert [row["name"] for row in site.get("/api/runs?q=chi").document["runs"]] == ["child"]
    assert site.get("/api/runs?gone=false").document["total"] == 2


def test_a_run_that_is_gone_is_still_known(site: Site) -> None:
    site.scan()
    (row,) = site.get("/api/runs?state=gone").document["runs"]
    found = site.get(f"/api/runs/{row['id']}").document
    assert found["experiment"] is None
    assert found["run"]["gone_at"]
    kept = site.get(f"/api/runs/{row['id']}/curves").document["trials"]["trial_00000"]
    assert [iteration for iteration, *_ in kept["series"]["checkpoint/score"]] == [1, 2, 3, 4]
    assert site.get(f"/api/runs/{row['id']}/curves?trial=..").status == 404
    for rest in ("/timeline", "/events", "/log"):
        assert site.get(f"/api/runs/{row['id']}{rest}").status == 410
    assert site.post(f"/api/runs/{row['id']}/resume").status == 410


def test_checkpoints_have_commands_that_need_no_file(site: Site) -> None:
    found = api(site, "cartpole", "/checkpoints")["checkpoints"]
    by_path = {(each["trial"], each["path"]): each for each in found}
    older = by_path["trial_00000", "checkpoint_000004"]
    place = str(site.results / "cartpole" / "trial_00000" / "checkpoint_000004")
    assert older["full_path"] == place
    commands = older["commands"]
    assert set(commands) == {"resume", "fork", "evaluate", "load_policy", "export"}
    assert commands["resume"] is None
    assert f"fork {place} --name cartpole-from-checkpoint_000004" in commands["fork"]
    assert commands["load_policy"] == f"raytrain.load_policy({place!r})"
    newest = by_path["trial_00000", "checkpoint_000008"]["commands"]
    assert newest["resume"].endswith(f"resume {site.results / 'cartpole'}")
    latest = api(site, "cartpole", "/checkpoints?latest=1")["checkpoints"]
    assert [(each["trial"], each["iteration"]) for each in latest] == [
        ("trial_00000", 8),
        ("trial_00001", 8),
    ]
    assert {
        each["kind"] for each in api(site, "cartpole", "/checkpoints?kind=best")["checkpoints"]
    } == {"best"}


def test_curves_timeline_and_episodes(site: Site) -> None:
    found = api(site, "cartpole", "/curves")
    series = found["trials"]["trial_00000"]["series"]
    (points,) = series.values()
    assert [point[0] for point in points] == list(range(1, 9))
    again = api(site, "cartpole", f"/curves?since={found['cursor']}")
    assert not any(again["trials"]["trial_00000"]["series"].values())
    one = api(site, "cartpole", "/curves?trial=trial_00001&metric=training_iteration")
    assert list(one["trials"]) == ["trial_00001"]
    kinds = {span["kind"] for span in api(site, "cartpole", "/timeline")["trials"]["trial_00000"]}
    assert {"training", "away"} <= kinds
    assert set(api(site, "cartpole", "/episodes")["trials"]) == {"trial_00000", "trial_00001"}
    for name in ("trial_00009", "..", "../../x", "/etc"):
        assert site.get(f"/api/runs/{site.run_of('cartpole')}/curves?trial={name}").status == 404


def test_models_lineage_comparison_and_differences(site: Site) -> None:
    site.scan()
    models = site.get("/api/models").document["models"]
    assert {"best"} <= {each["kind"] for each in models}
    assert all(each["load"] for each in models)
    graph = site.get("/api/lineage").document
    assert any(edge["kind"] == "fork" for edge in graph["edges"])
    one, two = site.run_of("cartpole"), site.run_of("child")
    found = site.get(f"/api/compare?ids={one},{two}").document
    assert [row["id"] for row in found["runs"]] == [one, two]
    (stop,) = [each for each in found["differences"] if each["key"] == "stop.iterations"]
    assert stop["values"] == {one: 10, two: 20}
    assert site.get(f"/api/compare?ids={one}").status == 422
    assert site.get(f"/api/compare?ids={one},nothing").status == 400
    diff = site.get(f"/api/runs/{two}/config-diff?with={one}").document["differences"]
    assert {"key": "stop.iterations", "this": 20, "other": 10} in diff
    assert site.get(f"/api/runs/{two}/config-diff?with=parent").document["differences"] == diff
    assert site.get(f"/api/runs/{one}/config-diff?with=parent").status == 409


def test_metrics_are_prometheus_text(site: Site) -> None:
    site.scan()
    text = site.get("/metrics").body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    steps = {
        sample.labels["name"]: sample.value for sample in families["raytrain_run_timesteps"].samples
    }
    assert steps == {"cartpole": 64000.0, "child": pytest.approx(steps["child"])}
    states = {s.labels["state"]: s.value for s in families["raytrain_runs"].samples}
    assert states["gone"] == 0.0 or states["gone"] == 1.0
    assert families["raytrain_scan_seconds"].samples[0].value > 0


def test_the_server_tells_of_itself(site: Site) -> None:
    site.scan()
    found = site.get("/api/system").document
    assert found["storages"] == [str(site.results)]
    assert found["scan"]["seconds"] > 0
    assert site.get("/api/nodes").document == {"address": None, "nodes": []}


class Jobs:
    """Stands in for the job server of a cluster of two nodes."""

    def __init__(self, address: str) -> None:
        self.address = address

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"address": "10.0.0.2", "started_at": 0.0},
            {"address": "10.0.0.22", "started_at": 0.0},
            {"address": "10.0.0.3", "started_at": 4e9},  # After the notice.
        ]


def test_a_node_that_is_about_to_end_has_the_notice_that_a_run_got(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "JobServer", Jobs)
    run = FakeRun(tmp_path / "results", "cartpole").start().train(2)
    for address in ("10.0.0.2", "10.0.0.3"):
        run.event(run.trials[0], *node_notice(address, 1.8e9))
    run.event(run.trials[0], "lost_node", "the node 10.0.0.22 is gone")
    with run.running(), serving(tmp_path, address="http://head:8265") as site:
        site.scan()
        first, second, third = site.get("/api/nodes").document["nodes"]
        (notice,) = first["notices"]
        assert notice["run"] == site.run_of("cartpole")
        assert notice["message"] == "the node 10.0.0.2 is being drained and ends at 08:00:00 UTC"
        assert second["notices"] == third["notices"] == []


def test_the_schema_is_every_key(site: Site) -> None:
    fields = {each["key"]: each for each in site.get("/api/schema").document["fields"]}
    assert fields["training.lr"]["help"]
    assert fields["environment.env"]["required"]
    assert fields["checkpoint.score_order"]["choices"] == ["max", "min"]
    assert fields["stop.timesteps"]["default"] is None


def test_a_config_is_checked_without_importing_anything(site: Site, tmp_path: Path) -> None:
    text = "name: a\nenvironment:\n  env: own_module:make\nstop:\n  iterations: 0\n"
    found = site.post("/api/config/check", {"yaml": text}).document
    assert found["problems"] == [
        {"line": 5, "key": "stop.iterations", "message": "0: must be at least 1"}
    ]
    assert found["values"]["environment"] == {"env": "own_module:make"}
    found = site.post("/api/config/check", {"yaml": "a: [\n"}).document
    assert found["problems"][0]["line"] == 2
    assert found["values"] is None


# -- paths -----------------------------------------------------------------------------------------


def test_configs_below_their_directories_only(site: Site, tmp_path: Path) -> None:
    text = "name: outside\nenvironment: {env: CartPole-v1}\nstop: {iterations: 1}\n"
    outside = tmp_path / "outside.yaml"
    outside.write_text(text)
    link = site.configs / "link.yaml"
    link.symlink_to(outside)
    (site.configs / "inside.yaml").write_text(text)
    (site.configs / "near.yaml").symlink_to(site.configs / "inside.yaml")
    try:
        for path in (
            str(outside),
            "../outside.yaml",
            f"{site.configs}/../{outside}",
            os.path.relpath(outside, site.configs),
            "link.yaml",
            str(link),
            "/etc/passwd",
            "a\0b",
        ):
            answer = site.post("/api/runs", {"config_path": path})
            assert answer.status in (400, 403), path
            assert b"CartPole" not in answer.body
        listed = site.get("/api/configs").document["configs"]
        assert {Path(each["path"]).name for each in listed} == {"inside.yaml", "near.yaml"}
    finally:
        for file in site.configs.iterdir():
            file.unlink()


def test_checkpoints_below_the_storages_only(site: Site, tmp_path: Path) -> None:
    FakeRun(tmp_path / "elsewhere", "other", stop=4).start().train(4)
    outside = tmp_path / "elsewhere" / "other"
    link = site.results / "cartpole" / "trial_00000" / "checkpoint_000099"
    link.symlink_to(outside / "trial_00000" / "final")
    run = site.run_of("cartpole")
    try:
        for path in (
            str(outside),
            f"{outside}:best",
            f"../../../{outside}",
            "../../elsewhere",
            str(link),
            "trial_00000/checkpoint_000099",
            "/etc",
            "s3://bucket/runs/a",
            str(site.results),
        ):
            body = {"checkpoint": path, "name": "fork"}
            for verb in ("fork", "evaluate", "export", "verify"):
                given = body if verb == "fork" else {"checkpoint": path}
                answer = site.post(f"/api/runs/{run}/{verb}", given)
                assert answer.status in (400, 403), (verb, path)
            config = {"name": "a", "environment": {"env": "CartPole-v1"}, "stop": {"iterations": 1}}
            answer = site.post("/api/runs", {"config": config, "from": path})
            assert answer.status in (400, 403), path
    finally:
        link.unlink()


def test_storages_of_the_server_only(site: Site, tmp_path: Path) -> None:
    config = {"name": "a", "environment": {"env": "CartPole-v1"}, "stop": {"iterations": 1}}
    for body in (
        {"config": config, "storage": str(tmp_path)},
        {"config": config, "storage": f"{site.results}/.."},
        {"config": {**config, "storage_path": str(tmp_path)}},
        {"config": config, "set": [f"storage_path={tmp_path}"]},
    ):
        answer = site.post("/api/runs", body)
        assert answer.status == 403
        assert str(site.results) in answer.document["detail"]


def test_a_run_that_is_a_link_out_of_the_storage_is_left_alone(
    tmp_path: Path,
) -> None:
    FakeRun(tmp_path / "elsewhere", "linked", stop=4).start().train(4)
    with serving(tmp_path) as site:
        (site.results / "linked").symlink_to(tmp_path / "elsewhere" / "linked")
        run = site.run_of("linked")
        for rest in ("", "/curves", "/log", "/events"):
            assert site.get(f"/api/runs/{run}{rest}").status == 403
        for verb in ("resume", "stop", "verify", "prune"):
            assert site.post(f"/api/runs/{run}/{verb}").status == 403


def test_runs_of_another_servers_storage_are_left_alone(tmp_path: Path) -> None:
    """They may be in the same database."""
    database = f"sqlite:///{tmp_path / 'history.db'}"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    FakeRun(tmp_path / "one" / "results", "cartpole", stop=4).start().train(4)
    with serving(tmp_path / "one", database=database) as one:
        run = one.run_of("cartpole")
    with serving(tmp_path / "two", database=database) as two:
        assert two.get("/api/runs").document["total"] == 1
        assert two.post(f"/api/runs/{run}/resume").status == 403
        assert two.get(f"/api/runs/{run}/curves").status == 403


def test_exports_stay_in_their_place(site: Site, tmp_path: Path) -> None:
    run = site.run_of("cartpole")
    (site.data / "exports").mkdir(exist_ok=True)
    (site.data / "exports" / "link").symlink_to(tmp_path)
    for directory in ("../x", "/tmp/x", str(tmp_path / "x"), "link/x", "~/x", "a\0b"):
        body = {"checkpoint": "best", "directory": directory}
        assert site.post(f"/api/runs/{run}/export", body).status in (400, 403), directory
    assert not site.get(f"/api/tasks?run={run}").document["tasks"]


# -- secrets ---------------------------------------------------------------------------------------


def test_secrets_are_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_LICENCE", "the-value-of-the-licence")
    by_name = {"licence_key": {"from_environment": "SIM_LICENCE"}}
    environment = {"env": "CartPole-v1", "env_config": by_name}
    FakeRun(tmp_path / "results", "licensed", stop=4, environment=environment).start().train(4)
    with serving(tmp_path) as site:
        plain = {"env": "CartPole-v1", "env_config": {"password": "hunter2-in-plain"}}
        config = {"name": "a", "environment": plain, "stop": {"iterations": 1}}
        (site.configs / "plain.yaml").write_text(json.dumps(config))
        run = site.run_of("licensed")
        answers = [site.get(f"/api/runs/{run}{rest}") for rest in ("", "/trials", "/checkpoints")]
        answers += [site.get("/api/configs"), site.get("/api/system"), site.get("/metrics")]
        answers.append(site.post("/api/config/check", {"yaml": json.dumps(config)}))
        answers.append(site.post("/api/runs", {"config": config}))
        answers.append(site.post("/api/runs", {"config_path": "plain.yaml"}))
        answers.append(
            site.post(
                f"/api/runs/{run}/resume",
                {"set": ["environment.env_config.token=hunter2-in-plain"]},
            )
        )
        assert b"SIM_LICENCE" in answers[0].body
        for answer in answers:
            assert b"the-value-of-the-licence" not in answer.body
            assert b"hunter2-in-plain" not in answer.body
            assert b"the-token-of-a-test" not in answer.body
        assert [answer.status for answer in answers[-3:]] == [422] * 3
        # Nothing of it was written, either.
        assert [path.name for path in site.configs.iterdir()] == ["plain.yaml"]


# -- hostile names ---------------------------------------------------------------------------------


def test_what_a_problem_quotes_is_printable() -> None:
    """Programs print it on a terminal."""
    errors = [{"line": 1, "key": HOSTILE, "message": HOSTILE}]
    document = json.loads(bytes(problem(422, HOSTILE, errors=errors).body))
    told = [document["detail"], document["errors"][0]["key"], document["errors"][0]["message"]]
    assert all("\x1b" not in text and "\u202e" not in text for text in told)


def test_hostile_names_are_data(tmp_path: Path) -> None:
    hostile = HOSTILE.replace("\udcff", "")
    FakeRun(tmp_path / "results", hostile.replace("/", "-"), stop=4).start().train(4)
    run = FakeRun(tmp_path / "results", "cartpole", stop=9, checkpoint={"score": hostile})
    run.parent = dict.fromkeys(("experiment", "trial", "checkpoint"), hostile)
    run.parent["weights_sha256"] = "0" * 64
    run.start().train(4).fail(hostile)
    run.event(run.trials[0], hostile, hostile)
    (run.place / ".raytrain.lock").write_text(json.dumps({"pid": 1, "host": hostile}))
    with serving(tmp_path) as site:
        site.scan()
        # A name that no config may have is no run: it is told of, and escaped.
        (told,) = site.get("/api/system").document["scan"]["problems"]
        assert "script" in told
        (row,) = site.get("/api/runs").document["runs"]
        assert row["score"]["metric"] == hostile
        assert hostile in row["last_error"]
        paths = [f"/api/runs/{row['id']}{rest}" for rest in ("", "/trials", "/checkpoints")]
        paths += [f"/api/runs/{row['id']}{rest}" for rest in ("/curves", "/timeline")]
        for path in [*paths, "/api/models", "/api/lineage", "/api/system"]:
            answer = site.get(path)
            assert answer.status == 200, answer.body
            assert answer.headers["content-type"] == "application/json"
            assert "\x1b" not in answer.body.decode("ascii")
        families = text_string_to_metric_families(site.get("/metrics").body.decode())
        labels = {s.labels["metric"] for f in families for s in f.samples if "metric" in s.labels}
        assert labels == {hostile}
        detail = site.get(f"/api/compare?ids={row['id']},%3Cscript%3E%1b").document["detail"]
        assert "\x1b" not in detail


def test_a_log_line_is_one_message_whatever_is_in_it(tmp_path: Path) -> None:
    FakeRun(tmp_path / "results", "cartpole", stop=4).start().train(4)
    with serving(tmp_path) as site:
        from raytrain.storage import Location

        run = site.run_of("cartpole")
        place = Location.of(site.results / "cartpole")
        directory = site.app.state.settings.launch_directory(place)
        directory.mkdir(parents=True)
        log = directory / "20260101-000000-000000.log"
        log.write_bytes(b"<script>\x1b[2J\r\ndata: false\revent: x\n\xff\xfe\nlast")
        text = site.get(f"/api/runs/{run}/log?follow=0").body.decode()
        messages = [part for part in text.split("\n\n") if part and not part.startswith(":")]
        assert all(message.startswith("data: ") and "\n" not in message for message in messages)
        found = [json.loads(message.removeprefix("data: ")) for message in messages]
        assert found == ["<script>\x1b[2J", "data: false\revent: x", "\ufffd\ufffd", "last"]
        assert "\r" not in text and "\x1b" not in text
