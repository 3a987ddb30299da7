"""A YAML file, or a dictionary, -> `ExperimentConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raytrain.config.curriculum import stage_config
from raytrain.config.environment import resolve_env
from raytrain.config.errors import ConfigError, Problem, nearest
from raytrain.config.metric_names import metric_problems
from raytrain.config.schema import NOT_YAML_KEYS, ExperimentConfig
from raytrain.config.search_space import put_value
from raytrain.config.secrets import PlainSecret
from raytrain.config.validation import validated
from raytrain.config.yaml_lines import Document, KeyPath, parse_yaml


def load_config(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    name: str | None = None,
    storage_path: str | None = None,
    check_env: bool = True,
) -> ExperimentConfig:
    """Read and validate a YAML file.

    `overrides` are `KEY=VALUE` with a dotted key and a YAML value, later ones winning; `name` and
    `storage_path` override those two. `check_env` looks the environment up, which imports
    Gymnasium and the environment's module; without it (a machine that only submits) the
    environment is taken on trust.

    Raises ConfigError with every problem found, each with its line.
    """
    path = Path(path)
    document = parse_yaml(_read(path), str(path))
    if not isinstance(document.value, dict):
        found = "nothing" if document.value is None else f"a {type(document.value).__name__}"
        said = f"the file must hold a mapping of keys to values; it holds {found}"
        raise ConfigError(Problem(said, where=str(path)))
    values: dict[str, Any] = document.value
    sources = _Sources(path, document)
    problems = [
        Problem("unknown key; it is not set in a file", sources.where((key,)), key, values.pop(key))
        for key in NOT_YAML_KEYS
        if key in values
    ]
    for override in overrides:
        problems += _override(values, override, sources)
    for key, argument in (("name", name), ("storage_path", storage_path)):
        if argument is not None:
            values[key] = argument
            sources.set((key,), f"--{key.replace('_', '-')} {argument}")
    if "name" not in values:
        values["name"] = path.stem
        sources.set(("name",), f"{path}: no name is given, and the file's own cannot serve")
    import_path = str(path.resolve().parent)
    config: ExperimentConfig | None = None
    try:
        config = validated({**values, "import_path": import_path}, sources.where)
    except PlainSecret:
        raise
    except ConfigError as error:
        problems += error.problems
    else:
        problems += metric_problems(config, sources.where)
    if check_env:
        problems += _env_problems(values.get("environment"), import_path, sources)
        problems += _stage_problems(config, import_path, sources)
        problems += _evaluation_problems(config, import_path, sources)
    if problems or config is None:
        raise ConfigError(*problems)
    return config


def config_from_dict(data: Mapping[str, Any]) -> ExperimentConfig:
    """A config from the Python API, from `to_dict()`, or from a stored experiment.

    The environment is not looked up: a stored config must be readable where it cannot be run.
    """
    if "search" in data:
        said = "unknown key; write a search space in the place of the value"
        raise ConfigError(Problem(said, field="search"))
    return validated(_without_former_keys(data))


def _without_former_keys(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Experiments of earlier versions hold keys that have had no effect on any run."""
    learners = data.get("learners")
    if not isinstance(learners, Mapping) or "compile_updates" not in learners:
        return data
    kept = {name: value for name, value in learners.items() if name != "compile_updates"}
    return {**data, "learners": kept}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = None
        if path.parent.is_dir():
            near = nearest(path.name, [p.name for p in path.parent.iterdir() if p.is_file()])
        near = None if near is None else str(path.parent / near)
        raise ConfigError(Problem("no such file", str(path), suggestion=near)) from error
    except IsADirectoryError as error:
        said = "is a directory; name the YAML file in it"
        raise ConfigError(Problem(said, where=str(path))) from error
    except UnicodeDecodeError as error:
        said = f"not a text file in UTF-8: {error.reason} at byte {error.start}"
        raise ConfigError(Problem(said, where=str(path))) from error
    except OSError as error:
        raise ConfigError(Problem(f"cannot be read: {error.strerror}", where=str(path))) from error


class _Sources:
    """Where each value was written."""

    def __init__(self, path: Path, document: Document) -> None:
        self._file = str(path)
        self._places: dict[KeyPath, str] = {
            keys: f"{path}:{line}" for keys, line in document.lines.items() if keys
        }

    def where(self, keys: KeyPath) -> str:
        """The place of the key, or of the nearest section around it that is written."""
        while keys:
            if keys in self._places:
                return self._places[keys]
            keys = keys[:-1]
        return self._file

    def set(self, keys: KeyPath, place: str) -> None:
        self._places = {k: p for k, p in self._places.items() if k[: len(keys)] != keys}
        self._places[keys] = place


_DEEPEST = 50  # A key of a config has at most a few parts, and Python's stack an end.


def _override(values: dict[str, Any], override: str, sources: _Sources) -> list[Problem]:
    """Apply one KEY=VALUE, in place."""
    place = f"--set {override}"
    key, equals, text = override.partition("=")
    keys = tuple(key.strip().split("."))
    if not equals or not all(keys) or len(keys) > _DEEPEST:
        return [Problem("must be KEY=VALUE, with a dotted key such as training.lr=1e-4", place)]
    try:
        value = parse_yaml(text, place).value
    except ConfigError as error:
        return [p if isinstance(p, Problem) else Problem(p, place) for p in error.args]
    node = values
    for depth, part in enumerate(keys[:-1], start=1):
        if node.get(part) is None:
            node[part] = {}
        if not isinstance(node[part], dict):
            dotted = ".".join(keys[:depth])
            return [Problem("is a single value and has no keys", place, dotted, node[part])]
        node = node[part]
    node[keys[-1]] = value
    sources.set(keys, place)
    return []


def _env_problems(environment: Any, import_path: str, sources: _Sources) -> list[Problem]:
    """What is wrong with the environment, as far as the section can be read."""
    if not isinstance(environment, dict) or not isinstance(environment.get("env"), str):
        return []
    # The names of the arguments are checked and not their values, so search spaces may stay.
    arguments = environment.get("env_config")
    try:
        creator = resolve_env(environment["env"], import_path)
        creator.check_arguments(arguments if isinstance(arguments, dict) else {})
    except ConfigError as error:
        return [
            replace(problem, where=sources.where(tuple(problem.field.split("."))))
            for problem in error.problems
        ]
    return []


def _stage_problems(
    config: ExperimentConfig | None, import_path: str, sources: _Sources
) -> list[Problem]:
    """What is wrong with the stages' arguments of the environment."""
    problems = []
    for index, stage in enumerate(config.curriculum if config is not None else ()):
        own = stage_config(config, index).environment if config is not None else None
        if own is None or not stage.environment.env_config:
            continue
        prefix: KeyPath = ("curriculum", index, "environment", "env_config")
        field = f"curriculum[{index}].environment.env_config"
        given = stage.environment.env_config
        for name, problem in _argument_problems(own.env, import_path, own.env_config):
            if name in given:
                place = sources.where((*prefix, name))
                problems.append(replace(problem, where=place, field=f"{field}.{name}"))
    return problems


def _evaluation_problems(
    config: ExperimentConfig | None, import_path: str, sources: _Sources
) -> list[Problem]:
    """What is wrong with the arguments that the environment gets in evaluation alone."""
    given = None if config is None else config.evaluation.evaluation_config.env_config
    if config is None or not given:
        return []
    prefix = ("evaluation", "evaluation_config", "env_config")
    both = {**config.environment.env_config, **given}
    return [
        replace(problem, where=sources.where((*prefix, name)), field=".".join((*prefix, name)))
        for name, problem in _argument_problems(config.environment.env, import_path, both)
        if name in given
    ]


def _argument_problems(
    env: str, import_path: str, arguments: Mapping[str, Any]
) -> list[tuple[str, Problem]]:
    """Arguments that the environment does not take, by name."""
    try:
        resolve_env(env, import_path).check_arguments(arguments)
    except ConfigError as error:
        prefix = "environment.env_config"
        return [(each.field.removeprefix(prefix).lstrip("."), each) for each in error.problems]
    return []


def with_trial_values(config: ExperimentConfig, chosen: Mapping[str, Any]) -> ExperimentConfig:
    """The config of one trial: `chosen` is what Tune made of `param_space(config)`. Only what is
    searched is taken from it: the rest, which Tune stored with the trial, may have been changed since
    by the person who continues the run.

    Raises ConfigError if a value that was drawn is not valid.
    """
    from raytrain.config.loading import config_from_dict

    values = config.to_dict()
    for space in config.search:
        found: Any = chosen
        for key in space.path:
            found = found[key]
        put_value(values, space.path, found)
    return config_from_dict(values)
