"""A YAML file, or a dictionary, -> `ExperimentConfig`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raytrain.config.environment import resolve_env
from raytrain.config.errors import ConfigError, KeyPath, Problem, dotted, nearest
from raytrain.config.metric_names import metric_problems
from raytrain.config.own_code import own_code_problems
from raytrain.config.schema import NOT_YAML_KEYS, ExperimentConfig
from raytrain.config.search import put_value, take_out
from raytrain.config.secrets import PlainSecret
from raytrain.config.validation import validated
from raytrain.config.yaml_lines import Document, parse_yaml

EXPERIMENT = "the stored config"
"""Where a value of a stored config is, in messages."""


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
    `storage_path` override those two. `check_env` looks up the environment and the user's own code,
    which imports Gymnasium and their modules; without it (on a machine that only submits) they are
    not checked.

    Raises ConfigError with every problem found, each with its line.
    """
    path = Path(path)
    return config_from_text(
        _read(path),
        path,
        overrides=overrides,
        name=name,
        storage_path=storage_path,
        check_env=check_env,
    )


def config_from_text(
    text: str,
    path: Path,
    *,
    overrides: Sequence[str] = (),
    name: str | None = None,
    storage_path: str | None = None,
    check_env: bool = True,
) -> ExperimentConfig:
    """As `load_config`, with the text that the file at `path` has or will have."""
    document = parse_yaml(text, str(path))
    if not isinstance(document.value, dict):
        kind = "nothing" if document.value is None else f"a {type(document.value).__name__}"
        message = f"the file must hold a mapping of keys to values; it holds {kind}"
        raise ConfigError(Problem(message, where=str(path)))
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
        sources.set(("name",), f"{path}: no name is given, and the file's name cannot be used")
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
        for keys, problem in own_code_problems(config) if check_env else ():
            problems.append(replace(problem, where=sources.where(keys)))
    if check_env:
        problems += _env_problems(values.get("environment"), config, import_path, sources)
    if problems or config is None:
        raise ConfigError(*problems)
    return config


def config_from_dict(data: Mapping[str, Any]) -> ExperimentConfig:
    """A config from the Python API, from `to_dict()`, or from a stored experiment.

    The environment is not looked up: a stored config must be readable where it cannot be run.
    """
    if "search" in data:
        message = "unknown key; write a search space in the place of the value"
        raise ConfigError(Problem(message, field="search"))
    learners = data.get("learners")
    if isinstance(learners, Mapping) and "compile_updates" in learners:
        # A key of earlier versions, which had no effect on any run.
        kept = {name: value for name, value in learners.items() if name != "compile_updates"}
        data = {**data, "learners": kept}
    return validated(data)


def stored_config(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> ExperimentConfig:
    """A stored config with `KEY=VALUE` overrides. Raises ConfigError with every problem found; the
    name and the storage belong to the directory, and cannot be overridden."""
    values = copy.deepcopy(dict(data))
    sources = _Sources(Path(EXPERIMENT), Document(None, {}))
    problems = []
    for override in overrides:
        key = override.partition("=")[0].split(".")[0].strip()
        if key in (*NOT_YAML_KEYS, "name", "storage_path"):
            problems.append(Problem("cannot be changed for a stored run", f"--set {override}", key))
        else:
            problems += _override(values, override, sources)
    if problems:
        raise ConfigError(*problems)
    if not overrides:
        return config_from_dict(values)
    config = validated(values, sources.where)
    problems += metric_problems(config, sources.where)
    if problems:
        raise ConfigError(*problems)
    return config


def _read(path: Path) -> str:
    near = None
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        message = "no such file"
        if path.parent.is_dir():
            near = nearest(path.name, [p.name for p in path.parent.iterdir() if p.is_file()])
    except IsADirectoryError:
        message = "is a directory; give the YAML file in it"
    except UnicodeDecodeError as error:
        message = f"not a text file in UTF-8: {error.reason} at byte {error.start}"
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    suggestion = None if near is None else str(path.parent / near)
    raise ConfigError(Problem(message, where=str(path), suggestion=suggestion))


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


_DEEPEST = 50  # A key has at most a few parts; many parts would overflow Python's stack.


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
        return list(error.problems)
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


def _env_problems(
    environment: Any, config: ExperimentConfig | None, import_path: str, sources: _Sources
) -> Iterator[Problem]:
    """What is wrong with the environment, and with its arguments in stages and evaluation.

    `environment` is the section as it is written; `config` is None if the file has other problems.
    """
    if not isinstance(environment, dict) or not isinstance(environment.get("env"), str):
        return
    env, arguments = environment["env"], environment.get("env_config")
    # The names of the arguments are checked and not their values, so search spaces may stay.
    arguments = arguments if isinstance(arguments, dict) else {}
    for problem in _argument_problems(env, import_path, arguments):
        yield replace(problem, where=sources.where(tuple(problem.field.split("."))))
    if config is None:
        return
    overrides: list[tuple[KeyPath, Mapping[str, Any]]] = [
        (("curriculum", index, "environment", "env_config"), stage.environment.env_config)
        for index, stage in enumerate(config.curriculum)
    ]
    evaluation = config.evaluation.evaluation_config.env_config or {}
    overrides.append((("evaluation", "evaluation_config", "env_config"), evaluation))
    for keys, override in overrides:
        arguments = {**config.environment.env_config, **override}
        for problem in _argument_problems(env, import_path, arguments):
            name = problem.field.removeprefix("environment.env_config.")
            if name in override:
                path = (*keys, name)
                yield replace(problem, where=sources.where(path), field=dotted(path))


def _argument_problems(
    env: str, import_path: str, arguments: Mapping[str, Any]
) -> tuple[Problem, ...]:
    try:
        resolve_env(env, import_path).check_arguments(arguments)
    except ConfigError as error:
        return error.problems
    return ()


def with_trial_values(
    config: ExperimentConfig | Mapping[str, Any], drawn: Mapping[str, Any]
) -> ExperimentConfig:
    """The config of one trial: `config`, or its `to_dict()`, with the values that were drawn.

    `drawn` is what Tune made of `param_space(config)`. Only the searched values are taken from it:
    the others, which Tune stored with the trial, may be older than `config`.

    Raises ConfigError if a value that was drawn is not valid.
    """
    values = config.to_dict() if isinstance(config, ExperimentConfig) else dict(config)
    plain, spaces, _ = take_out(values)
    for space in spaces:
        value: Any = drawn
        for key in space.path:
            value = value[key]
        put_value(plain, space.path, value)
    return config_from_dict(plain)
