"""The code of a run at a start, and the manifests that say what it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from raytrain.checkpoint import Catalogue, ExperimentFile, Manifest, trials
from raytrain.config import ExperimentConfig
from raytrain.config.run_code import RunCode, Say, code_of
from raytrain.storage import Location


class PresentCode:
    """The code at this start, before the environments are tried. `changed`: since the last start;
    `known`: there was one that recorded the code."""

    def __init__(
        self,
        config: ExperimentConfig,
        stored: ExperimentFile | None,
        trained: list[Manifest],
        say: Say,
    ) -> None:
        self._config, self._say = config, say
        before = [manifest.code for manifest in trained if manifest.code is not None]
        if stored is not None and stored.code is not None:
            self._known = RunCode.of(stored.code)
        else:
            self._known = RunCode.of(asdict(before[0]) if before else None)
        self.known = stored is not None and stored.code is not None
        self._values_before = stored.config if stored is not None and self.known else None
        self.code = self._now({} if stored is None else stored.snapshot)
        self.changed = bool(self._known.changes(self.code))

    def after_trial(self, snapshot: Mapping[str, Any]) -> RunCode:
        """The code with what the environments were seen to use. A file that the trial has changed
        is their output, and is left out."""
        after = self._now(snapshot)
        output = {
            key
            for key, digest in self.code.files.items()
            if key not in self._known.files and after.files.get(key) != digest
        }
        kept = {key: digest for key, digest in after.files.items() if key not in output}
        return RunCode(kept, after.packages)

    def _now(self, snapshot: Mapping[str, Any]) -> RunCode:
        return code_of(
            self._config, snapshot, self._known, self._say, values_before=self._values_before
        )


def newest_manifests(place: Location) -> list[Manifest]:
    """Of each trial that has a checkpoint to continue from: that of the newest."""
    newest = []
    for trial in trials(place):
        usable = [
            entry
            for entry in Catalogue(trial).entries()
            if entry.good is not False and entry.kind != "error" and not entry.in_quarantine
        ]
        entry = max(usable, key=lambda entry: entry.iteration, default=None)
        if entry is not None and entry.manifest is not None:
            newest.append(entry.manifest)
    return newest
