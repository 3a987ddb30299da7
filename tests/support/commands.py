"""`raytrain ARGUMENTS...` in this process: for commands that are quick to fail or only read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from raytrain.cli import app


@dataclass(frozen=True)
class Ended:
    """How a command ended, as a shell sees it."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout, which must be one JSON document and nothing else."""
        return json.loads(self.out)


def here(*arguments: object) -> Ended:
    done = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    return Ended(done.exit_code, done.stdout, done.stderr)
