"""A table of runs that are struck in each state that a trial can be in.

    state        where in a trial's life the strike falls
    damage       what happens to the storage before the command is given again
    trials       1, 3 or 4, one at a time or side by side
    signed       with a signing key or without
    store        a local disk or S3

Every state stands in the table several times, with each time another damage; the rest is drawn from
the seed so that each value comes up about as often as the others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import TypeVar

from struck_cartpole import Strike

FIRST_STOP, LAST_STOP = 4, 6
ROWS_EACH = 3

TRIAL = "raytrain.trial.trainable:TrialPPO."
SAVER = "raytrain.trial.saving:CheckpointSaver."
WATCH = "raytrain.driver.tune_callback:RunCallback."
COMMIT = "raytrain.checkpoint.commit:"
MANIFEST = "raytrain.checkpoint.manifest:Manifest."
SWAP = "raytrain.checkpoint.replacement:"

DAMAGES = (
    "none",
    "tuner.pkl is gone",
    "tuner.pkl is cut",
    "Tune's state is gone",
    "Tune's state is cut",
    "the search's state is gone",
    "experiment.json is cut",
    "the newest checkpoint is damaged",
    "a last checkpoint is damaged",
    "a best checkpoint is damaged",
)


@dataclass(frozen=True)
class State:
    """`runs`: the strikes of each run before the last one, which nothing strikes. `codes`: how each
    may end. `raised`: the stop of the last two runs is higher than that of the first. `failures`:
    how often a trial may fail, and `max_failures` of the config."""

    name: str
    runs: tuple[tuple[Strike, ...], ...]
    codes: tuple[int, ...]
    raised: bool = False
    failures: int = 0


KILLED = -9


def _killed(name: str, strike: Strike) -> State:
    return State(name, ((strike,),), (KILLED,))


def _states(random_calls: random.Random) -> Iterator[State]:
    """`random_calls` chooses which of the calls of a function is struck."""
    early = random_calls.randint(1, 3)
    yield _killed("not started", Strike("driver", WATCH + "on_step_begin", "all"))
    yield _killed("starting", Strike("driver", WATCH + "on_trial_start", "driver"))
    yield _killed("running", Strike("trial", TRIAL + "_train_once", "driver", call=early))
    for step in (
        Strike("trial", TRIAL + "capture", "all", call=early),
        Strike("trial", COMMIT + "make_directories", "all", call=early, after=True),
        Strike("trial", COMMIT + "_place_all", "driver", call=early, after=True),
        # The first time it is only tried whether a manifest can be written.
        Strike("trial", MANIFEST + "to_json", "all", call=2 * early, after=True),
        Strike("trial", COMMIT + "write_checkpoint", "all", call=early, after=True),
        Strike(
            "trial",
            SWAP + "write_checkpoint",
            "driver",
            call=random_calls.randint(1, 2),
            after=True,
        ),
        Strike(
            "trial", SWAP + "_write_and_swap", "all", call=random_calls.randint(1, 2), after=True
        ),
        Strike("trial", SWAP + "_discard", "all"),
    ):
        when = "after" if step.after else "at"
        yield _killed(f"saving, {when} {step.at.rpartition(':')[2]}", step)
    for victim in ("driver", "all"):
        yield _killed(
            f"final committed, {victim} killed",
            Strike("trial", SAVER + "save_surely", victim, after=True, argument="final"),
        )
    yield State(
        "final committed, trial killed",
        ((Strike("trial", SAVER + "save_surely", "trial", after=True, argument="final"),),),
        (0,),
        failures=1,
    )
    yield _killed(
        "stage ended",
        Strike("trial", SAVER + "save_surely", "driver", after=True, argument="stage"),
    )
    yield _killed("known to Tune", Strike("driver", WATCH + "on_trial_complete", "driver"))
    failed = Strike("trial", TRIAL + "_train_once", "trial", call=3)
    yield State(
        "failed once",
        ((failed, Strike("trial", TRIAL + "_report", "driver", call=4)),),
        (KILLED, 0),
        failures=1,
    )
    yield State("out of retries", ((failed,),), (1,))
    interrupted = Strike("trial", TRIAL + "_train_once", "interrupt", call=early)
    yield State("interrupted", ((interrupted,),), (143,))
    yield State("finished", ((),), (0,))
    yield State(
        "finished, stop raised",
        ((), (Strike("trial", TRIAL + "_train_once", "driver", call=2),)),
        (0, KILLED),
        raised=True,
    )


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    state: State
    damage: str
    trials: int
    side_by_side: bool
    signed: bool
    store: str

    def __str__(self) -> str:
        together = "side by side" if self.side_by_side else "one at a time"
        signed = "signed" if self.signed else "unsigned"
        return (
            f"{self.state.name} - {self.damage} - {self.trials} {together}, {signed}, {self.store}"
        )


_T = TypeVar("_T")


def table(seed: int) -> list[Case]:
    drawn = random.Random(seed)
    damages = _rounds(DAMAGES, drawn)
    trials = _rounds((1, 3, 4), drawn)
    side_by_side, signed = _rounds((False, True), drawn), _rounds((False, True), drawn)
    stores = _rounds(("local", "local", "s3"), drawn)
    cases = []
    for _ in range(ROWS_EACH):
        for state in _states(drawn):
            cases.append(
                Case(
                    state,
                    next(damages),
                    next(trials),
                    next(side_by_side),
                    next(signed),
                    next(stores),
                )
            )
    return cases


def _rounds(values: tuple[_T, ...], drawn: random.Random) -> Iterator[_T]:
    """All values in an order of their own, again and again, in another order each time."""
    for _ in cycle((None,)):
        yield from drawn.sample(values, len(values))
