"""Commands for the user to copy: how to continue a run, and what to do with a finished one."""

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
    """Commands for a finished run."""
    program = shlex.join(_program())
    trial = Location.of(outcome.path) / outcome.trials[0]
    kind = "final" if Catalogue(trial).entry("best") is None else "best"
    checkpoint = f"{outcome.path if len(outcome.trials) == 1 else trial}:{kind}"
    return (
        f"Results:      {outcome.path}\n"
        f"Curves:       tensorboard --logdir {shlex.quote(outcome.path)}\n"
        f"Checkpoints:  {program} checkpoints {shlex.quote(outcome.path)}\n"
        f"Play:         {program} evaluate {shlex.quote(checkpoint)} --episodes 20\n"
        f"In Python:    raytrain.load_policy({checkpoint!r}).act(observation)"
    )


def _program() -> list[str]:
    """How this program was started."""
    called = Path(sys.argv[0])
    if called.name == "raytrain":
        return ["raytrain" if shutil.which("raytrain") == str(called) else str(called)]
    return ["python", "-m", "raytrain"]
