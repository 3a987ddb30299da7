"""show, list, plot and prune, on a real run that failed once and went on."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from support.checkpoint_children import put
from support.commands import here
from support.running import experiment_of, rows, trial_of

from raytrain import checkpoint
from raytrain.checkpoint import Catalogue, read_manifest
from raytrain.checkpoint.commit import commit, remove_checkpoint
from raytrain.cli.documents import score_note
from raytrain.cluster.restart_counts import RestartCounts
from raytrain.records import read_events
from raytrain.records.row_files import last_row
from raytrain.storage import DirectoryLock, Location, who_writes


@pytest.fixture
def copied(survivor: Path, tmp_path: Path) -> Path:
    """A copy of the experiment, to be damaged and pruned."""
    shutil.copytree(experiment_of(survivor), tmp_path / "results" / "run")
    return tmp_path / "results" / "run"


def names(directory: Path) -> set[str]:
    """The checkpoints of the only trial."""
    (trial,) = directory.glob("trial_*")
    return {str(path.parent.relative_to(trial)) for path in trial.rglob("manifest.json")}


def with_every_kind(experiment: Path) -> Path:
    """Add a stage, a post-mortem state and a damaged checkpoint in quarantine; the trial."""
    (trial,) = experiment.glob("trial_*")
    place = Location.of(trial)
    source = trial / "checkpoint_000002"
    manifest = replace(read_manifest(Location.of(source)), files=())
    for name, kind in (
        ("stages/easy", "stage"),
        ("error_000003", "error"),
        ("checkpoint_000001", "periodic"),
    ):
        staging = trial.parent / "staging"
        shutil.copytree(source, staging, ignore=shutil.ignore_patterns("manifest.json"))
        stage = "easy" if kind == "stage" else None
        commit(staging, place / name, replace(manifest, kind=kind, stage=stage))
        shutil.rmtree(staging)
    damage(trial / "checkpoint_000001")
    (entry,) = [each for each in Catalogue(place).entries() if each.path == "checkpoint_000001"]
    Catalogue(place).quarantine(entry)
    return trial


def damage(directory: Path) -> None:
    victim = directory / "policy.safetensors"
    raw = bytearray(victim.read_bytes())
    raw[-1] ^= 1
    victim.write_bytes(raw)


# show


def test_show_gives_every_checkpoint_its_score_under_the_present_metric(copied: Path) -> None:
    file = copied / "experiment.json"
    document = json.loads(file.read_text())
    document["config"]["checkpoint"]["score"] = "learners/default_policy/entropy"
    file.write_text(json.dumps(document))
    (trial,) = here("show", copied, "--json").document["trials"]
    entropies = {
        row["training_iteration"]: row["learners"]["default_policy"]["entropy"]
        for row in rows(next(copied.glob("trial_*")))
    }
    assert trial["checkpoints"]
    for each in trial["checkpoints"]:
        assert each["score"] == entropies[each["iteration"]]


def test_show_tells_of_the_failure_and_of_the_time_it_cost(survivor: Path) -> None:
    found = here("show", experiment_of(survivor), "--json")
    assert (found.code, found.err) == (0, "")
    document = found.document
    assert (document["name"], document["state"], document["writer"]) == ("run", "finished", None)
    (trial,) = document["trials"]
    records = rows(trial_of(survivor))
    assert (trial["state"], trial["iteration"], trial["progress"]) == ("finished", 6, 1.0)
    assert trial["timesteps"] == records[-1]["num_env_steps_sampled_lifetime"]
    assert trial["best_score"] == max(
        records[i - 1]["recent"]["episode_return_mean"] for i in (2, 4, 6)
    )
    last = records[-1]["recent"]
    assert trial["last_score"] == last["episode_return_mean"]
    assert trial["last_score_episodes"] == last["episodes"] > 40
    assert trial["failures_survived"] == 1
    # Iteration 3 was trained twice, and for a moment nothing was trained at all.
    assert 0 < trial["redone_s"] < 3600 and 0 < trial["away_s"] < 3600
    (event,) = [
        e for e in read_events(trial_of(survivor) / "events.jsonl") if e.redone_s is not None
    ]
    assert (event.kind, event.attempt, event.iteration) == ("recovered", 2, 2)
    assert (event.redone_s, event.away_s) == (trial["redone_s"], trial["away_s"])

    text = here("show", experiment_of(survivor)).out
    assert "trial_00000: finished, iteration 6, " in text
    assert f"last {trial['last_score']:.6g} over {last['episodes']} episodes\n" in text
    assert "survived 1 failure; " in text and "trained again" in text


def test_show_gives_the_command_for_each_checkpoint(copied: Path) -> None:
    trial = with_every_kind(copied)
    damage(trial / "checkpoint_000004")
    (trial / "checkpoint_000004" / "policy.json").unlink()
    (found,) = here("show", copied, "--json").document["trials"]
    resume = {each["path"]: each["resume"] for each in found["checkpoints"]}
    assert resume["final"] == f"python -m raytrain resume {copied}"
    name = "run-from-checkpoint_000002"
    fork = f"python -m raytrain fork {trial}/checkpoint_000002 --name {name}"
    assert resume["checkpoint_000002"] == fork
    assert resume["stages/easy"] == f"python -m raytrain resume {copied} --from-stage easy"
    assert resume["error_000003"] is None
    assert resume["quarantine/checkpoint_000001"] is None
    assert resume["checkpoint_000004"] is None
    by_path = {each["path"]: each for each in found["checkpoints"]}
    assert by_path["stages/easy"]["stage"] == "easy"
    assert "policy.json: missing file" in by_path["checkpoint_000004"]["problem"]
    for path in ("final", "checkpoint_000002"):
        size = sum(file.stat().st_size for file in (trial / path).rglob("*") if file.is_file())
        assert by_path[path]["size_bytes"] == size
    text = here("show", copied).out
    assert f"\n  python -m raytrain resume {copied}\n" in text
    assert f"\n  {resume['stages/easy']}    # trial_00000/stages/easy" in text


def test_show_tells_how_a_trial_ended_and_what_was_taken_from_it(copied: Path) -> None:
    (trial,) = copied.glob("trial_*")
    remove_checkpoint(Location.of(trial / "final"))
    losses = RestartCounts(Location.of(trial))
    for kind in ("failure", "lost_node", "preemption", "preemption"):
        losses.add(kind)
    losses.ended("ValueError: the simulator is out of fuel")
    (found,) = here("show", copied, "--json").document["trials"]
    assert (found["state"], found["lost_nodes"], found["preemptions"]) == ("failed", 1, 2)
    assert found["last_error"] == "ValueError: the simulator is out of fuel"
    text = here("show", copied).out
    assert "\n  nodes lost: 1, preemptions: 2 (not counted against failure.max_failures)\n" in text
    assert "\n  ValueError: the simulator is out of fuel\n" in text
    RestartCounts(Location.of(trial)).started()
    (found,) = here("show", copied, "--json").document["trials"]
    assert (found["state"], found["last_error"], found["lost_nodes"]) == ("stopped", None, 1)


def test_show_says_who_is_running_and_how_far(copied: Path) -> None:
    (trial,) = copied.glob("trial_*")
    remove_checkpoint(Location.of(trial / "final"))
    stored = json.loads((copied / "experiment.json").read_text())
    stored["config"]["stop"] = {"timesteps": 4 * rows(trial)[-1]["num_env_steps_sampled_lifetime"]}
    (copied / "experiment.json").write_text(json.dumps(stored))
    with DirectoryLock(Location.of(copied)), DirectoryLock(Location.of(trial)):
        document = here("show", copied, "--json").document
        assert document["state"] == document["trials"][0]["state"] == "running"
        assert document["writer"].startswith("process ")
    document = here("show", copied, "--json").document
    assert document["state"] == document["trials"][0]["state"] == "stopped"
    assert document["trials"][0]["progress"] == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("command", ["show", "plot", "prune"])
def test_a_directory_that_is_no_experiment(command: str, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        found = here(command, place)
        assert (found.code, found.out) == (2, "")
        assert str(place) in found.err


def test_the_last_row_is_the_last_whole_one(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    assert last_row(Location.of(file)) is None
    file.write_bytes(
        b'{"training_iteration": 1}\n' + b" " * (1 << 20) + b'\n{"training_iteration": 2}\n{"a": '
    )
    assert last_row(Location.of(file)) == {"training_iteration": 2}
    memory = Location.of(f"memory://{tmp_path.name}/result.json")
    Location.of(file).copy_file(memory)
    assert last_row(memory) == {"training_iteration": 2}


# list


def test_list_is_newest_first_and_passes_over_what_it_cannot_read(
    survivor: Path, copied: Path
) -> None:
    storage = copied.parent
    older = shutil.copytree(copied, storage / "older")
    stored = json.loads((older / "experiment.json").read_text())
    (older / "experiment.json").write_text(
        json.dumps({**stored, "name": "older", "first_start": "2020-01-01T00:00:00+00:00"})
    )
    (older_trial,) = older.glob("trial_*")
    shutil.rmtree(older_trial)
    (shutil.copytree(older, storage / "broken") / "experiment.json").write_text("{")
    (storage / "notes").mkdir()
    found = here("list", storage, "--json")
    assert found.code == 0
    assert [row["name"] for row in found.document] == ["run", "older"]
    assert "broken/experiment.json is damaged" in found.err
    run, empty = found.document
    (trial,) = here("show", copied, "--json").document["trials"]
    assert (run["state"], run["trials"], run["finished"]) == ("finished", 1, 1)
    assert (run["best_score"], run["timesteps"]) == (trial["best_score"], trial["timesteps"])
    assert (empty["state"], empty["trials"], empty["best_score"]) == ("empty", 0, None)
    lines = here("list", storage).out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["run", "finished"], ["older", "empty"]]


def test_list_where_there_are_no_experiments(tmp_path: Path) -> None:
    assert "no experiment" in here("list", tmp_path).out
    assert here("list", tmp_path, "--json").document == []
    assert here("list", tmp_path / "missing").code == 2


# plot


def test_plot_marks_failures_and_stages(copied: Path) -> None:
    with_every_kind(copied)
    written = here("plot", copied)
    assert (written.code, written.out) == (0, f"{copied}/curves.png\n")
    assert (copied / "curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    svg = copied / "curves.svg"
    assert here("plot", copied, "--out", svg, "--metric", "episode_len_mean").code == 0
    # Text is drawn as shapes, each with its text in a comment.
    drawn = svg.read_text()
    ElementTree.fromstring(drawn)
    assert here("plot", copied, "--out", copied / "score.svg").code == 0
    # The score is drawn as it chooses `best`, and RLlib's metric as it is.
    assert "<!-- episode_return_mean (score) -->" in (copied / "score.svg").read_text()
    for text in ("episode_len_mean", "easy", "trial_00000: continued after a failure (1)"):
        assert f"<!-- {text} -->" in drawn


def test_plot_refuses_what_it_cannot_draw(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, said in (
        (["--out", copied / "curves.pdf"], ".png or .svg"),
        (["--out", copied / "missing" / "curves.png"], "there is no directory"),
        (["--metric", "profit"], "no iteration has a number for 'profit'"),
        (["--metric", "episode_len_meen"], "The most similar metrics: episode_len_mean, "),
    ):
        found = here("plot", copied, *arguments)
        assert (found.code, found.out) == (2, "") and said in found.err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = here("plot", copied)
    assert found.code == 2 and 'pip install "raytrain[plot]"' in found.err


# prune


def test_prune_deletes_nothing_until_it_is_told_to(copied: Path) -> None:
    trial = with_every_kind(copied)
    before = names(copied)
    found = here("prune", copied, "--json")
    assert (found.code, found.document["deleted"]) == (0, False)
    assert [each["path"] for each in found.document["delete"]] == ["trial_00000/checkpoint_000002"]
    size = sum(
        each.stat().st_size for each in (trial / "checkpoint_000002").rglob("*") if each.is_file()
    )
    assert found.document["frees_bytes"] == size
    said = here("prune", copied).out
    assert "Would delete 1 checkpoint, " in said and "--yes" in said
    assert names(copied) == before

    done = here("prune", copied, "--yes", "--json").document
    assert {**done, "deleted": False} == found.document
    assert before - names(copied) == {"checkpoint_000002"}
    assert here("verify", trial / "checkpoint_000004").code == 0
    assert "Nothing to delete." in here("prune", copied, "--yes").out


def test_prune_takes_more_when_it_is_asked_to(copied: Path) -> None:
    with_every_kind(copied)
    before = names(copied)
    assert here("prune", copied, "--yes", "--keep", 2, "--errors").code == 0
    assert before - names(copied) == {"error_000003"}
    assert here("prune", copied, "--yes", "--quarantine").code == 0
    gone = {"error_000003", "checkpoint_000002", "quarantine/checkpoint_000001"}
    assert before - names(copied) == gone
    assert {"best", "final", "stages/easy", "checkpoint_000004"} == names(copied)


def test_prune_keeps_the_newest_that_is_good_to_the_last_byte(copied: Path) -> None:
    """Its sizes are right, so only reading all of it tells that the newest one is damaged."""
    (trial,) = copied.glob("trial_*")
    damage(trial / "checkpoint_000004")
    assert here("prune", copied, "--yes").out == "Nothing to delete.\n"
    damage(trial / "checkpoint_000002")
    assert here("prune", copied, "--yes").out == "Nothing to delete.\n"
    assert {"checkpoint_000002", "checkpoint_000004"} < names(copied)


def test_prune_leaves_damage_for_those_who_look_into_it(copied: Path) -> None:
    (trial,) = copied.glob("trial_*")
    (trial / "checkpoint_000002" / "policy.json").unlink()
    assert here("prune", copied, "--yes").out == "Nothing to delete.\n"
    assert "checkpoint_000002" in names(copied)


@pytest.mark.parametrize("changes", [{"attempt": 0}, {"run_id": "another"}], ids=str)
def test_what_the_next_start_would_set_aside_is_not_what_prune_keeps(
    copied: Path, tmp_path: Path, changes: Any
) -> None:
    (trial,) = copied.glob("trial_*")
    run = checkpoint.ExperimentFile.read(Location.of(copied))
    assert run is not None
    put(Location.of(trial), tmp_path, 98, **{"run_id": run.run_id, "attempt": 1, **changes})
    ended = here("prune", copied, "--yes")
    assert ended.code == 0
    assert {"checkpoint_000098", "checkpoint_000004"} < names(copied)


def test_prune_is_refused_while_somebody_writes(copied: Path) -> None:
    (trial,) = copied.glob("trial_*")
    before = names(copied)
    for place in (copied, trial):
        with DirectoryLock(Location.of(place)):
            found = here("prune", copied, "--yes")
        assert (found.code, found.out) == (1, "")
        assert f"{place} is being written by process" in found.err
    with DirectoryLock(Location.of(copied)):
        assert here("prune", trial, "--yes").code == 1
    assert names(copied) == before
    assert here("prune", trial, "--yes").code == 0
    assert before - names(copied) == {"checkpoint_000002"}


def test_prune_on_other_storage_takes_the_manifest_first(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"memory://{copied.parent.parent.name}/run"
    Location.of(copied).copy_tree(Location.of(uri))
    deleted: list[str] = []
    original = Location.delete_file

    def delete_file(self: Location) -> None:
        deleted.append(self.path)
        original(self)

    monkeypatch.setattr(Location, "delete_file", delete_file)
    found = here("prune", uri, "--yes", "--json")
    assert found.code == 0, found.err
    (gone,) = [each["path"] for each in found.document["delete"]]
    assert gone == "trial_00000/checkpoint_000002"
    of_it = [path for path in deleted if gone in path and not path.endswith(".incomplete")]
    assert of_it[0].endswith(f"{gone}/manifest.json") and len(of_it) > 5
    left = {entry.path for entry in Catalogue(Location.of(f"{uri}/trial_00000")).entries()}
    assert left == {"best", "final", "checkpoint_000004"}
    assert who_writes(Location.of(uri)) is None
    (trial,) = here("show", uri, "--json").document["trials"]
    assert (trial["state"], trial["failures_survived"]) == ("finished", 1)


def test_a_run_goes_on_after_a_prune(copied: Path, survivor: Path) -> None:
    """What is left is enough: the newest good checkpoint is chosen."""
    assert here("prune", copied, "--yes").code == 0
    choice = checkpoint.Catalogue(Location.of(copied / "trial_00000")).choose_for_resume()
    assert choice is not None and choice.entry is not None and choice.entry.iteration == 6
    remove_checkpoint(Location.of(copied / "trial_00000" / "final"))
    choice = checkpoint.Catalogue(Location.of(copied / "trial_00000")).choose_for_resume()
    assert choice is not None and choice.entry is not None and choice.entry.iteration >= 4


@pytest.fixture(autouse=True)
def called_as_a_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands to copy begin with how this program was called."""
    monkeypatch.setattr(sys, "argv", ["-m"])
    yield


def test_scores_of_different_metrics_are_noted() -> None:
    """After `checkpoint.score` was changed; a checkpoint of a former version has no label."""

    def checkpoints(*metrics: str | None) -> list[Any]:
        labels = [
            {} if metric is None else {"checkpoint": {"metric": metric}} for metric in metrics
        ]
        manifests = [SimpleNamespace(score=1.0, metrics=label) for label in labels]
        return [SimpleNamespace(manifest=manifest) for manifest in manifests]

    assert not score_note(checkpoints("profit", "profit", None))
    note = score_note(checkpoints("profit", "episode_return_mean", "profit"))
    assert note.startswith("The scores are of different metrics (episode_return_mean, profit): ")
