"""`raytrain audit`: train a part of a run again, and compare with what is on storage.

    checkpoint k --load--> train to the iteration of the next checkpoint --compare--> its manifest
                           each iteration --compare--> its row in result.json

The training happens in a process of its own (see `retraining`), with Ray on this machine, in a
scratch directory; the experiment is only read, so it may be running. With `on_every_node`, it
happens on each node of a cluster at the same time, in the same way: no node gives a CPU to it. A
difference means that a checkpoint or a record was corrupted unnoticed, that the environment is not
deterministic, or that a library or the machine computes other numbers than before; the audit
reports the first iteration that differs.

A run that was never exact is refused: a difference would prove nothing. So are iterations in which
exactness was given up (another number of env groups or learners); later ones can be audited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raytrain.arithmetic.fingerprint import comparable
from raytrain.arithmetic.machine import difference
from raytrain.arithmetic.settings import ArithmeticSettings
from raytrain.checkpoint import MANIFEST_NAME, Catalogue, Entry, ExperimentFile, Manifest
from raytrain.checkpoint.resolve import trials_at
from raytrain.commands.retraining import (
    CannotAudit,
    Difference,
    Retrained,
    Stretch,
    train_again,
)
from raytrain.config import (
    ExperimentConfig,
    config_from_dict,
    has_digest,
    with_trial_values,
)
from raytrain.config.run_code import named
from raytrain.errors import RaytrainError
from raytrain.storage import Location, signing_key
from raytrain.storage.json import parse_json
from raytrain.storage.location import storage_errors
from raytrain.trial.arithmetic import ENV_RUNNER, EVALUATION_RUNNER, LEARNER
from raytrain.versions import changes_text

_SHOWN = 5
_PARAMS = "params.json"


@dataclass(frozen=True)
class TrialAudit:
    """One trial, trained again from iteration `start` to `end`. `compared`: the number of
    iterations that have a row in result.json; of the others, only the last weights are known.
    `digests`: of the weights after each iteration, to the first difference. `other_arithmetic`: how
    the machine that trained again differs from the run's, if it computes differently."""

    trial: str
    start: int
    end: int
    weights_sha256: str
    compared: int
    difference: Difference | None
    digests: Mapping[int, str]
    other_arithmetic: str | None
    versions: Mapping[str, tuple[str, str]]
    """Libraries that differ from those of the checkpoints: (then, now)."""
    code: Sequence[str] = ()
    """What differs in the environment's code: `my_env.py changed`."""

    @property
    def equal(self) -> bool:
        return self.difference is None

    @property
    def cause(self) -> str:
        """Why it differs, as far as that is known, or else the first value that does; empty if it
        is equal."""
        if self.difference is None:
            return ""
        if self.other_arithmetic is not None:
            return self.other_arithmetic
        if self.code:
            return named(self.code)
        if self.versions:
            return changes_text(self.versions)
        key, (then, now) = next(iter(self.difference.what.items()))
        return f"{key}: {then!r} on storage, {now!r} now"

    def text(self) -> str:
        """The result for a person, in whole lines."""
        head = f"{self.trial}: iterations {self.start + 1} to {self.end} trained again: "
        if self.difference is None:
            lines = [
                f"{head}equal (weights {self.weights_sha256[:12]}, and all metrics of "
                f"{self.compared} iterations)."
            ]
        else:
            known = "" if self.compared else " at the latest (no metrics are recorded)"
            differing = list(self.difference.what.items())
            lines = [
                f"{head}NOT equal. The first difference is in iteration "
                f"{self.difference.iteration}{known}:"
            ]
            lines += [
                f"  {key}: {then!r} on storage, {now!r} now"
                for key, (then, now) in differing[:_SHOWN]
            ]
            if len(differing) > _SHOWN:
                lines.append(f"  and {len(differing) - _SHOWN} more")
            if self.other_arithmetic is not None:
                lines.append(f"  This machine computes differently: {self.other_arithmetic}.")
        if self.versions:
            lines.append(
                f"  Versions differ from those of the checkpoints ({changes_text(self.versions)}); "
                "equality is promised for the same versions only."
            )
        if self.code:
            lines.append(
                f"  The environment's code is not that of the checkpoints: {named(self.code)}."
            )
        return "".join(f"{line}\n" for line in lines)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, but for numbers that are not finite."""
        return {**asdict(self), "equal": self.equal}


@dataclass(frozen=True)
class Audit:
    """The results of all trials."""

    experiment: str
    trials: tuple[TrialAudit, ...]

    @property
    def equal(self) -> bool:
        return all(trial.equal for trial in self.trials)

    def text(self) -> str:
        return "".join(trial.text() for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        return {
            "experiment": self.experiment,
            "equal": self.equal,
            "trials": [trial.to_dict() for trial in self.trials],
        }


def audit(experiment_dir: str | Path, *, start: int | None = None, end: int | None = None) -> Audit:
    """Train each trial of an experiment (or the trial whose directory is given) again from the
    checkpoint of iteration `start` to that of `end`, and compare. By default these are the two
    newest good checkpoints; with only one given, the other is its neighbour.

    Raises:
        BadInput: no experiment, no such checkpoints, or the run is not exact there.
        StorageError: the storage cannot be read.
    """
    place, stretches = planned(str(experiment_dir), start, end)
    return Audit(str(place), tuple(map(_audit_trial, stretches)))


def _audit_trial(stretch: Stretch) -> TrialAudit:
    try:
        return audited(stretch, train_again(stretch))
    except RaytrainError:
        require_still_there(stretch)
        raise


def audited(stretch: Stretch, retrained: Retrained) -> TrialAudit:
    """What the training has shown."""
    return TrialAudit(
        trial=stretch.name,
        start=stretch.start,
        end=stretch.end,
        weights_sha256=retrained.digests.get(max(retrained.digests, default=0), ""),
        compared=retrained.compared,
        difference=retrained.difference,
        digests=retrained.digests,
        other_arithmetic=_other_arithmetic(stretch.written.arithmetic or {}, retrained.arithmetic),
        versions=retrained.versions,
        code=retrained.code,
    )


def _other_arithmetic(
    before: Mapping[str, Any], now: Mapping[str, tuple[str, Mapping[str, str]]]
) -> str | None:
    for role in (LEARNER, ENV_RUNNER, EVALUATION_RUNNER):
        if role not in before or role not in now:
            continue
        old, (fingerprint, machine) = before[role], now[role]
        if comparable(old["fingerprint"], fingerprint) and old["fingerprint"] != fingerprint:
            return difference(old["machine"], machine)
    return None


def require_still_there(stretch: Stretch) -> None:
    """Raise `CannotAudit` if the checkpoint to begin at was deleted since it was chosen."""
    checkpoint = Location.of(stretch.root) / stretch.checkpoint
    with storage_errors("Looking for the checkpoint", checkpoint):
        if not (checkpoint / MANIFEST_NAME).exists():
            raise CannotAudit(
                f"{checkpoint} was deleted since the audit began: the run goes on, and keeps "
                "checkpoint.num_to_keep checkpoints. Audit it again; if that happens each time, "
                "keep more."
            )


def planned(argument: str, start: int | None, end: int | None) -> tuple[Location, list[Stretch]]:
    """The experiment, and what to train again of each trial. Everything that can be refused is
    refused here, before anything is trained (see `audit`)."""
    place, chosen = trials_at(argument)
    experiment_place = place.parent if chosen == [place] else place
    experiment = ExperimentFile.existing(experiment_place)
    root = str(place) if place.is_local else argument
    stretches = [_plan(root, trial, experiment, start, end) for trial in chosen]
    return experiment_place, stretches


def _plan(
    root: str, trial: Location, experiment: ExperimentFile, start: int | None, end: int | None
) -> Stretch:
    first, last = _pair(trial, start, end)
    _refuse_inexact(trial, first, last)
    config = _config_of(trial, experiment)
    if signing_key() is not None and not has_digest(config, first.good_manifest.config_digest):
        # params.json is not signed; the manifest, which holds the digest of these values, is.
        raise CannotAudit(
            f"{trial / _PARAMS} is not trusted: its values differ from those that {first.location} "
            "was written with."
        )
    written = last.good_manifest

    def below_root(location: Location) -> str:
        return location.path.removeprefix(Location.of(root).path).lstrip("/") or "."

    return Stretch(
        root=root,
        trial=below_root(trial),
        checkpoint=below_root(first.location),
        start=first.iteration,
        end=last.iteration,
        weights_sha256=first.good_manifest.weights_sha256,
        written=written,
        config=config,
        # Environments are snapshotted as in the checkpoint; in other stages as in experiment.json.
        snapshot={**experiment.snapshot, "strategy": str(written.snapshot_strategy)},
        settings=_settings(written),
        is_signed=signing_key() is not None,
    )


def _settings(written: Manifest) -> ArithmeticSettings | None:
    """Those of the processes that wrote it; None for one of raytrain 0.1."""
    settings = (written.arithmetic or {}).get("settings")
    return None if settings is None else ArithmeticSettings.read(settings)


def _pair(trial: Location, start: int | None, end: int | None) -> tuple[Entry, Entry]:
    """The checkpoints to begin at and to reach; every byte of them is checked."""
    good: dict[int, Entry] = {}
    for entry in Catalogue(trial).entries(verify=True):
        # Kind `error` is a diverged state. Of several of an iteration, use the numbered one.
        usable = entry.good and entry.kind != "error"
        if usable and (entry.is_periodic_place or entry.iteration not in good):
            good[entry.iteration] = entry
    iterations = sorted(good)
    listed = ", ".join(map(str, iterations)) or "none"
    for iteration in (start, end):
        if iteration is not None and iteration not in good:
            raise CannotAudit(
                f"{trial} has no good checkpoint of iteration {iteration}. Iterations with a good "
                f"checkpoint: {listed}; `raytrain checkpoints` lists all checkpoints."
            )
    if start is not None and end is not None and start >= end:
        raise CannotAudit(f"--from {start} must be less than --to {end}.")
    if start is None and end is None and good:
        end = iterations[-1]
    if end is None and start is not None:
        end = min((iteration for iteration in iterations if iteration > start), default=None)
    if start is None and end is not None:
        start = max((iteration for iteration in iterations if iteration < end), default=None)
    if start is None or end is None:
        raise CannotAudit(
            f"{trial} does not have two good checkpoints to train between. Iterations with a good "
            f"checkpoint: {listed}. Wait for another one, or keep more (checkpoint.num_to_keep)."
        )
    return good[start], good[end]


def _refuse_inexact(trial: Location, first: Entry, last: Entry) -> None:
    lost = last.good_manifest.exact_lost
    if lost is None:
        return
    if lost.since_iteration == 0:
        raise CannotAudit(
            f"{trial} cannot be audited, as the run is not exact: {lost.why}. A difference would "
            "prove nothing."
        )
    if lost.since_iteration >= first.iteration:
        raise CannotAudit(
            f"{trial} cannot be audited from iteration {first.iteration} to {last.iteration}: the "
            f"run is not exact after iteration {lost.since_iteration} ({lost.why}). Give other "
            "checkpoints with --from and --to."
        )


def _config_of(trial: Location, experiment: ExperimentFile) -> ExperimentConfig:
    """The config of the trial: the experiment's, with the values that Tune chose for the trial."""
    place = trial / _PARAMS
    with storage_errors("Reading the trial's values", place):
        if not place.exists():
            config = config_from_dict(experiment.config)
            if config.search:
                raise CannotAudit(
                    f"{place} is missing, so the values that were chosen for this trial are "
                    "unknown."
                )
            return config
        data = place.read_bytes()
    try:
        drawn = dict(parse_json(data))
    except (ValueError, TypeError) as error:
        raise CannotAudit(f"{place} is damaged: {error}") from None
    return with_trial_values(experiment.config, drawn)
