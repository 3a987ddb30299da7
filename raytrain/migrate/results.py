"""Tune's `ResultGrid`, read from a run's files.

    len(results), results[0], for result in results
    results.get_best_result(metric, mode), results.get_dataframe()
    results.errors, .num_errors, .num_terminated, .experiment_path, .filesystem

Each result is a `ray.tune.Result`: `metrics` (the last row of result.json, with the trial's
settings under `config`), `metrics_dataframe` (all rows), `checkpoint` (the newest good one),
`best_checkpoints`, `path`, `filesystem`, `config`, `error`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from raytrain.checkpoint import Catalogue, Entry, trials
from raytrain.config import ExperimentConfig, to_algorithm_config, with_trial_values
from raytrain.errors import BadInput, RaytrainError
from raytrain.records.row_files import last_row, rows_after
from raytrain.storage import Location
from raytrain.storage.json import read_object

if TYPE_CHECKING:
    import pandas
    from ray.tune import Result

RESULTS = "result.json"
_PARAMS = "params.json"
_SCOPES = ("last", "all", "avg", "last-5-avg", "last-10-avg")


class TrialFailed(RaytrainError):
    """A trial did not finish; the text says why."""


@dataclass(frozen=True)
class ResultGrid:
    """See the module's docstring."""

    results: tuple[Result, ...]
    finished: frozenset[str]
    """Paths of the trials that reached their `stop`."""
    experiment_path: str
    filesystem: Any
    metric: str | None = None
    mode: str | None = None

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: int) -> Result:
        return self.results[index]

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    @property
    def errors(self) -> list[Exception]:
        """Why trials failed, one exception for each that did."""
        return [result.error for result in self.results if result.error is not None]

    @property
    def num_errors(self) -> int:
        """How many trials failed."""
        return len(self.errors)

    @property
    def num_terminated(self) -> int:
        """How many trials reached their `stop`."""
        return sum(result.path in self.finished for result in self.results)

    def get_best_result(
        self,
        metric: str | None = None,
        mode: str | None = None,
        scope: Literal["last", "all", "avg", "last-5-avg", "last-10-avg"] = "last",
        filter_nan_and_inf: bool = True,
    ) -> Result:
        """The result of the trial whose `metric` (with `/` in front of nested names) is the
        greatest (`mode="max"`) or the least (`"min"`). `scope`: which rows count, as in Tune.
        Without the two arguments those of `TuneConfig` are used.

        Raises:
            BadInput: no metric or mode is known.
            RaytrainError: no trial has a value of the metric.
        """
        metric, mode = metric or self.metric, mode or self.mode
        if len(self.results) == 1:
            return self.results[0]
        if metric is None or mode not in ("max", "min"):
            raise BadInput(
                "get_best_result needs a metric and a mode ('max' or 'min'): give both, or set "
                "them in TuneConfig."
            )
        if scope not in _SCOPES:
            raise BadInput(f"get_best_result: scope must be one of {', '.join(_SCOPES)}.")
        values = [
            (value, result)
            for result in self.results
            if (value := _value_of(result, metric, mode, scope)) is not None
            and (math.isfinite(value) or not filter_nan_and_inf)
        ]
        if not values:
            raise RaytrainError(f"No trial has a finite value of {metric!r}.")
        sign = 1 if mode == "max" else -1
        return max(values, key=lambda pair: sign * pair[0])[1]

    def get_dataframe(
        self, filter_metric: str | None = None, filter_mode: str | None = None
    ) -> pandas.DataFrame:
        """One row for each trial: its last result (or, with the arguments, that with the best value
        of a metric), nested names joined by `/`, and its settings under `config/`."""
        import pandas
        from ray.tune.utils import flatten_dict

        rows = []
        for result in self.results:
            row: Mapping[str, Any] = {
                key: value for key, value in (result.metrics or {}).items() if key != "config"
            }
            frame = result.metrics_dataframe
            if filter_metric is not None and frame is not None and filter_metric in frame:
                column = frame[filter_metric]
                best = column.idxmin() if filter_mode == "min" else column.idxmax()
                row = frame.loc[best].to_dict()
            config = {f"config/{key}": value for key, value in (result.config or {}).items()}
            rows.append({**flatten_dict(dict(row)), **flatten_dict(config), "logdir": result.path})
        return pandas.DataFrame(rows)

    def __repr__(self) -> str:
        lines = "".join(f"\n  {result.path}" for result in self.results)
        return f"<ResultGrid of {len(self)} trial(s) in {self.experiment_path}:{lines}>"


def read_results(
    config: ExperimentConfig,
    place: Location,
    finished: Mapping[str, Entry],
    errors: Mapping[str, str],
    *,
    metric: str | None,
    mode: str | None,
) -> ResultGrid:
    """The results in an experiment's directory. `finished`, `errors`: of trials, by name."""
    found = [_result(config, trial, errors.get(trial.name)) for trial in trials(place)]
    paths = frozenset((place / name).path for name in finished)
    return ResultGrid(tuple(found), paths, place.path, place.fs, metric, mode)


def _result(config: ExperimentConfig, trial: Location, error: str | None) -> Result:
    import pandas
    from ray.tune import Checkpoint, Result
    from ray.tune.utils import flatten_dict

    results = trial / RESULTS
    rows = list(rows_after(results, 0)) if results.exists() else []
    metrics = last_row(results) if rows else None
    entries = [
        entry
        for entry in Catalogue(trial).entries()
        if entry.good is not False and entry.manifest is not None and entry.kind != "error"
    ]
    entries = [entry for entry in entries if not entry.in_quarantine and entry.kind != "best"]
    entries.sort(key=lambda entry: (entry.iteration, entry.kind == "final"))
    checkpoints = [
        (Checkpoint(entry.location.path, entry.location.fs), dict(entry.good_manifest.metrics))
        for entry in entries
    ]
    if metrics is not None:
        metrics = {**metrics, "config": _settings(config, trial)}
    return Result(
        metrics=metrics,
        checkpoint=checkpoints[-1][0] if checkpoints else None,
        error=None if error is None else TrialFailed(error),
        path=trial.path,
        metrics_dataframe=pandas.DataFrame([flatten_dict(row) for row in rows]),
        best_checkpoints=checkpoints,
        _storage_filesystem=trial.fs,
    )


def _settings(config: ExperimentConfig, trial: Location) -> dict[str, Any]:
    """RLlib's settings of a trial, as `PPOConfig.to_dict()` gives them."""
    params = trial / _PARAMS
    drawn = read_object(params) if config.search and params.exists() else {}
    own = with_trial_values(config, drawn) if drawn or not config.search else None
    return {} if own is None else dict(to_algorithm_config(own).to_dict())


def _value_of(result: Result, metric: str, mode: str, scope: str) -> float | None:
    frame = result.metrics_dataframe
    if frame is None or metric not in frame or not len(frame):
        return None
    column = frame[metric]
    if scope == "all":
        return float(column.max() if mode == "max" else column.min())
    if scope == "avg":
        return float(column.mean())
    if scope != "last":
        return float(column.tail(int(scope.split("-")[1])).mean())
    return float(column.iloc[-1])
