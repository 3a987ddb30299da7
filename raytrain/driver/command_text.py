"""The command that goes on from where a run stands, as a person would give it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from raytrain.checkpoint import Catalogue
from raytrain.driver.outcome import Outcome
from raytrain.storage import Location


def command_for(verb: str, target: str | os.PathLike[str], extra: list[str]) -> str:
    """The command line that continues a run."""
    return shlex.join([*_program(), verb, str(target), *extra])


def next_steps(outcome: Outcome) -> str:
    """What a person may want to do with a finished run."""
    program = shlex.join(_program())
    trial = Location.of(outcome.path) / outcome.trials[0]
    alone = len(outcome.trials) == 1
    which = "final" if Catalogue(trial).entry("best") is None else "best"
    chosen = f"{outcome.path if alone else trial}:{which}"
    return (
        f"Results:      {outcome.path}\n"
        f"Curves:       tensorboard --logdir {shlex.quote(outcome.path)}\n"
        f"Checkpoints:  {program} checkpoints {shlex.quote(outcome.path)}\n"
        f"Play:         {program} evaluate {shlex.quote(chosen)} --episodes 20\n"
        f"In Python:    raytrain.load_policy({chosen!r}).act(observation)"
    )


def _program() -> list[str]:
    """How this program was called, so that a command can be copied from the screen."""
    called = Path(sys.argv[0])
    if called.name == "raytrain":
        return ["raytrain" if shutil.which("raytrain") == str(called) else str(called)]
    return ["python", "-m", "raytrain"]
