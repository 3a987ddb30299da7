"""The commands that continue from what is on storage, ready to copy. They need the experiment's
directory alone.

    the newest checkpoint    raytrain resume EXPERIMENT_DIR
    a stage                  raytrain resume EXPERIMENT_DIR --from-stage NAME
    any other                raytrain fork CHECKPOINT --name NEW
"""

from __future__ import annotations

from dataclasses import dataclass

from raytrain.checkpoint import Entry
from raytrain.checkpoint.file_names import STAGES
from raytrain.driver.command_text import command_for
from raytrain.storage import Location


@dataclass(frozen=True)
class Commands:
    """The commands of the experiment in a directory. `alone`: it has one trial."""

    directory: str
    name: str
    alone: bool

    @property
    def resume(self) -> str:
        return command_for("resume", self.directory, [])

    def resume_at(self, path: str, *, is_newest: bool) -> str | None:
        """To continue the run from the checkpoint `path` of a trial; None if it cannot."""
        if is_newest:
            return self.resume
        stage = path.removeprefix(f"{STAGES}/")
        if stage != path and self.alone:
            return command_for("resume", self.directory, ["--from-stage", stage])
        return None

    def fork(self, path: str, whole_path: str) -> str:
        """To begin another run at the checkpoint `path` of a trial, which is at `whole_path`."""
        new = f"{self.name}-from-{path.replace('/', '-')}"
        return command_for("fork", whole_path, ["--name", new])

    def for_checkpoint(self, entry: Entry, trial: Location, *, is_newest: bool) -> str | None:
        """None for a checkpoint that cannot be continued: damaged, or a diverged state."""
        if entry.good is False or entry.kind == "error" or entry.manifest is None:
            return None
        again = self.resume_at(entry.path, is_newest=is_newest)
        return again or self.fork(entry.path, str(trial / entry.path))
