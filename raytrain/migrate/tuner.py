"""`raytrain.Tuner`: `ray.tune.Tuner` for RLlib's PPO, with raytrain's runs behind it.

    from raytrain import Tuner                     # instead of: from ray.tune import Tuner
    tuner = Tuner("PPO", param_space=config, run_config=RunConfig(...))
    results = tuner.fit()

The arguments become raytrain's config (`ppo_config`, `run_options`), classes and functions of the
program become import paths (`script_code`), `fit()` is `raytrain.train`, and the results are read
from the run's directory (`results`). A second call with the same settings continues the run.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raytrain.checkpoint import ExperimentFile
from raytrain.checkpoint.experiment_file import EXPERIMENT_FILE, WRITTEN_CODE
from raytrain.config import ExperimentConfig, config_digest, config_from_dict, require_metrics
from raytrain.config.errors import ConfigError, Problem
from raytrain.config.schema import NOT_YAML_KEYS
from raytrain.config.yaml_lines import dump_yaml
from raytrain.driver.console import ConsoleReporter
from raytrain.driver.experiment import resume
from raytrain.driver.experiment import train as run
from raytrain.driver.outcome import Outcome, finished_trials
from raytrain.errors import BadInput
from raytrain.migrate.ppo_config import TakenOver, as_ppo_config, take_over
from raytrain.migrate.results import ResultGrid, TrialFailed, read_results
from raytrain.migrate.run_options import (
    checkpoint_values,
    run_config_values,
    stop_values,
    tune_config_values,
)
from raytrain.migrate.script_code import ScriptCode
from raytrain.storage import Location
from raytrain.storage.signing import KEY_VARIABLE, signing_key

_PLACEHOLDER = "script"


@dataclass(frozen=True)
class Experiment:
    """A program's settings as raytrain's config, the modules to write for it, and notes on
    settings without effect."""

    config: ExperimentConfig
    code: str | None
    notes: tuple[str, ...]

    def run(
        self,
        *,
        callbacks: Sequence[Any] = (),
        address: str | None = None,
        fresh: bool = False,
    ) -> Outcome:
        """Start the run, continue it, or find it finished: see `driver.experiment.train`."""
        reporter = ConsoleReporter()
        for note in self.notes:
            reporter.note(note)
        return run(
            self.config,
            fresh=fresh,
            address=address,
            reporter=reporter,
            command="the same program",
            callbacks=callbacks,
            write_code=None if self.code is None else self._write_code,
        )

    def _write_code(self) -> None:
        assert self.config.import_path is not None and self.code is not None
        place, name = Path(self.config.import_path), module_name(self.config.name)
        place.mkdir(parents=True, exist_ok=True)
        file = place / f"{name}.py"
        if file.is_file() and file.read_text() == self.code:
            return
        Location.of(place).write_atomic(file.name, self.code.encode())
        # This process may have imported it for another run of the same program.
        sys.modules.pop(name, None)


def module_name(experiment: str) -> str:
    """The name of the module that is written for an experiment."""
    return "code_of_" + re.sub(r"\W", "_", experiment)


def experiment_of(
    config: Any,
    options: Callable[[TakenOver], None],
    *,
    name: str | None,
    storage_path: Any,
) -> Experiment:
    """A `PPOConfig` and what `options` adds as an experiment. Without a `name` it gets one from its
    settings and its code: the same settings are the same run.

    Raises:
        ConfigError: with every setting that cannot be taken over.
    """
    storage = {} if storage_path is None else {"storage_path": storage_path}
    if name is None:
        first = _read(config, options, {"name": "run", **storage}, _PLACEHOLDER)
        defining = config_digest(first.config) + (first.code or "")
        name = f"PPO_{_env_name(config.env)}_{_short_digest(defining)}"
    made = _read(config, options, {"name": name, **storage}, module_name(name))
    return replace(made, notes=tuple(dict.fromkeys(made.notes)))


def _read(
    config: Any, options: Callable[[TakenOver], None], frame: Mapping[str, Any], module: str
) -> Experiment:
    code = ScriptCode(module)
    taken = take_over(config, code)
    options(taken)
    values = {**copy.deepcopy(taken.values), **frame}
    beside = _script_directory()
    values["import_path"] = beside if beside in code.places else next(iter(code.places), beside)
    problems = list(taken.problems)
    made: ExperimentConfig | None = None
    try:
        made = config_from_dict(values)
        require_metrics(made)
    except ConfigError as error:
        known = {problem.field.rpartition(".")[2] for problem in problems}
        if "env" in known:
            known.add("environment")
        problems += [p for p in error.problems if p.field.rpartition(".")[2] not in known]
    if problems or made is None:
        raise ConfigError(*problems)
    if not code.is_needed:
        return Experiment(made, None, tuple(taken.notes))
    if "://" in made.storage_path.removeprefix("file://") or signing_key() is not None:
        where = "on an object store" if signing_key() is None else f"signed ({KEY_VARIABLE})"
        message = (
            "the program has classes or functions of its own, whose source is written into the "
            f"run's directory; this is not possible for runs that are {where}. Put them into a "
            "module (a file beside the program) and import them"
        )
        raise ConfigError(Problem(message, "", "storage_path", made.storage_path))
    place = Location.of(made.storage_path) / made.name
    made = made.model_copy(update={"import_path": str(place.local_path / WRITTEN_CODE)})
    return Experiment(made, code.text, tuple(taken.notes))


def _script_directory() -> str:
    """Where Python looks for the modules of the program first: beside a script, or in the working
    directory (`python -m`, a notebook)."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    if file is None or getattr(main, "__spec__", None) is not None:
        return os.getcwd()
    return str(Path(file).absolute().parent)


def _env_name(env: Any) -> str:
    name = env if isinstance(env, str) else getattr(env, "__name__", "env")
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name.rpartition(":")[2]).strip("-.<>") or "env"


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Tuner:
    """The same arguments as `ray.tune.Tuner`; see the module's docstring.

    Raises:
        ConfigError: settings that raytrain does not take over, each with the reason.
    """

    def __init__(
        self,
        trainable: Any = None,
        *,
        param_space: Any = None,
        tune_config: Any = None,
        run_config: Any = None,
    ) -> None:
        from ray.tune import RunConfig, TuneConfig

        run_config, tune_config = run_config or RunConfig(), tune_config or TuneConfig()

        def options(taken: TakenOver) -> None:
            run_config_values(run_config, taken)
            tune_config_values(tune_config, taken)

        config = as_ppo_config(trainable, param_space)
        self._experiment: Experiment | None = experiment_of(
            config,
            options,
            # `options` refuses what is no RunConfig.
            name=getattr(run_config, "name", None),
            storage_path=getattr(run_config, "storage_path", None),
        )
        self._place = Location.of(self._experiment.config.storage_path) / (
            self._experiment.config.name
        )
        self._callbacks = tuple(run_config.callbacks or ())
        fail_fast = getattr(run_config.failure_config, "fail_fast", False)
        self._raises = str(fail_fast).lower() == "raise"
        self._metric, self._mode = tune_config.metric, tune_config.mode
        self._outcome: Outcome | None = None

    @classmethod
    def restore(  # noqa: PLR0917 - Tune's own arguments
        cls,
        path: str | os.PathLike[str],
        trainable: Any = None,
        resume_unfinished: bool = True,
        resume_errored: bool = True,
        restart_errored: bool = False,
        param_space: Any = None,
        storage_filesystem: Any = None,
    ) -> Tuner:
        """A Tuner that continues the run in the directory `path`, from its newest good checkpoints,
        with the settings that are stored there. Trials that failed are continued, too.

        Raises:
            BadInput: there is no run of raytrain in the directory, or an option is not possible.
        """
        _refuse_options(resume_unfinished, restart_errored, param_space, storage_filesystem)
        if trainable is not None:
            as_ppo_config(trainable, None)
        tuner = cls.__new__(cls)
        tuner._place = Location.of(path)
        ExperimentFile.existing(tuner._place)  # Raises what is wrong.
        tuner._experiment, tuner._callbacks, tuner._raises = None, (), False
        tuner._metric = tuner._mode = tuner._outcome = None
        return tuner

    @classmethod
    def can_restore(cls, path: str | os.PathLike[str], storage_filesystem: Any = None) -> bool:
        """Whether the directory `path` holds a run of raytrain."""
        _refuse_options(True, False, None, storage_filesystem)
        return (Location.of(path) / EXPERIMENT_FILE).exists()

    def fit(self) -> ResultGrid:
        """Train until every trial has ended, from wherever the run stands; see `raytrain.train`.

        Raises:
            BadInput: the environment cannot be made, or the directory holds another run.
            TrialFailed: a trial failed, with `FailureConfig(fail_fast="raise")`.
            SystemExit: a signal ended the run; it was saved.
        """
        if self._experiment is None:
            self._outcome = resume(str(self._place), command="the same program")
        else:
            self._outcome = self._experiment.run(callbacks=self._callbacks)
        if self._outcome.exit_code > 1:
            raise SystemExit(self._outcome.exit_code)
        if self._raises and self._outcome.exit_code:
            raise TrialFailed(self._outcome.message)
        return self.get_results()

    def get_results(self) -> ResultGrid:
        """The results that are in the run's directory now."""
        stored = ExperimentFile.existing(self._place).config
        moved = {"name": self._place.name, "storage_path": str(self._place.parent)}
        config = config_from_dict({**stored, **moved})
        return read_results(
            config,
            self._place,
            finished_trials(config, self._place),
            {} if self._outcome is None else self._outcome.errors,
            metric=self._metric,
            mode=self._mode,
        )


def _refuse_options(
    resume_unfinished: bool, restart_errored: bool, param_space: Any, storage_filesystem: Any
) -> None:
    if not resume_unfinished:
        raise BadInput("Tuner.restore: an unfinished trial is always continued.")
    if restart_errored:
        raise BadInput(
            "Tuner.restore: a trial that failed continues from its newest good checkpoint. To "
            "begin again, give the run another name."
        )
    if param_space is not None:
        raise BadInput(
            "Tuner.restore: param_space is stored with the run; leave it out. To change a setting "
            "that may change, call Tuner(...).fit() with the same name and storage_path: it "
            "continues the run."
        )
    if storage_filesystem is not None:
        raise BadInput("Tuner: give the path as a URI, such as s3://bucket/runs/name.")


def train_ppo(
    config: Any,
    *,
    stop: Mapping[str, Any] | None,
    checkpoint: Any = None,
    name: str | None = None,
    storage_path: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    address: str | None = None,
) -> Outcome:
    """`raytrain.train` for a `PPOConfig`."""
    experiment = _of_program(config, stop, checkpoint, name, storage_path)
    return experiment.run(fresh=fresh, address=address)


def _of_program(
    config: Any,
    stop: Mapping[str, Any] | None,
    checkpoint: Any,
    name: str | None,
    storage_path: Any,
) -> Experiment:
    def options(taken: TakenOver) -> None:
        stop_values(stop, taken)
        checkpoint_values(checkpoint, taken)

    given = as_ppo_config(config, None)
    return experiment_of(given, options, name=name, storage_path=storage_path)


def to_yaml(
    config: Any,
    *,
    stop: Mapping[str, Any] | None = None,
    checkpoint: Any = None,
    name: str | None = None,
) -> str:
    """The YAML file of a `PPOConfig`: what differs from raytrain's defaults."""
    stop = {"timesteps": 1_000_000} if stop is None else stop
    experiment = _of_program(config, stop, checkpoint, name, None)
    values = experiment.config.to_dict()
    frame = config_from_dict(
        {
            "name": experiment.config.name,
            "environment": {"env": values["environment"]["env"]},
            "stop": {"iterations": 1},
        }
    ).to_dict()
    changed = _changed(values, frame)
    for key in (*NOT_YAML_KEYS, "storage_path"):
        changed.pop(key, None)
    changed = {"name": experiment.config.name, **changed, "stop": values_of_stop(experiment.config)}
    changed.setdefault("environment", {})["env"] = values["environment"]["env"]
    lines = "".join(f"# {note}\n" for note in experiment.notes)
    if experiment.code is not None:
        file = f"{module_name(experiment.config.name)}.py"
        code = "".join(f"#   {line}".rstrip() + "\n" for line in experiment.code.splitlines())
        lines += f"# {file}, beside this file, must hold the program's own code:\n{code}"
    return lines + dump_yaml(changed)


def values_of_stop(config: ExperimentConfig) -> dict[str, Any]:
    """The keys of `stop` that are given."""
    values = dict(config.stop.criteria)
    if config.stop.window != type(config.stop).model_fields["window"].default:
        values["window"] = config.stop.window
    return values


def _changed(values: Mapping[str, Any], frame: Mapping[str, Any]) -> dict[str, Any]:
    """Values that differ from those of `frame`, at any depth."""
    changed: dict[str, Any] = {}
    for key, value in values.items():
        before = frame.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping) and before:
            if inner := _changed(value, before):
                changed[key] = inner
        elif value != before or type(value) is not type(before):
            changed[key] = value
    return changed
