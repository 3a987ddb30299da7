"""Whether a config may continue the run in a directory."""

from __future__ import annotations

from raytrain.checkpoint import Catalogue, ExperimentFile, trials
from raytrain.config import (
    ExperimentConfig,
    allowed_on_continue,
    differences,
    gives_up_exactness,
    has_digest,
)
from raytrain.config.schedules import relative_keys
from raytrain.driver.spaces import Say
from raytrain.driver.stages import may_change
from raytrain.errors import BadInput
from raytrain.storage import Location


class ConfigChanged(BadInput):
    """The config is not that of the run in the directory."""


def require_same_run(
    config: ExperimentConfig,
    place: Location,
    experiment: ExperimentFile | None,
    say: Say,
    from_stage: str | None,
) -> list[str]:
    """Return the fields that differ from those of the last start.

    Raises:
        ConfigChanged: one of them may not; the message names each with both values.
    """
    if experiment is None:
        _require_same_digest(config, place)
        return []
    changed = differences(dict(experiment.config), config)
    stages = next((change for change in changed if change.field == "curriculum"), None)
    reason = stages and may_change(place, stages.old or [], stages.new or [], from_stage)
    wrong = [
        change
        for change in changed
        if not allowed_on_continue(change.field)
        and not gives_up_exactness(change.field)
        and not (change is stages and reason is None)
    ]
    if wrong:
        lines = "".join(f"\n  {d.field}: was {d.old!r}, is now {d.new!r}" for d in wrong)
        lines += f"\n  (curriculum: {reason})" if reason else ""
        raise ConfigChanged(
            f"{place} holds a run with another config:{lines}\nTo continue this run, put these "
            "values back. To begin again, use --fresh, which sets the old directory aside. To "
            "start a new run from this one's newest checkpoint with any changes, use "
            f"--from {place} --name NEW."
        )
    for change in changed:
        if gives_up_exactness(change.field):
            say(
                f"{change.field} changes from {change.old!r} to {change.new!r}: the run continues, "
                "but is not exact from here on; its manifests say so."
            )
    relative = relative_keys(config)
    for change in changed:
        if change.field == "stop.timesteps" and relative:
            say(
                f"stop.timesteps changes from {change.old!r} to {change.new!r}, and "
                f"{', '.join(relative)} with it: the run continues, but is not exact from here on; "
                "its manifests say so."
            )
    return [change.field for change in changed]


def _require_same_digest(config: ExperimentConfig, place: Location) -> None:
    """Without experiment.json the newest checkpoint of each trial decides: allowed changes may have
    been made since the older ones. With a search each trial has values of its own."""
    if config.search:
        return
    for trial in trials(place):
        entries = Catalogue(trial).entries()
        usable = [e for e in entries if e.good is not False and e.kind != "error"]
        for entry in usable[-1:]:
            if entry.manifest is not None and not has_digest(config, entry.manifest.config_digest):
                raise ConfigChanged(
                    f"{place} has no experiment.json, and {entry.location} was written by a run "
                    "with another config. Use the config that the run had last; or begin again "
                    "with --fresh; or start another run with --name NEW."
                )
