"""The commands that go on from what is on storage, ready to copy.

    the newest checkpoint    raytrain resume EXPERIMENT_DIR
    a stage                  raytrain train CONFIG --from-stage NAME
    any other                raytrain train CONFIG --from CHECKPOINT --name NEW

An experiment does not know its YAML file, only the directory that it lay in: the file there that has
the experiment's name is taken, and without one the word CONFIG stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raytrain.checkpoint import Entry, ExperimentFile
from raytrain.config import ConfigError
from raytrain.config.yaml_lines import parse_yaml
from raytrain.driver.command_text import command_for
from raytrain.storage import Location


@dataclass(frozen=True)
class Commands:
    """For one experiment. `config` is its YAML file, if it was found; `alone`: it has one trial."""

    place: Location
    config: str | None
    alone: bool

    @classmethod
    def of(cls, place: Location, experiment: ExperimentFile, *, alone: bool) -> Commands:
        return cls(place, _yaml_file(experiment), alone)

    @property
    def resume(self) -> str:
        return command_for("resume", str(self.place), [])

    def for_checkpoint(self, entry: Entry, trial: Location, *, is_newest: bool) -> str | None:
        """None for a checkpoint that nothing goes on from: damaged, or of a diverged state."""
        if entry.good is False or entry.kind == "error" or entry.manifest is None:
            return None
        if is_newest:
            return self.resume
        stage = entry.path.removeprefix("stages/")
        if stage != entry.path and self.alone:
            return self._train("--from-stage", stage)
        new = f"{self.place.name}-from-{entry.path.replace('/', '-')}"
        return self._train("--from", str(trial / entry.path), "--name", new)

    def _train(self, *options: str) -> str:
        if self.config is not None:
            return command_for("train", self.config, list(options))
        return command_for("train", "CONFIG", list(options))


def _yaml_file(experiment: ExperimentFile) -> str | None:
    holder = experiment.config.get("import_path")
    if not isinstance(holder, str) or not Path(holder).is_dir():
        return None
    for path in sorted(Path(holder).glob("*.y*ml")):
        try:
            values = parse_yaml(path.read_text(), str(path)).value
        except (OSError, ValueError, ConfigError):
            continue
        if isinstance(values, dict) and values.get("name", path.stem) == experiment.name:
            near = Path(path).resolve()
            return (
                str(near.relative_to(Path.cwd())) if near.is_relative_to(Path.cwd()) else str(near)
            )
    return None
