"""Experiments as training leaves them on storage, written in milliseconds and without Ray.

    storage = tmp_path / "results"
    run = FakeRun(storage, "cartpole", trials=2, stop=20).start()
    run.train(12)          checkpoints, best, rows, episodes
    run.kill()             as SIGKILL: what was trained after the last checkpoint is lost,
    run.start()            and cut off here, with an event `recovered`
    run.train(8)           the end: `final`
    run.fork("from-best", "best")

    many(storage, 1000)    a thousand, of every kind

Manifests and experiment.json are made by the checkpoint package's own classes, rows have the keys
that RLlib's have. Files are not synced. Times are those of a clock of the run's own, which begins
at `BEGINNING`; weights are the same whenever an iteration is trained again, as in an exact run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from raytrain.checkpoint import Catalogue, Entry, ExactLost, ExperimentFile, Manifest, Parent
from raytrain.checkpoint.lineage import ancestors, generation
from raytrain.checkpoint.manifest import FileEntry
from raytrain.config import config_from_dict
from raytrain.storage import DirectoryLock, Location

BEGINNING = 1_780_000_000.0
STEPS = 4000
SECONDS = 2.0
"""Of an iteration."""
FILES = {"policy.json": b"{}", "policy.safetensors": b"w" * 64, "resume/state.json": b"{}"}
_VERSIONS = {"raytrain": "0.2.0", "ray": "2.60.0", "torch": "2.13.0", "python": "3.11.7"}


@dataclass
class FakeTrial:
    """One trial's directory, and where its training stands."""

    place: Path
    seed: int
    iteration: int = 0
    attempt: int = 0
    saved: int = 0
    died_at: float | None = None
    best: tuple[float, int] | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    exact_lost: ExactLost | None = None
    stage: str | None = None

    def score(self, iteration: int) -> float:
        noise = random.Random(self.seed * 100_003 + iteration).gauss(0, 10)
        return 20 + 460 * (1 - math.exp(-iteration / 30)) + noise


class FakeRun:
    """See the module's docstring. `stop`: iterations; `every`: iterations between checkpoints, of
    which `keep` are kept; `changes`: further sections of the config."""

    def __init__(
        self,
        storage: Path,
        name: str,
        *,
        trials: int = 1,
        stop: int = 20,
        every: int = 2,
        keep: int = 3,
        seed: int = 0,
        begin: float = BEGINNING,
        **changes: Any,
    ) -> None:
        self.place = storage / name
        self.name = name
        self.every, self.keep, self.stop = every, keep, stop
        self.now = begin
        self.run_id = hashlib.md5(f"{self.place} {begin} {seed}".encode()).hexdigest()
        self.parent: dict[str, Any] | None = None
        self.fork_of: dict[str, Any] | None = None
        self.first_start = _iso(begin)
        self._changes = changes
        self.trials = [FakeTrial(self.place / f"trial_{i:05d}", seed + i) for i in range(trials)]

    # -- what happens to a run -------------------------------------------------------------------

    def start(self) -> FakeRun:
        """Start it, or start it again: every trial continues from its last checkpoint."""
        self.write_experiment_file()
        for trial in self.trials:
            self._start(trial)
        return self

    def train(self, iterations: int, *, trial: int | None = None) -> FakeRun:
        """Train all trials, or one of them, up to `stop`."""
        chosen = self.trials if trial is None else [self.trials[trial]]
        for _ in range(iterations):
            self.now += SECONDS
            for each in chosen:
                if each.iteration < self.stop:
                    self._iterate(each)
        return self

    def kill(self, *, after_s: float = 60.0) -> FakeRun:
        """As SIGKILL, `after_s` seconds before the next start."""
        for trial in self.trials:
            trial.died_at = self.now
        self.now += after_s
        return self

    def interrupt(self) -> FakeRun:
        """As SIGTERM: every trial that has not ended saves its state."""
        for trial in self.trials:
            if 0 < trial.iteration < self.stop:
                name = f"checkpoint_{trial.iteration:06d}"
                self.save(trial, name, "interrupted", trial.iteration)
                trial.saved = trial.iteration
        self.now += 30.0
        return self

    def fail(self, error: str, *, trial: int = 0) -> FakeRun:
        """A trial ends with an error."""
        failed = self.trials[trial]
        failed.died_at = self.now
        failed.counts |= {"failure": failed.counts.get("failure", 0) + 1, "ended_with": error}
        self.write_losses(failed)
        self.event(failed, "failed", error)
        return self

    def lose(self, kind: str, *, trial: int = 0, after_s: float = 20.0) -> FakeRun:
        """A trial loses its node (`lost_node`), or is taken from it (`preemption`), and continues
        on another."""
        lost = self.trials[trial]
        lost.died_at = self.now
        lost.counts[kind] = lost.counts.get(kind, 0) + 1
        self.write_losses(lost)
        self.event(lost, kind, f"the node 10.0.0.{trial} is gone")
        self.now += after_s
        self._start(lost)
        return self

    def end_stage(self, stage: str, following: str) -> FakeRun:
        """Every trial ends a stage of its curriculum."""
        for trial in self.trials:
            if not trial.iteration:
                continue
            trial.stage = stage
            self.save(trial, f"stages/{stage}", "stage", trial.iteration)
            trial.stage = following
        return self

    def lose_exactness(self, why: str) -> FakeRun:
        for trial in self.trials:
            trial.exact_lost = trial.exact_lost or ExactLost(why, trial.iteration + 1)
        return self

    def fork(self, name: str, checkpoint: str = "best", **changes: Any) -> FakeRun:
        """Another run, which begins from a checkpoint of this one's first trial. Not started."""
        entry = self.entry(checkpoint)
        assert entry is not None and entry.manifest is not None
        own = generation(entry, weights_only=False)
        settings = {"stop": self.stop + 10, "seed": self.trials[0].seed + 7, "begin": self.now}
        child = FakeRun(self.place.parent, name, **{**settings, **changes})
        child.parent = {key: own[key] for key in Parent.__dataclass_fields__}
        older = ancestors(ExperimentFile.existing(Location.of(self.place)))
        child.fork_of = {
            "weights_only": False,
            "run_id": self.run_id,
            "iteration": entry.iteration,
            "timesteps": entry.timesteps,
            "episodes": entry.manifest.episodes,
            "ancestors": [own, *older],
        }
        for trial in child.trials:
            trial.iteration = trial.saved = entry.iteration
        return child

    def begin_anew(self) -> FakeRun:
        """As `--fresh`: another run of the same name; the directory of this one is set aside."""
        self.place.rename(self.place.with_name(f"{self.name}.{int(self.now)}"))
        anew = FakeRun(
            self.place.parent,
            self.name,
            trials=len(self.trials),
            stop=self.stop,
            every=self.every,
            keep=self.keep,
            begin=self.now + 1,
            **self._changes,
        )
        return anew.start()

    def delete(self) -> None:
        shutil.rmtree(self.place)

    @contextmanager
    def running(self) -> Iterator[FakeRun]:
        """While a process has its locks: this one."""
        with ExitStack() as locks:
            for place in (self.place, *(trial.place for trial in self.trials)):
                locks.enter_context(DirectoryLock(Location.of(place)))
            yield self

    # -- files -----------------------------------------------------------------------------------

    def entry(self, checkpoint: str, trial: int = 0) -> Entry | None:
        return Catalogue(Location.of(self.trials[trial].place)).entry(checkpoint)

    def write_experiment_file(self) -> None:
        config = {**_config(self.stop, json.dumps(self._changes)), "name": self.name}
        content = asdict(
            ExperimentFile(
                name=self.name,
                run_id=self.run_id,
                config=config,
                config_digest=_sha256(json.dumps(config["training"])),
                snapshot={"strategy": "native", "exact": True},
                versions=_VERSIONS,
                first_start=self.first_start,
                parent=self.parent,
                fork=self.fork_of,
                code={"files": {}, "packages": {"gymnasium": "1.2.0"}},
            )
        )
        del content["was_signed"]
        self.place.mkdir(parents=True, exist_ok=True)
        _replace(self.place / "experiment.json", json.dumps({"format": 1, **content}, indent=1))

    def write_losses(self, trial: FakeTrial) -> None:
        counts = dict.fromkeys(("failure", "lost_node", "preemption", "relocation"), 0)
        _replace(
            trial.place / "losses.json", json.dumps({**counts, "ended_with": None, **trial.counts})
        )

    def event(self, trial: FakeTrial, kind: str, message: str, **seconds: float) -> None:
        event = {"time": self.now, "attempt": trial.attempt, "iteration": trial.iteration}
        line = json.dumps({**event, "kind": kind, "message": message, **seconds})
        with (trial.place / "events.jsonl").open("a") as file:
            file.write(line + "\n")

    def save(self, trial: FakeTrial, path: str, kind: str, iteration: int) -> None:
        """Write a checkpoint, in place of the one that is there."""
        place = trial.place / path
        staging = trial.place / f".{path.replace('/', '_')}.incoming"
        manifest = self._manifest(trial, kind, iteration, path)
        for name, data in FILES.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(data)
        (staging / "manifest.json").write_bytes(manifest.to_json())
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        staging.rename(place)

    def _manifest(self, trial: FakeTrial, kind: str, iteration: int, path: str) -> Manifest:
        row = self._row(trial, iteration)
        metrics = {**row, "checkpoint": {**row["checkpoint"], "metric": "episode_return_mean"}}
        metrics["checkpoint"] |= {"order": "max", "window": 100}
        if trial.stage is not None:
            metrics["curriculum"] = {"stage": 1, "stages": 3}
        return Manifest(
            kind=kind,
            experiment=self.name,
            trial_id=f"{self.run_id[:5]}_{trial.place.name[6:11]}",
            run_id=self.run_id,
            attempt=trial.attempt,
            iteration=iteration,
            timesteps=iteration * STEPS,
            episodes=iteration * 20,
            stage=trial.stage,
            score=row["checkpoint"]["score"],
            metrics=metrics,
            config_digest=_sha256(self.name),
            weights_sha256=row["weights_sha256"],
            parent=None if self.parent is None else Parent(**self.parent),
            exact=trial.exact_lost is None,
            exact_lost=trial.exact_lost,
            snapshot_strategy="native",
            versions=_VERSIONS,
            created_at=_iso(self.now),
            files=tuple(FileEntry(name, len(data), _sha256(data)) for name, data in FILES.items()),
            replacement=None if path.startswith("checkpoint_") else (trial.attempt, iteration),
        )

    def _start(self, trial: FakeTrial) -> None:
        trial.attempt += 1
        (trial.place / "attempts").mkdir(parents=True, exist_ok=True)
        (trial.place / "params.json").write_text("{}")
        file = trial.place / "attempts" / f"{trial.attempt:06d}.{trial.seed % 16:08x}.json"
        _replace(file, json.dumps({"began_after": trial.saved}))
        os.utime(file, (self.now, self.now))
        if trial.counts.get("ended_with"):
            trial.counts["ended_with"] = None
            self.write_losses(trial)
        died_at, trial.died_at = trial.died_at, None
        lost = trial.iteration - trial.saved
        trial.iteration = trial.saved
        if died_at is not None:
            _cut(trial.place / "result.json", trial.saved)
            seconds = {"redone_s": lost * SECONDS, "away_s": self.now - died_at}
            message = "The previous attempt ended without saving."
            self.event(trial, "recovered", message, **seconds)

    def _iterate(self, trial: FakeTrial) -> None:
        trial.iteration += 1
        iteration = trial.iteration
        row = self._row(trial, iteration)
        with (trial.place / "result.json").open("a") as file:
            file.write(json.dumps(row) + "\n")
        score, last = row["checkpoint"]["score"], iteration >= self.stop
        if iteration % self.every and not last:
            return
        if trial.best is None or score > trial.best[0]:
            trial.best = score, iteration
            self.save(trial, "best", "best", iteration)
        if last:
            self.save(trial, "final", "final", iteration)
        else:
            self.save(trial, f"checkpoint_{iteration:06d}", "periodic", iteration)
        trial.saved = iteration
        for old in sorted(trial.place.glob("checkpoint_*"))[: -self.keep]:
            shutil.rmtree(old)

    def _row(self, trial: FakeTrial, iteration: int) -> dict[str, Any]:
        score, steps = trial.score(iteration), iteration * STEPS
        return {
            "env_runners": {
                "episode_return_mean": score,
                "episode_len_mean": score,
                "episode_return_max": score * 1.2,
                "num_env_steps_sampled": STEPS,
                "num_env_steps_sampled_lifetime": float(steps),
                "num_episodes": 20,
            },
            "learners": {
                "default_policy": {
                    "total_loss": 10 / iteration,
                    "policy_loss": -0.05 / iteration,
                    "vf_loss": 20 / iteration,
                    "entropy": 0.69 * math.exp(-iteration / 50),
                    "mean_kl_loss": 0.01,
                }
            },
            "num_env_steps_sampled_lifetime": float(steps),
            "num_episodes_lifetime": iteration * 20,
            "weights_sha256": weights(self.run_id, trial.place.name, iteration),
            "recent": {"episodes": 100, "episode_return_mean": score, "episode_len_mean": score},
            "time_this_iter_s": SECONDS,
            "training_iteration": iteration,
            "timestamp": int(self.now),
            "time_total_s": iteration * SECONDS,
            "done": False,
            **({} if trial.stage is None else {"stage": trial.stage}),
            "pid": 1000 + trial.attempt,
            "hostname": "node-a",
            "checkpoint": {"score": score, "episodes": 100},
            "exact": trial.exact_lost is None,
        }


def weights(run_id: str, trial: str, iteration: int) -> str:
    """The digest of the weights after an iteration."""
    return _sha256(f"{run_id} {trial} {iteration}")


def many(storage: Path, count: int, *, iterations: int = 10) -> list[FakeRun]:
    """Runs of every kind: finished, stopped, interrupted, failed, empty, with failures that were
    survived, stages, several trials, and forks of those before them."""
    runs: list[FakeRun] = []
    for number in range(count):
        name = f"run-{number:04d}"
        settings: dict[str, Any] = {"stop": iterations, "seed": number}
        settings["begin"] = BEGINNING + 3600.0 * number
        kind = number % 8
        if kind == 7:
            run = runs[-1].fork(name, "best", stop=2 * iterations, begin=settings["begin"])
        else:
            run = FakeRun(storage, name, trials=1 + number % 3, **settings)
        runs.append(run.start())
        if kind == 0:
            run.train(iterations)
        elif kind == 1:
            run.train(iterations // 2).kill()
        elif kind == 2:
            run.train(iterations // 2).interrupt()
        elif kind == 3:
            run.train(3).fail("ValueError: the simulator has lost its licence")
        elif kind == 5:
            run.train(5).kill().start().train(2).lose("preemption").train(iterations)
        elif kind == 6:
            run.train(4).end_stage("easy", "hard").lose_exactness("my_env.py changed")
            run.train(iterations)
        elif kind == 7:
            run.train(2)
    return runs


@cache
def _config_text(stop: int, changes: str) -> str:
    sections = {
        "name": "x",
        "environment": {"env": "CartPole-v1"},
        "stop": {"iterations": stop},
        **json.loads(changes),
    }
    return json.dumps(config_from_dict(sections).to_dict())


def _config(stop: int, changes: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(_config_text(stop, changes))
    return config


def _cut(results: Path, upto: int) -> None:
    """As a resume does: in the file itself."""
    lines = results.read_bytes().splitlines(keepends=True) if results.exists() else []
    kept = sum(len(line) for line in lines if json.loads(line)["training_iteration"] <= upto)
    if lines:
        os.truncate(results, kept)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.rename(path)


def _sha256(data: str | bytes) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
