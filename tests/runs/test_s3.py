"""A trial's directory on an S3 store: whole, slow, failing, and gone."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkpoint_children import FILES, manifest, put
from support.s3_store import SECRET, Proxy

from raytrain.checkpoint import BestPolicy, Catalogue, RetentionPolicy, read_manifest
from raytrain.checkpoint.verify import check
from raytrain.errors import BadInput
from raytrain.storage import DirectoryLock, Location, Locked, StorageError, retry
from raytrain.storage.lock import Times as LockTimes
from raytrain.storage.retry import Retries, may_pass
from raytrain.trial.directory import SavesFailing, TrialDirectory
from raytrain.trial.fencing import Superseded


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Retries]:
    """A process that has met no store yet, and waits less."""
    fresh = Retries()
    monkeypatch.setattr(retry, "STORE", fresh)
    for module in ("checkpoint.background_commit", "storage.location", "trial.directory"):
        monkeypatch.setattr(f"raytrain.{module}.STORE", fresh)
    monkeypatch.setattr(retry, "TELL_AFTER_S", 0.2)
    monkeypatch.setattr(retry, "_LONGEST_PAUSE_S", 0.5)
    yield fresh


def new_place() -> Location:
    return Location.of(f"s3://bucket/{uuid.uuid4().hex}/trial_00000")


def opened(place: Location, failed_saves: int = 1) -> TrialDirectory:
    directory = TrialDirectory(
        place,
        retention=RetentionPolicy(2),
        best=BestPolicy(),
        max_failed_saves=failed_saves,
        node="here",
        node_is_gone=lambda node: False,
    )
    entry = directory.open()
    at = entry.iteration if entry else 0
    directory.open_records(resume_from=at, next_episode=at)
    return directory


def train(directory: TrialDirectory, iterations: range) -> None:
    for iteration in iterations:
        episode = {"group": 0, "env_index": 0, "return": 1.0, "length": 5}
        directory.record({"training_iteration": iteration, "x": 0.5}, [episode], iteration)


def write(directory: Path) -> None:
    for name, data in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)


def save(directory: TrialDirectory, iteration: int) -> None:
    written = manifest(iteration, attempt=directory.attempt)
    directory.save(f"checkpoint_{iteration:06d}", written, write)


def iterations_on(place: Location) -> list[int]:
    lines = (place / "result.json").read_bytes().splitlines()
    return [json.loads(line)["training_iteration"] for line in lines]


def good_ones(place: Location) -> list[str]:
    entries = Catalogue(place).entries(verify=True)
    assert [e.problem for e in entries] == [None] * len(entries)
    return sorted(entry.path for entry in entries)


def flip(file: Location) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def cut(file: Location) -> None:
    file.write_bytes(file.read_bytes()[:-7])


SLOW = pytest.mark.slow
DAMAGES = [flip, pytest.param(cut, marks=SLOW), pytest.param(Location.delete_file, marks=SLOW)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_commit_keep_damage_and_continue(s3: int, store: Retries, damage: object) -> None:
    place = new_place()
    directory = opened(place)
    for iteration in (2, 4, 6):
        train(directory, range(iteration - 1, iteration + 1))
        save(directory, iteration)
        assert [o.ok for o in directory.poll(wait=True)] == [True]
    train(directory, range(7, 8))
    directory.close()
    assert good_ones(place) == ["best", "checkpoint_000004", "checkpoint_000006"]
    assert iterations_on(place) == [1, 2, 3, 4, 5, 6]
    (place / "best").delete_tree()
    damage(place / "checkpoint_000006/learner_group/learner/state.pkl")  # type: ignore[operator]

    again = opened(place)
    again.open_records(resume_from=4, next_episode=4)
    train(again, range(5, 7))
    save(again, 6)
    assert [o.ok for o in again.poll(wait=True)] == [True]
    again.close()
    of_the_second = "checkpoint_000006.2"  # Each attempt has names of its own.
    assert good_ones_outside_quarantine(place) == ["best", "checkpoint_000004", of_the_second]
    assert (place / "quarantine/checkpoint_000006/manifest.json").exists()
    assert iterations_on(place) == [1, 2, 3, 4, 5, 6]
    assert again.attempt == 2


def good_ones_outside_quarantine(place: Location) -> list[str]:
    entries = [e for e in Catalogue(place).entries(verify=True) if not e.in_quarantine]
    assert [e.problem for e in entries] == [None] * len(entries)
    return sorted(entry.path for entry in entries)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["drop", "errors"])
def test_requests_that_fail_now_and_then_are_nobodys_concern(
    s3_proxy: Proxy, store: Retries, mode: str
) -> None:
    place = new_place()
    directory = opened(place)
    s3_proxy.set(mode, share=0.2)
    for iteration in (1, 2, 3):
        train(directory, range(iteration, iteration + 1))
        save(directory, iteration)
        assert [o.ok for o in directory.poll(wait=True)] == [True]
    s3_proxy.set("pass")
    assert good_ones(place) == ["best", "checkpoint_000002", "checkpoint_000003"]
    assert iterations_on(place) == [1, 2, 3]
    directory.close()


@pytest.mark.parametrize("mode", ["away", pytest.param("errors", marks=SLOW)])
def test_a_store_that_goes_away_and_comes_back(s3_proxy: Proxy, store: Retries, mode: str) -> None:
    place = new_place()
    directory = opened(place)
    train(directory, range(1, 2))
    save(directory, 1)
    directory.poll(wait=True)
    s3_proxy.set(mode)
    for iteration in (2, 3, 4, 5):  # training goes on: none of these waits for the store
        train(directory, range(iteration, iteration + 1))
        save(directory, iteration)
        wait_until(lambda: store.in_trouble)
    assert directory.poll() == []
    s3_proxy.set("pass")
    outcomes = directory.poll(wait=True)
    # The one that was under way, and the newest; those between have given way to it.
    assert [(o.iteration, o.ok) for o in outcomes] == [(2, True), (5, True)]
    messages = " ".join(directory.take_messages())
    assert messages.count("does not answer") == 1 and messages.count("answers again") == 1
    assert "Training continues" in messages
    assert good_ones(place) == ["best", "checkpoint_000002", "checkpoint_000005"]
    assert iterations_on(place) == [1, 2, 3, 4, 5]
    directory.close()


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_trial_and_loses_nothing(
    s3_proxy: Proxy, store: Retries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "PATIENCE_S", 2.0)
    monkeypatch.setattr(retry, "SHORT_PATIENCE_S", 0.5)
    place = new_place()
    directory = opened(place, failed_saves=1)
    train(directory, range(1, 3))
    save(directory, 2)
    directory.poll(wait=True)
    s3_proxy.set("away")
    train(directory, range(3, 5))
    save(directory, 3)
    save(directory, 4)
    with pytest.raises(SavesFailing, match=r"2 checkpoints in a row .* The last one: .*s3://"):
        directory.poll(wait=True)
    directory.close()
    with pytest.raises(StorageError, match="s3://bucket"):
        Catalogue(place).choose_for_resume()  # not: damaged, or none
    s3_proxy.set("pass")
    found = Catalogue(place).choose_for_resume()
    assert found is not None and found.entry is not None and found.damaged == ()
    assert found.entry.path == "checkpoint_000002"


def test_a_read_that_is_cut_off_is_not_damage(s3_proxy: Proxy, store: Retries) -> None:
    place = new_place()
    directory = opened(place)
    train(directory, range(1, 2))
    save(directory, 1)
    directory.poll(wait=True)
    for mode, share in (("drop", 0.4), ("cut", 1.0)):
        s3_proxy.set(mode, share)
        assert good_ones(place) == ["best", "checkpoint_000001"]
    s3_proxy.set("pass")
    directory.close()


@pytest.mark.slow
def test_a_store_that_goes_away_during_a_check_is_not_damage(
    s3_proxy: Proxy, store: Retries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "PATIENCE_S", 1.0)
    place = put(new_place(), tmp_path, 1)
    present = place.files()
    known = read_manifest(place)
    s3_proxy.set("away")
    for manifest_too in (None, known):
        with pytest.raises(OSError, match="NETWORK_CONNECTION"):
            check(place, contents=True, present=present, known=manifest_too)


def test_a_writer_that_was_replaced_writes_nothing_more(s3: int, store: Retries) -> None:
    place = new_place()
    first = opened(place)
    train(first, range(1, 2))
    save(first, 1)
    first.poll(wait=True)
    # Its lease went stale (a partition), and another process took over.
    (place / "attempts/000007.0.json").write_bytes(b"{}")
    train(first, range(2, 3))
    before = written_files(place)
    save(first, 2)
    with pytest.raises(Superseded):
        first.poll(wait=True)
    assert written_files(place) == before
    first.close()


@pytest.mark.slow
def test_a_lease_that_is_read_while_it_is_renewed_is_not_lost(s3: int, store: Retries) -> None:
    place = new_place()
    times = iter(range(10**6))
    # Dates are not always printed with the same number of digits.
    lock = DirectoryLock(
        place, times=LockTimes(date=lambda: time.time() // 10 ** (next(times) % 9))
    )
    with lock:
        stop = threading.Event()

        def renew() -> None:
            while not stop.is_set():
                lock._held.write(patient=True)  # type: ignore[union-attr]

        threads = [threading.Thread(target=renew) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(40):
                lock.check()
                with pytest.raises(Locked):
                    DirectoryLock(place).acquire()
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_what_trying_again_cannot_help_fails_at_once(
    s3: int, store: Retries, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    store.listen(told.append)
    with pytest.raises(OSError, match="NO_SUCH_BUCKET"):
        (Location.of("s3://no-such-bucket/a") / "b").write_bytes(b"")
    assert not may_pass(FileNotFoundError(2, "gone")) and not may_pass(OSError(28, "full"))
    assert may_pass(OSError("AWS Error SLOW_DOWN")) and may_pass(ConnectionResetError(104, "reset"))
    assert told == []


def test_patience_pauses_longer_each_time_and_ends() -> None:
    now, pauses = [0.0], []  # type: list[float], list[float]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    told: list[str] = []
    store = Retries(lambda: now[0], sleep, lambda: 0.5)
    store.listen(told.append)

    def away() -> None:
        raise ConnectionRefusedError(111, "nobody listens")

    with pytest.raises(ConnectionRefusedError):
        store.call(away, "s3://bucket/a")
    assert now[0] <= retry.SHORT_PATIENCE_S  # a store that has never answered
    assert store.call(lambda: 3, "s3://bucket/a") == 3
    began = now[0]
    with pytest.raises(ConnectionRefusedError):
        store.call(away, "s3://bucket/a")
    assert retry.PATIENCE_S - 16 <= now[0] - began <= retry.PATIENCE_S
    longest = pauses[-8:]
    assert longest == sorted(longest) and max(pauses) == 15.0
    with pytest.raises(ConnectionRefusedError):
        store.call(away, "s3://bucket/a")  # it was given up: not for minutes again
    assert now[0] - began <= retry.PATIENCE_S + retry.SHORT_PATIENCE_S
    assert [text.split(" (")[0] for text in told] == [
        "The storage does not answer",
        "The storage answers again, after 8 s.",
        "The storage does not answer",
    ]


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIA:{SECRET}@bucket/runs",
        f"s3://bucket/runs?secret_key={SECRET}",
        f"sftp://me:{SECRET}@host/runs",
    ],
)
def test_credentials_in_a_path_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(BadInput, match="environment") as caught:
        Location.of(uri)
    assert SECRET not in str(caught.value)


def wait_until(true: object, seconds: float = 600.0) -> None:
    stop = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if true():  # type: ignore[operator]
            return
        stop.wait(0.02)
    raise AssertionError("waited in vain")


def written_files(place: Location) -> dict[str, object]:
    """What lies there and when it was written, but for the lease, which a thread renews."""
    return {n: each for n, each in place.tree().items() if n != ".raytrain.lock"}
