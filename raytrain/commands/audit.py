"""`raytrain audit`: train a part of a run again, and compare with what is on storage.

    checkpoint k --load--> train to the iteration of the next checkpoint --compare--> its manifest
                           each iteration --compare--> its row in result.json

The training happens in this process, with Ray on this machine, in a scratch directory; the
experiment is only read, so it may be running. A difference means that a checkpoint or a record was
corrupted unnoticed, that the environment is not deterministic, or that a library or the machine
computes other numbers than before; the audit reports the first iteration that differs.

A run that was never exact is refused: a difference would prove nothing. So are iterations in which
exactness was given up (another number of env groups or learners); later ones can be audited.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain import _ray
from raytrain.checkpoint import Catalogue, Entry, ExperimentFile, Manifest, fetch
from raytrain.checkpoint.resolve import trials_at
from raytrain.config import (
    ExperimentConfig,
    config_from_dict,
    has_digest,
    with_trial_values,
)
from raytrain.config.run_code import ProcessCode, named
from raytrain.driver.process_cleanup import nothing_left
from raytrain.errors import BadInput, RaytrainError
from raytrain.storage import Location, signing_key
from raytrain.storage.json import parse_json
from raytrain.storage.location import storage_errors
from raytrain.storage.scratch import scratch
from raytrain.trial.changed_code import code_of_manifest
from raytrain.versions import changed_versions, changes_text

if TYPE_CHECKING:  # They import Ray, which takes seconds.
    from raytrain.ppo.algorithm import ExactPPO
    from raytrain.records.row_files import Row

_SHOWN = 5
_RECORDS, _PARAMS = "result.json", "params.json"


class CannotAudit(BadInput):
    """There is nothing that an audit can compare."""


@dataclass(frozen=True)
class Difference:
    """The first iteration that differs. `what` maps a metric's name, or `weights_sha256`, to the
    value on storage and the value of now."""

    iteration: int
    what: Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class TrialAudit:
    """One trial, trained again from iteration `start` to `end`. `compared`: the number of
    iterations that have a row in result.json; of the others, only the last weights are known."""

    trial: str
    start: int
    end: int
    weights_sha256: str
    compared: int
    difference: Difference | None
    versions: Mapping[str, tuple[str, str]]
    """Libraries that differ from those of the checkpoints: (then, now)."""
    code: Sequence[str] = ()
    """What differs in the environment's code: `my_env.py changed`."""

    @property
    def equal(self) -> bool:
        return self.difference is None

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
    place, chosen = trials_at(str(experiment_dir))
    experiment_place = place.parent if chosen == [place] else place
    experiment = ExperimentFile.existing(experiment_place)
    # Everything that can be refused is refused before anything is trained.
    plans = [_plan(trial, experiment, start, end) for trial in chosen]
    audits = (_audit_trial(*plan, experiment.snapshot) for plan in plans)
    return Audit(str(experiment_place), tuple(audits))


Plan = tuple[Location, ExperimentConfig, Entry, Entry]


def _plan(trial: Location, experiment: ExperimentFile, start: int | None, end: int | None) -> Plan:
    first, last = _pair(trial, start, end)
    _refuse_inexact(trial, first, last)
    config = _config_of(trial, experiment)
    if signing_key() is not None and not has_digest(config, first.good_manifest.config_digest):
        # params.json is not signed; the manifest, which holds the digest of these values, is.
        raise CannotAudit(
            f"{trial / _PARAMS} is not trusted: its values differ from those that {first.location} "
            "was written with."
        )
    return trial, config, first, last


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


def _audit_trial(
    trial: Location,
    config: ExperimentConfig,
    first: Entry,
    last: Entry,
    snapshot: Mapping[str, Any],
) -> TrialAudit:
    from raytrain.ppo.state import StateMismatch

    written = last.good_manifest
    # Environments are snapshotted as in the checkpoint; in other stages as in experiment.json.
    snapshot = {**snapshot, "strategy": str(written.snapshot_strategy)}
    difference, compared, digest = None, 0, ""
    with scratch("audit") as directory, _algorithm(config, snapshot, directory) as algorithm:
        source = fetch(first.location, directory / "fetched")
        try:
            restored = algorithm.load_exact(source)
        except StateMismatch as error:
            difference = Difference(
                first.iteration,
                {"weights_sha256": (first.weights_sha256, f"not what its files hold: {error}")},
            )
        else:
            if restored.exact_lost is not None:
                raise CannotAudit(
                    f"{trial} cannot be audited from {first.path}: {restored.exact_lost}."
                )
            difference, compared = _train_and_compare(
                algorithm, _records(trial, first.iteration, last.iteration), written
            )
            digest = algorithm.weights_digest
    return TrialAudit(
        trial=trial.name,
        start=first.iteration,
        end=last.iteration,
        weights_sha256=digest,
        compared=compared,
        difference=difference,
        versions=changed_versions(written.versions),
        code=ProcessCode(code_of_manifest(written), config.import_path).changes_here(),
    )


def _train_and_compare(
    algorithm: ExactPPO, records: Mapping[int, Row], written: Manifest
) -> tuple[Difference | None, int]:
    """Train to the iteration of the manifest, or to the first difference. Returns that difference
    and the number of iterations compared."""
    from raytrain.records import differences
    from raytrain.records.row_files import encode_row

    compared = 0
    while algorithm.iteration < written.iteration:
        result = {key: value for key, value in algorithm.train().items() if key != "config"}
        row = encode_row(result)
        # The weights come first: everything else may follow from them.
        what: dict[str, tuple[Any, Any]] = {}
        digest = algorithm.weights_digest
        if row.iteration == written.iteration and digest != written.weights_sha256:
            what["weights_sha256"] = (written.weights_sha256, digest)
        if row.iteration in records:
            compared += 1
            for key, then, now in differences(records[row.iteration].flat, row.flat):
                what.setdefault(key, (then, now))
        if what:
            return Difference(row.iteration, what), compared
    return None, compared


def _records(trial: Location, after: int, upto: int) -> dict[int, Row]:
    """The recorded rows of the iterations in (after, upto]."""
    from raytrain.records.row_files import decode_row

    place = trial / _RECORDS
    with storage_errors("Reading the records", place):
        if not place.exists():
            return {}
        lines = place.read_bytes().splitlines(keepends=True)
    rows = [row for line in lines if (row := decode_row(line)) is not None]
    return {row.iteration: row for row in rows if after < row.iteration <= upto}


@contextmanager
def _algorithm(
    config: ExperimentConfig, snapshot: Mapping[str, Any], scratch: Path
) -> Iterator[ExactPPO]:
    import ray
    from ray.rllib.algorithms.ppo import PPO

    from raytrain.ppo.algorithm import ExactPPO, algorithm_arguments

    logging.getLogger("ray.rllib").setLevel(logging.CRITICAL)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    arguments = algorithm_arguments(config, snapshot)
    started = not ray.is_initialized()
    request = PPO.default_resource_request(arguments["config"].to_dict())
    if started:
        needed = int(-(-request.required_resources.get("CPU", 1.0) // 1))
        before = signal.getsignal(signal.SIGTERM)
        try:
            with _ray.local.lean_instance(), _ray.local.quiet_start():
                ray.init(
                    address="local",  # Never another cluster that runs on this machine.
                    num_cpus=max(os.cpu_count() or 1, needed),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _system_config=_ray.local.SYSTEM_CONFIG,
                )
        except SystemExit as error:  # From the handler for SIGTERM that Ray sets meanwhile.
            ray.shutdown()
            number = error.code if isinstance(error.code, int) else 1
            raise SystemExit(128 + number if number == signal.SIGTERM else number) from None
        except Exception as error:  # Ray raises bare Exceptions here.
            ray.shutdown()
            reason = str(error).rstrip(".")
            raise RaytrainError(f"Ray could not start on this machine: {reason}.") from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray has set a handler of its own.
    try:
        with _ray.local.files_below(str(scratch)):
            algorithm = ExactPPO(**arguments)
        try:
            with _threads(int(request.bundles[0].get("CPU", 1))):
                yield algorithm
        finally:
            algorithm.stop()
    finally:
        if started:
            with nothing_left():
                ray.shutdown()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Torch's sums depend on the number of threads; Ray gives an actor as many as it has CPUs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, number))
    try:
        yield
    finally:
        torch.set_num_threads(before)
