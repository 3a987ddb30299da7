"""YAML text -> plain values, and the line of every key.

The values are those of YAML's safe loader, with two differences: `1e-4` and `3e5` are numbers
(PyYAML follows YAML 1.1, where they are text), and a key that is written twice in one mapping is
an error (PyYAML keeps the last one without a word).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from raytrain.config.problems import NOTHING, ConfigError, Problem

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the root: ("training", "lr", 0, 1)."""


@dataclass(frozen=True)
class Document:
    """`lines` counts from 1 and has each key and list item; the root is the empty path."""

    value: Any
    lines: dict[KeyPath, int]


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's floats."""


_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:float"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?(?:[0-9][0-9_]*)?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*\.(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str) -> Document:
    """Parse one document. `source` names the text in errors: a path, or `--set KEY=VALUE`.

    Raises ConfigError for a syntax error (with line and column), a key that is written twice or is
    not text, and an anchor that contains itself.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return Document(None, {(): 1})
            problems = list(_key_problems(node, source, ()))
            if problems:
                raise ConfigError(*problems)
            value = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_problem(error, source)) from error
    except (yaml.YAMLError, ValueError) as error:
        # A character that YAML does not allow, or a value such as 2024-13-45 that looks like a
        # date.
        raise ConfigError(Problem(f"not readable as YAML: {error}", where=source)) from error
    lines: dict[KeyPath, int] = {(): 1}
    _collect_lines(node, (), lines)
    return Document(value, lines)


def _syntax_problem(error: yaml.MarkedYAMLError, source: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    where = source if mark is None else f"{source}:{mark.line + 1}:{mark.column + 1}"
    said = ", ".join(part for part in (error.context, error.problem) if part)
    return Problem(f"not valid YAML: {said}", where=where)


def _key_problems(
    node: yaml.Node, source: str, parents: tuple[yaml.Node, ...], path: str = ""
) -> Iterator[Problem]:
    if node in parents:
        line = node.start_mark.line + 1
        yield Problem("the anchor contains itself", where=f"{source}:{line}", field=path)
        return
    parents = (*parents, node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _key_problems(item, source, parents, f"{path}[{index}]")
    if not isinstance(node, yaml.MappingNode):
        return
    first_lines: dict[str, int] = {}
    for key, item in node.value:
        line = key.start_mark.line + 1
        where = f"{source}:{line}"
        if key.tag == "tag:yaml.org,2002:merge":
            yield from _key_problems(item, source, parents, path)
            continue
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            yield Problem("a key must be text; put it in quotes", where, path, shown)
            continue
        dotted = f"{path}.{key.value}" if path else key.value
        if key.value in first_lines:
            said = f"the key is given twice; it is already on line {first_lines[key.value]}"
            shown = item.value if isinstance(item, yaml.ScalarNode) else NOTHING
            yield Problem(said, where, dotted, shown)
        first_lines.setdefault(key.value, line)
        yield from _key_problems(item, source, parents, dotted)


def _collect_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    # Runs after the values were constructed: PyYAML has then merged `<<` into the nodes.
    if isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            _collect_lines(item, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _collect_lines(item, (*path, index), lines)
