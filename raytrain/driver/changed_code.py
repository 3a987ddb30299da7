"""The code of a run at a start, and the manifests that say what it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from raytrain.checkpoint import Catalogue, ExperimentFile, Manifest, trials
from raytrain.config import ExperimentConfig
from raytrain.config.run_code import RunCode, Say, code_of
from raytrain.storage import Location
from raytrain.trial.changed_code import code_of_manifest


class PresentCode:
    """The code at this start, before the environments are tried. `changed`: since the last start,
    or since the newest checkpoint if experiment.json does not tell."""

    def __init__(
        self,
        config: ExperimentConfig,
        stored: ExperimentFile | None,
        trained: list[Manifest],
        say: Say,
    ) -> None:
        self._config = config
        self._say = cache(say)  # Everything is read twice if the environments are tried.
        self._values_before: Mapping[str, Any] | None = None
        self._known = RunCode()
        if stored is not None and stored.code is not None:
            self._known, self._values_before = RunCode.of(stored.code), stored.config
        elif known := [manifest for manifest in trained if manifest.code is not None]:
            self._known = code_of_manifest(known[0])
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
