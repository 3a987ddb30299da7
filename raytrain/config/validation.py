"""Plain nested values -> `ExperimentConfig`, or every problem that is in them.

With search spaces, the values are validated once for each combination of candidates. Conflicts
between values are reported even when single values are wrong: the wrong values are left out, and
only conflicts that do not involve them are reported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from raytrain.config.cross_checks import Conflict, conflicts
from raytrain.config.errors import NOTHING, ConfigError, KeyPath, Problem, dotted, nearest
from raytrain.config.former_names import NOTES, RENAMED
from raytrain.config.schema import NOT_YAML_KEYS, ExperimentConfig
from raytrain.config.search import SearchSpace, combinations, put_value, take_out
from raytrain.config.secrets import PlainSecret, secrets_in
from raytrain.config.secrets import problem as secret_problem

Where = Callable[[KeyPath], str]
"""Keys -> `file:line`, `--set KEY=VALUE`, or an empty text."""

_REASONS = {
    "environment.clip_rewards": "RLlib's new API stack ignores it; wrap the environment instead",
    "resources.num_gpus": "RLlib's new API stack ignores it; use learners.num_gpus_per_learner",
    "debugging.seed": "the seed is a key of its own at the top: `seed: 0`",
    "training.model": "the network is described under rl_module.model_config",
    "env_runners.env_runner_cls": "raytrain has its own env runner, which can be resumed",
    "learners.learner_class": "your own learner stands under training.learner_class",
    "learners.learner_connector": "your own connectors stand under training.learner_connector",
    "rl_module.rl_module_spec": (
        "its parts are keys of rl_module: module_class, catalog_class, model_config"
    ),
    "rl_module.algorithm_config_overrides_per_module": "there is one policy only",
    **dict.fromkeys(
        (
            "callbacks.on_evaluate_offline_start",
            "callbacks.on_evaluate_offline_end",
            "callbacks.on_offline_eval_runners_recreated",
        ),
        "there is no offline evaluation",
    ),
    "learners.learner_config_dict": "it stands under training.learner_config_dict",
    "evaluation.evaluation_parallel_to_training": (
        "evaluation would read the weights while they are being updated, so its numbers could not "
        "be reproduced; leave the key out"
    ),
    **dict.fromkeys(
        (
            "fault_tolerance.restart_failed_env_runners",
            "fault_tolerance.ignore_env_runner_failures",
            "fault_tolerance.delay_between_env_runner_restarts_s",
            "fault_tolerance.env_runner_health_probe_timeout_s",
            "fault_tolerance.env_runner_restore_timeout_s",
        ),
        "raytrain restarts a lost env runner at once, with the state of its env group; leave the "
        "key out (fault_tolerance.max_num_env_runner_restarts limits how often)",
    ),
}


def nowhere(path: KeyPath) -> str:
    return ""


def validated(values: Mapping[str, Any], where: Where = nowhere) -> ExperimentConfig:
    """The config; raises ConfigError with everything that is wrong with it."""
    filled = {
        key: {} if value is None and _is_section(key) else value for key, value in values.items()
    }
    secrets = [
        _located(path, secret_problem(why), lambda keys: _without_value(where(keys)))
        for path, why in secrets_in(filled)
    ]
    if secrets:
        raise PlainSecret(*secrets)
    plain, spaces, refused = take_out(copy.deepcopy(filled))
    problems = [_located(path, problem, where) for path, problem in refused]
    for candidates in combinations(spaces):
        variant = copy.deepcopy(plain)
        for space, _, value in candidates:
            put_value(variant, space.path, value)
        searched = {space.path: (space, at) for space, at, _ in candidates}
        problems += _problems(variant, searched, where)
    if problems:
        # A problem that has nothing to do with the search occurs once for every combination.
        raise ConfigError(*{str(problem): problem for problem in problems}.values())
    search = tuple(sorted(spaces, key=lambda space: space.path))
    return ExperimentConfig.model_validate({**plain, "search": search})


def _without_value(place: str) -> str:
    """A place without its value: `--set KEY` for `--set KEY=VALUE`, `--name` for `--name VALUE`."""
    if place.startswith("--set "):
        return place.partition("=")[0]
    return place.partition(" ")[0] if place.startswith("--") else place


Searched = dict[tuple[str, ...], tuple[SearchSpace, KeyPath]]
"""Path of a searched value -> its search space, and the path of the candidate under validation."""


def _problems(values: dict[str, Any], searched: Searched, where: Where) -> list[Problem]:
    wrong: dict[KeyPath, list[Any]] = {}
    try:
        ExperimentConfig.model_validate(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            wrong.setdefault(_place(detail, values)[0], []).append(detail)
    problems = [_problem(details, values, searched, where) for details in wrong.values()]
    try:
        config = ExperimentConfig.model_validate(_without(values, wrong))
    except ValidationError:
        return problems
    possible = [conflict for conflict in conflicts(config) if not _involves(conflict, wrong)]
    return problems + [_conflict_problem(conflict, searched, where) for conflict in possible]


def _problem(details: list[Any], values: Any, searched: Searched, where: Where) -> Problem:
    """`details` are pydantic's for one path: a single one, or one for each type of a union."""
    path, value = _place(details[0], values)
    suggestion = None
    if details[0]["type"] == "extra_forbidden":
        message, suggestion = _unknown(path)
    else:
        first, *others = map(_sentence, details)
        message = " or ".join([first, *(other.removeprefix("must be ") for other in others)])
    return _located(path, Problem(message, value=value, suggestion=suggestion), where, searched)


def _located(
    path: KeyPath, problem: Problem, where: Where, searched: Searched | None = None
) -> Problem:
    message, at = problem.message, path
    for searched_path, (space, candidate) in (searched or {}).items():
        if path[: len(searched_path)] == searched_path:
            message, at = f"{message} (from {space.kind})", candidate
    return replace(problem, message=message, where=where(at), field=dotted(path))


def _conflict_problem(conflict: Conflict, searched: Searched, where: Where) -> Problem:
    # Point at a key that is written in a line of its own; the one to change may be a default.
    field = conflict.fields[0]
    at: KeyPath
    at = next((path for path in conflict.fields if where(path) != where(path[:-1])), field)
    for path in conflict.fields:
        if path in searched:
            at = searched[path][1]
    return Problem(conflict.message, where(at), dotted(field), conflict.value)


_SENTENCES = {
    "missing": "must be given",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping of keys to values",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}
"""pydantic's type of an error -> the message of raytrain."""


def _sentence(detail: Any) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    return _SENTENCES[kind].format(**context) if kind in _SENTENCES else str(detail["msg"])


def _unknown(path: KeyPath) -> tuple[str, str | None]:
    """The message for a key that does not exist, and the nearest key or the place of the key."""
    # Positions in a list are no names: the keys of every stage are the same.
    key, section = str(path[-1]), tuple(part for part in path[:-1] if isinstance(part, str))
    reason = _REASONS.get(dotted((*section, key)))
    if reason is not None:
        return f"not used here: {reason}", None
    fields = yaml_fields()
    valid = [field[-1] for field in fields if field[:-1] == section]
    if section and section[-1] in _WITH_METRICS:
        answer = _metric_as_key(key, valid)
        if answer is not None:
            return answer
    note = f": {NOTES[key]}" if key in NOTES else ""
    if key in RENAMED:
        place, _, name = RENAMED[key].rpartition(".")
        if place == dotted(section):
            return f"unknown key{note}", name
        return f"unknown key here{note}", RENAMED[key]
    if note:
        return f"unknown key{note}", None
    near = None if key in (field[-1] for field in fields) else nearest(key, valid)
    if near is not None:
        return "unknown key", near
    elsewhere = nearest(key, [field[-1] for field in fields])
    if elsewhere is not None:
        return "unknown key here", dotted(next(f for f in fields if f[-1] == elsewhere))
    place = f"under {dotted(section)}" if section else "at the top"
    return f"unknown key; the keys {place} are {', '.join(valid)}", None


_WITH_METRICS = ("stop", "until")


def _metric_as_key(key: str, valid: list[str]) -> tuple[str, str | None] | None:
    """The answer for a metric's name among the keys of `stop`, where Tune has metrics."""
    short = key.removeprefix("env_runners/")
    if short != key and (short in valid or short in RENAMED):
        return "unknown key", short if short in valid else RENAMED[short].rpartition(".")[2]
    if "/" in key or (key not in RENAMED and nearest(key, valid) is None):
        return f"unknown key; give the value of a metric under metrics: {{{key}: ...}}", None
    return None


def yaml_fields() -> list[tuple[str, ...]]:
    """Every key that the YAML file may have, sections and their keys, in the schema's order."""
    return [path for path, _ in schema_fields()]


def schema_fields(
    model: type[BaseModel] = ExperimentConfig, prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], type[BaseModel] | None]]:
    """The path of every key, and the section that the key holds, if it holds one."""
    for name, field in model.model_fields.items():
        if not prefix and name in NOT_YAML_KEYS:
            continue
        path, inner = (*prefix, field.alias or name), section_type(field.annotation)
        yield path, inner
        if inner is not None:
            yield from schema_fields(inner, path)


def section_type(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _is_section(key: Any) -> bool:
    field = ExperimentConfig.model_fields.get(key)
    return field is not None and section_type(field.annotation) is not None


def _place(detail: Any, values: Any) -> tuple[KeyPath, Any]:
    """The path of what is wrong, and its value. In pydantic's location, the name of a type may
    follow, for a union."""
    loc = detail["loc"]
    for depth, part in enumerate(loc):
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return (loc, NOTHING) if detail["type"] == "missing" else (loc[:depth], values)
    return loc, values


def _without(values: dict[str, Any], wrong: Iterable[KeyPath]) -> dict[str, Any]:
    rest = copy.deepcopy(values)
    for path in wrong:
        node: Any = rest
        for key in path:
            # A wrong item takes its list with it: the rest of the list would mean something else.
            if key == path[-1] or not isinstance(node.get(key), dict):
                node.pop(key, None)
                break
            node = node[key]
    return rest


def _involves(conflict: Conflict, wrong: Iterable[KeyPath]) -> bool:
    return any(
        path[: len(field)] == field or field[: len(path)] == path
        for path in wrong
        for field in conflict.fields
    )
