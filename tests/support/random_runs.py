"""Runs on a storage to which anything happens, in an order that a seed gives."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path

from support.experiments import FakeRun


class RandomRuns:
    """`with RandomRuns(storage, seed) as happening: happening.step()`"""

    def __init__(self, storage: Path, seed: int) -> None:
        self.storage = storage
        self.random = random.Random(seed)
        self.runs: list[FakeRun] = []
        self._locks = ExitStack()
        self._count = 0

    def __enter__(self) -> RandomRuns:
        return self

    def __exit__(self, *exception: object) -> None:
        self._locks.close()

    def step(self) -> None:
        """One thing happens to one run."""
        if not self.runs:
            self._create()
        run = self.random.choice(self.runs)
        what = self.random.choices(
            ("create", "train", "start again", "mishap", "storage"), weights=(2, 5, 4, 3, 4)
        )[0]
        if what == "create":
            self._create()
        elif what == "train":
            run.train(self.random.randint(1, 5))
        elif what == "start again":
            how = self.random.choice(("kill", "interrupt", "lost_node", "preemption"))
            if how in ("kill", "interrupt"):
                getattr(run, how)().start()
            else:
                run.lose(how)
        elif what == "mishap":
            self._mishap(run)
        else:
            self._change_storage(run)

    def mend(self) -> None:
        """Every experiment can be read again."""
        for run in self.runs:
            run.write_experiment_file()

    def _create(self) -> None:
        trials = self.random.randint(1, 3)
        run = FakeRun(self.storage, self._name(), trials=trials, seed=self._count, stop=12)
        self.runs.append(run.start())

    def _name(self) -> str:
        self._count += 1
        return f"run-{self._count}"

    def _mishap(self, run: FakeRun) -> None:
        which = self.random.randrange(5)
        if which == 0:
            run.fail("ValueError: the simulator is gone")
        elif which == 1:
            run.end_stage(f"stage-{run.trials[0].iteration}", "next")
        elif which == 2:
            run.lose_exactness("a file changed")
        elif which == 3:
            (run.place / "experiment.json").write_text("{")
        else:
            place = run.trials[0].place
            found = [*place.glob("checkpoint_*/policy.json"), *place.glob("stages/*/policy.json")]
            if found:
                self.random.choice(sorted(found)).unlink()

    def _change_storage(self, run: FakeRun) -> None:
        run.write_experiment_file()
        which = self.random.randrange(6)
        if which == 0 and run.entry("best") is not None:
            self.runs.append(run.fork(self._name(), "best").start())
        elif which == 1:
            self.runs[self.runs.index(run)] = run.begin_anew()
        elif which == 2:
            self.runs.remove(run)
            run.delete()
        elif which == 3:
            run.stop += 4
            run.write_experiment_file()
        elif which == 4:
            self._locks.close()
            self._locks.enter_context(run.running())
        else:
            self._locks.close()
