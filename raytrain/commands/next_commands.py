"""The commands that continue from what is on storage, ready to copy.

    the newest checkpoint    raytrain resume EXPERIMENT_DIR
    a stage                  raytrain train CONFIG --from-stage NAME
    any other                raytrain train CONFIG --from CHECKPOINT --name NEW

An experiment does not know its YAML file, only the directory of the file. The commands name the
file in that directory that has the experiment's name; without one they say CONFIG.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from raytrain.checkpoint import Entry, ExperimentFile
from raytrain.config import ConfigError
from raytrain.config.yaml_lines import parse_yaml
from raytrain.driver.command_text import command_for
from raytrain.storage import Location


@dataclass(frozen=True)
class Commands:
    """The commands of one experiment. `config`: see `yaml_file`; `alone`: it has one trial."""

    place: Location
    config: str
    alone: bool

    @property
    def resume(self) -> str:
        return command_for("resume", str(self.place), [])

    def for_checkpoint(self, entry: Entry, trial: Location, *, is_newest: bool) -> str | None:
        """None for a checkpoint that cannot be continued: damaged, or a diverged state."""
        if entry.good is False or entry.kind == "error" or entry.manifest is None:
            return None
        if is_newest:
            return self.resume
        stage = entry.path.removeprefix("stages/")
        if stage != entry.path and self.alone:
            return command_for("train", self.config, ["--from-stage", stage])
        new = f"{self.place.name}-from-{entry.path.replace('/', '-')}"
        source = str(trial / entry.path)
        return command_for("train", self.config, ["--from", source, "--name", new])


def yaml_file(experiment: ExperimentFile) -> str:
    """The experiment's YAML file, relative to the working directory if below it; or `CONFIG`."""
    directory = experiment.config.get("import_path")
    for path in sorted(Path(directory).glob("*.y*ml")) if isinstance(directory, str) else ():
        try:
            status = path.stat()
        except OSError:
            continue
        if _name_in(path, status.st_mtime_ns, status.st_size) == experiment.name:
            file = path.resolve()
            is_near = file.is_relative_to(Path.cwd())
            return str(file.relative_to(Path.cwd()) if is_near else file)
    return "CONFIG"


@lru_cache(maxsize=4096)
def _name_in(path: Path, mtime_ns: int, size: int) -> object:
    """The experiment's name in a YAML file that was changed at that time; None if it has none."""
    try:
        values = parse_yaml(path.read_text(), str(path)).value
    except (OSError, ValueError, ConfigError):
        return None
    return values.get("name", path.stem) if isinstance(values, dict) else None
