"""What nodes computed, compared with the run and with each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.running import TINY
from typer.testing import CliRunner

from raytrain.checkpoint import Manifest
from raytrain.cli import app
from raytrain.cli.tables import nodes_text
from raytrain.commands.audit import require_still_there
from raytrain.commands.audit_nodes import AuditOnNodes, TrialOnNodes, compared
from raytrain.commands.retraining import (
    CannotAudit,
    Difference,
    Retrained,
    Stretch,
    train_again_on_node,
)
from raytrain.config import config_from_dict
from raytrain.versions import versions

ZEN = {"cpu": "AMD EPYC 7763", "libraries": "openblas 0.3.31 Zen, torch AVX2"}
SKYLAKE = {"cpu": "Intel Xeon 8375C", "libraries": "openblas 0.3.31 SkylakeX, torch AVX512"}
SAME, OTHER, THIRD = "a" * 64, "b" * 64, "c" * 64


def stretch(root: str = "/results/run") -> Stretch:
    written = Manifest(
        kind="periodic",
        experiment="run",
        trial_id="0",
        run_id="0",
        attempt=1,
        iteration=6,
        timesteps=6,
        episodes=6,
        stage=None,
        score=None,
        metrics={},
        config_digest="",
        weights_sha256=SAME,
        parent=None,
        exact=True,
        exact_lost=None,
        snapshot_strategy="pickle",
        versions=versions(),
        created_at="2026-01-01T00:00:00+00:00",
        arithmetic={"learner": {"fingerprint": "1:aa", "machine": ZEN}},
    )
    return Stretch(
        root=root,
        trial="trial_00000",
        checkpoint="trial_00000/checkpoint_000004",
        start=4,
        end=6,
        weights_sha256=SAME,
        written=written,
        config=config_from_dict({**TINY, "storage_path": root}),
        snapshot={},
        settings=None,
        is_signed=False,
    )


EQUAL = Retrained(None, 2, {5: OTHER, 6: SAME}, {"learner": ("1:aa", ZEN)}, {})
DIFFERS = Retrained(
    Difference(
        5,
        {"weights_sha256": (SAME, THIRD)},
    ),
    1,
    {5: THIRD},
    {"learner": ("1:bb", SKYLAKE)},
    {},
)


def text(**answers: Any) -> tuple[TrialOnNodes, str]:
    found = compared(stretch(), answers)
    return found, nodes_text(AuditOnNodes("/results/run", (found,)))


def test_nodes_that_compute_as_the_run_are_equal() -> None:
    found, said = text(one=EQUAL, two=EQUAL)
    assert found.equal
    assert found.agreeing == []
    assert said.splitlines()[0] == "trial_00000: iterations 5 to 6 trained again on 2 nodes:"
    assert [line.split() for line in said.splitlines()[2:]] == [
        [name, "equal", "6", SAME[:12]] for name in ("one", "two")
    ]


def test_a_node_that_differs_is_named_with_its_arithmetic() -> None:
    found, said = text(one=EQUAL, two=DIFFERS)
    assert not found.equal
    (line,) = [line for line in said.splitlines() if line.startswith("two")]
    assert line.split()[:5] == ["two", "NOT", "equal", "5", THIRD[:12]]
    assert line.endswith(
        "Intel Xeon 8375C with openblas 0.3.31 SkylakeX, torch AVX512; the run began on "
        "AMD EPYC 7763 with openblas 0.3.31 Zen, torch AVX2"
    )
    assert found.agreeing == [["two"]]
    document = json.loads(json.dumps(found.to_dict()))
    assert [node["equal"] for node in document["nodes"]] == [True, False]
    assert document["nodes"][1]["digests"] == {"5": THIRD}
    assert document["nodes"][1]["difference"]["iteration"] == 5


def test_nodes_that_differ_alike_are_told_from_those_that_do_not() -> None:
    later = replace(DIFFERS, difference=Difference(6, {"weights_sha256": (SAME, OTHER)}))
    found, said = text(one=DIFFERS, two=later, three=DIFFERS, four=EQUAL)
    assert found.agreeing == [["one", "three"], ["two"]]
    assert "These nodes computed the same numbers: one, three.\n" in said
    assert "So the run was trained" not in said


def test_nodes_that_agree_against_the_run_blame_the_run() -> None:
    found, said = text(one=DIFFERS, two=DIFFERS)
    assert found.agreeing == [["one", "two"]]
    assert said.endswith("or a checkpoint or a record was changed.\n")


def test_what_differs_on_the_same_arithmetic_is_the_metric() -> None:
    what = {"env_runners/x": (1.0, 2.0)}
    found, said = text(one=replace(EQUAL, difference=Difference(6, what)))
    assert not found.equal
    assert "env_runners/x: 1.0 on storage, 2.0 now" in said


def test_a_node_that_cannot_read_the_storage_is_named_with_the_reason() -> None:
    here = stretch("/nowhere/at/all")
    found = compared(here, {"one": EQUAL, "two": train_again_on_node(here)})
    assert not found.equal
    assert found.nodes[1].audit is None
    said = nodes_text(AuditOnNodes("/nowhere/at/all", (found,)))
    (line,) = [line for line in said.splitlines() if line.startswith("two")]
    assert "not known" in line
    assert "/nowhere/at/all/trial_00000/checkpoint_000004" in line


def test_a_checkpoint_that_the_run_has_deleted_meanwhile_is_told(tmp_path: Path) -> None:
    here = stretch(str(tmp_path))
    with pytest.raises(CannotAudit, match=r"checkpoint_000004 was deleted since the audit began"):
        require_still_there(here)
    (tmp_path / here.checkpoint).mkdir(parents=True)
    (tmp_path / here.checkpoint / "manifest.json").touch()
    require_still_there(here)


def test_a_node_without_the_key_reads_nothing_of_a_signed_run() -> None:
    said = train_again_on_node(replace(stretch(), is_signed=True))
    assert said == (
        "/results/run is signed, but RAYTRAIN_SIGNING_KEY is not set on this machine. Set it "
        "there, in the environment in which Ray is started."
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--on-every-node"], "`--on-every-node` needs a running cluster: give its address"),
        (["--address", "127.0.0.1:1"], "--address is for --on-every-node"),
    ],
)
def test_a_cluster_is_needed(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ended = CliRunner().invoke(app, ["audit", "nothing", *options])
    assert ended.exit_code == 2
    assert said in ended.output
