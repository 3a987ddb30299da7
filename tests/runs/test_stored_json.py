"""JSON on storage may be anything: it is damage then, and never a crash, an endless read or
a wrong number."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.checkpoint_children import manifest, put

from raytrain.checkpoint import Catalogue, Manifest, Parent, resolve
from raytrain.checkpoint.manifest import ManifestError
from raytrain.checkpoint.resolve import entries_at
from raytrain.cli.documents import manifest_text
from raytrain.cli.tables import list_text, show_text
from raytrain.commands import plot, prune, status
from raytrain.commands.checkpoint_documents import manifest_document
from raytrain.driver.tuner import read_tune_files
from raytrain.errors import BadInput, RaytrainError
from raytrain.policy.format import _parse_json
from raytrain.policy.spaces import PolicyFormatError
from raytrain.records.downtime import time_lost
from raytrain.records.row_files import last_row
from raytrain.storage import Location, who_writes
from raytrain.storage.json import DEEPEST, LARGEST, json_ready, moment, parse_json
from raytrain.storage.lock import LOCK_NAME, DirectoryLock
from raytrain.storage.signing import KEY_VARIABLE
from raytrain.trial.fencing import FencingToken
from raytrain.trial.last_failure import LAST_FAILURE, repeated_failure

TRIAL, NEWEST = "trial_00000", "trial_00000/checkpoint_000002"


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    "text",
    [
        nested(DEEPEST),
        b'{"a":' * DEEPEST + b"1" + b"}" * DEEPEST,
        b"[" + b"[]," * 1000 + b"[]]",
        b'["' + b"[{" * 1000 + b'"]',
        b'["\\"' + b"[{" * 1000 + b'", "\\\\", {}]',
        b"9" * 300,
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_within_the_bounds_is_parsed(text: bytes) -> None:
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (nested(DEEPEST + 1), "nested deeper than 100 levels"),
        (b'["\\\\",' + nested(DEEPEST) + b"]", "nested deeper"),
        (b'{"\\"[": ' + nested(DEEPEST) + b"}", "nested deeper"),
        (b"[" * 1_000_000, "nested deeper"),
        (b'"' * 100_001, "Extra data"),
        (b'["' + b'\\"' * 1_000_000 + b"[" * 200, "Unterminated string"),
        (b'"' + b"x" * LARGEST + b'"', "larger than 16,777,216 bytes"),
        (b"9" * 301, "has 301 digits"),
        (json.dumps([[]] * 99).encode("utf-16"), "codec can't decode"),
    ],
)
def test_what_is_not_is_refused_before_it_is_parsed(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_json(text)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "x"])
def test_a_moment_that_no_calendar_has_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"year|Invalid"):
        moment(text)


def test_a_manifest_that_could_not_be_read_again_is_not_written() -> None:
    metrics: Any = {}
    for _ in range(DEEPEST):
        metrics = {"deeper": metrics}
    with pytest.raises(ManifestError, match="to be written: it is nested deeper"):
        manifest(1, metrics=metrics).to_json()
    inner = metrics["deeper"]["deeper"]
    assert Manifest.from_json(manifest(1, metrics=inner).to_json(), "x").metrics == inner


# -- every file of an experiment -----------------------------------------------------------------

MOMENT = "2026-01-01T00:00:00+00:00"
PARENT = {"experiment": "e", "trial": "t", "checkpoint": "best", "weights_sha256": "0" * 64}
ROW = {
    "training_iteration": 2,
    "timestamp": 1.7e9,
    "time_total_s": 3.0,
    "num_env_steps_sampled_lifetime": 100,
    "num_episodes_lifetime": 3,
    "env_runners": {"episode_return_mean": 3.0},
    "custom": {},
    "checkpoint": {"score": 1.0, "episodes": 3},
}
LOCK = {"pid": 1, "host": "node-b", "started": MOMENT, "renewed": 1.0}
FILES: dict[str, dict[str, Any]] = {
    "experiment.json": {
        "format": 1,
        "name": "exp",
        "run_id": "r0",
        "config": {"environment": {"env": "CartPole-v1"}, "stop": {"iterations": 9}},
        "config_digest": "d",
        "snapshot": {},
        "versions": {"raytrain": "0.1.0"},
        "first_start": MOMENT,
        "parent": PARENT,
        "fork": {"ancestors": [{**PARENT, "iteration": 1, "timesteps": 2}]},
    },
    LOCK_NAME: LOCK,
    f"{TRIAL}/{LOCK_NAME}": LOCK,
    f"{TRIAL}/attempts/000004.0f.json": {"began_after": 6},
    f"{TRIAL}/losses.json": {"failure": 1, "lost_node": 2, "preemption": 1, "ended_with": None},
    f"{TRIAL}/{LAST_FAILURE}": {"iteration": 3, "error": "x", "time": MOMENT},
    f"{TRIAL}/events.jsonl": {
        "time": 1.0,
        "attempt": 2,
        "iteration": 3,
        "kind": "recovered",
        "message": "m",
        "redone_s": 1.0,
        "away_s": 2.0,
    },
    f"{TRIAL}/result.json": ROW,
    f"{NEWEST}/manifest.json": {},
    "experiment_state-1.json": {"trial_data": [['{"custom_dirname": "a", "status": "b"}', "{}"]]},
}
DOCUMENTS = (
    b"",
    b"\xff",
    b"[]",
    b"{}",
    b"null",
    b"1",
    b'"x"',
    b'"\\',
    b"1" * 5000,
    b"[" * 100_000,
    nested(300),
    nested(900),
    b'{"a":' * 900 + b"1" + b"}" * 900,
)
VALUES: tuple[Any, ...] = (
    [], None, "\ud800", float("inf"), float("nan"), -1, 10**299, 10**400, 1.7e308,
     "0001-01-01T00:00:00+14:00",
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one experiment, which has every file."""
    results = tmp_path_factory.mktemp("results")
    experiment = results / "exp"
    metrics = {**ROW, "curriculum": {"stage": 1, "stages": 2}}
    for iteration in (1, 2):
        changes = {"metrics": metrics, "stage": "easy", "parent": Parent(**PARENT)}
        put(Location.of(experiment / TRIAL), results, iteration, **changes)
    (experiment / "tuner.pkl").write_bytes(b"\x80\x04N.")
    for path, document in FILES.items():
        if document:
            (experiment / path).parent.mkdir(exist_ok=True)
            (experiment / path).write_text(json.dumps(document) + "\n")
        else:
            document.update(json.loads((experiment / path).read_text()))
    return results


def spoiled(document: dict[str, Any]) -> Iterator[bytes]:
    """Other documents, and this one with another value at each of its keys."""
    yield from DOCUMENTS

    def keys(value: Any, above: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        for key in value if isinstance(value, dict) else ():
            yield (*above, key)
            yield from keys(value[key], (*above, key))
        for index, each in enumerate(value[:1] if isinstance(value, list) else ()):
            yield from keys(each, (*above, index))

    for path in keys(document, ()):
        for value in VALUES:
            copy = json.loads(json.dumps(document))
            holder = copy
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = value
            yield json.dumps(copy).encode() + b"\n"


def readers(results: Path, file: str) -> Iterator[Callable[[], object]]:
    """What reads such a file without Ray."""
    experiment = Location.of(results / "exp")
    trial = experiment / TRIAL

    def show() -> None:
        found = status.view(experiment)
        show_text(found)
        list_text([found])
        json.dumps(json_ready(found.to_dict()), allow_nan=False)

    def inspect() -> None:
        entry = resolve(str(experiment))
        manifest_text(entry, manifest_document(entry))
        json.dumps(json_ready(manifest_document(entry)), allow_nan=False)

    yield show
    yield lambda: FencingToken(trial, DirectoryLock(trial))._before()
    yield lambda: (who_writes(experiment), who_writes(trial))
    yield lambda: repeated_failure(trial, 3, ValueError("x"))
    yield lambda: time_lost(last_row(trial / "result.json"), None, attempt=2, now=5.0)
    yield lambda: read_tune_files(experiment)
    if file.endswith((".jsonl", "result.json")):
        yield lambda: plot.plot(str(experiment), out=str(results / "x.png"))
        yield lambda: plot.plot(str(experiment), out=str(results / "x.png"), metric="profit")
    if file in ("experiment.json", f"{NEWEST}/manifest.json"):
        yield inspect
        yield lambda: status.views(str(results))
        yield lambda: entries_at(str(experiment))
        yield lambda: Catalogue(trial).choose_for_resume()
        yield lambda: prune.plan(str(experiment), prune.Rule(1, True, True))


@pytest.mark.parametrize("file", FILES)
def test_no_document_ends_in_a_crash(
    results: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "_draw", lambda *drawn: None)
    path = results / "exp" / file
    before = path.read_bytes()
    try:
        for data in spoiled(FILES[file]):
            path.write_bytes(data)
            for action in readers(results, file):
                try:
                    with suppress(RaytrainError):
                        action()
                except Exception as error:
                    raise AssertionError(f"{file}: {data[:300]!r}") from error
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("document", [nested(900), b'{"a":' * 900 + b"1" + b"}" * 900])
@pytest.mark.parametrize("key", [None, "k" * 32])
def test_a_manifest_nested_deep_is_damage(
    tmp_path: Path, document: bytes, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if key is not None:
        monkeypatch.setenv(KEY_VARIABLE, key)
    trial = Location.of(tmp_path / TRIAL)
    for iteration in (1, 2):
        put(trial, tmp_path, iteration)
    file = trial / "checkpoint_000002" / "manifest.json"
    file.write_bytes(
        file.read_bytes().replace(b'"metrics": {', b'"metrics": {"a": ' + document + b",")
    )
    choice = Catalogue(trial).choose_for_resume()
    assert choice is not None and choice.entry is not None
    assert choice.entry.path == "checkpoint_000001"
    (damaged,) = choice.damaged
    assert damaged.problem is not None and "nested deeper than 100 levels" in damaged.problem


def test_no_more_is_read_of_a_huge_file_than_may_be_parsed(results: Path) -> None:
    experiment = results / "exp"
    lines = {f"{TRIAL}/events.jsonl", f"{TRIAL}/result.json"}
    for file in FILES.keys() - lines - {"experiment_state-1.json"}:
        before = (experiment / file).read_bytes()
        with open(experiment / file, "r+b") as stream:
            stream.truncate(1 << 40)  # It takes no space on the disk, but as much memory.
        try:
            for action in readers(results, file):
                with suppress(RaytrainError):
                    action()
        finally:
            (experiment / file).write_bytes(before)


def test_a_damaged_experiment_file_says_what_is_wrong(results: Path) -> None:
    file = results / "exp" / "experiment.json"
    before = file.read_bytes()
    try:
        file.write_text(json.dumps({**FILES["experiment.json"], "config": [1]}))
        with pytest.raises(
            BadInput, match=r"is damaged \(config: must be .*found \[1\]\). Delete it"
        ):
            status.view(str(results / "exp"))
    finally:
        file.write_bytes(before)


def test_a_policy_nested_deep_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(PolicyFormatError, match=r"is damaged: not JSON .it is nested deeper"):
        _parse_json(tmp_path / "policy.json", nested(900))
