"""YAML text -> plain values, and the line of every key. Config files, `--set` and `--env-config`
are all read here, so a value means the same wherever it is written.

Plain values are those of YAML 1.2's core schema, and `_` may group the digits of a number:

    null ~ and nothing            null
    true false (True, TRUE)       booleans
    12  -3  200_000  0x1F  0o17   whole numbers
    1.5  1e-4  .5  .inf  .nan     numbers
    everything else               text

A value that YAML 1.1 (PyYAML, and so most Python tools) reads differently is refused with its line,
as either meaning would surprise somebody: `010`, `yes`, `off`, `1:30`, `0b11`, `2024-01-31`. A key
that is written twice in one mapping is refused too (PyYAML silently keeps the last one). Merge keys
(`<<`) and tags such as `!!str` of YAML 1.1 are supported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from raytrain.config.errors import NOTHING, ConfigError, KeyPath, Problem


@dataclass(frozen=True)
class Document:
    """`lines` counts from 1 and has each key and list item; the root is the empty path."""

    value: Any
    lines: dict[KeyPath, int]


class _Loader(yaml.SafeLoader):
    """The safe loader with the plain values of the module's docstring."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (AttributeError, KeyError, TypeError, ValueError):  # !!bool 7, !!timestamp soon
            tag = node.tag.replace(_TAG, "!!")
            value = repr(node.value) if isinstance(node.value, str) else "this"
            message = f"{value} is no {tag}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark) from None


_TAG = "tag:yaml.org,2002:"
_TAGS = ("null", "bool", "int", "float", "str", "map", "seq")
_DEEPEST = 100
_MOST_VALUES = 100_000
_AMBIGUOUS = "!ambiguous"
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_PLAIN = {
    f"{_TAG}null": r"~|null|Null|NULL|",
    f"{_TAG}bool": r"true|True|TRUE|false|False|FALSE",
    f"{_TAG}int": r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)|0x[0-9a-fA-F]+|0o[0-7]+",
    f"{_TAG}float": (
        rf"[-+]?(?:\.{_DIGITS}|{_DIGITS}\.(?:{_DIGITS})?)(?:[eE][-+]?[0-9]+)?"
        rf"|[-+]?{_DIGITS}[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
    f"{_TAG}merge": "<<",
}
# What is no text for PyYAML, and text by the rules above; and `08`, a number in YAML 1.2 alone.
_OTHERWISE = {
    rule.pattern: rule
    for rules in yaml.SafeLoader.yaml_implicit_resolvers.values()
    for tag, rule in rules
    if tag.removeprefix(_TAG) in ("bool", "int", "float", "timestamp")
}
_Loader.yaml_implicit_resolvers = {
    # None: they are tried in this order, whatever the first character is.
    None: [
        *((tag, re.compile(f"(?:{pattern})\\Z")) for tag, pattern in _PLAIN.items()),
        *((_AMBIGUOUS, rule) for rule in (*_OTHERWISE.values(), re.compile(r"[-+]?0[0-9_]+\Z"))),
    ]
}


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would not read as text."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _whole_number(loader: yaml.SafeLoader, node: yaml.Node) -> int:
    text = str(node.value).replace("_", "")
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


_Loader.add_constructor(f"{_TAG}int", _whole_number)


def _ambiguous(text: str) -> str:
    """The message for such a value, with what to write instead."""
    quoted = f'"{text}", if it is text'
    if re.fullmatch(r"[-+]?[0-9_]+", text):
        quoted = f"{int(text.replace('_', ''))}, or {quoted}"
    elif text.lower() in ("yes", "on", "no", "off"):
        quoted = f"{str(text.lower() in ('yes', 'on')).lower()}, or {quoted}"
    elif "-" not in text[1:]:
        quoted = f"the number in decimal digits, or {quoted}"
    return f"{text} has different meanings in YAML 1.1 and YAML 1.2: write {quoted}"


def parse_yaml(text: str, source: str) -> Document:
    """Parse one document. `source` is the name of the text in errors: a path, or `--set KEY=VALUE`.

    Raises ConfigError for a syntax error (with line and column), for a key that is written twice or
    is not text, for an anchor that contains itself, and for anchors that stand for too much.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return Document(None, {(): 1})
            if _size(node, {}) > _MOST_VALUES:
                message = (
                    f"it has more than {_MOST_VALUES:,} values when its anchors are written out"
                )
                raise ConfigError(Problem(message, where=source))
            problems = list(_key_problems(node, source, ()))
            if problems:
                raise ConfigError(*problems)
            value = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_problem(error, source)) from error
    except RecursionError:
        raise ConfigError(Problem("not readable: it is nested too deeply", where=source)) from None
    except (yaml.YAMLError, ValueError) as error:  # A character that YAML does not allow.
        raise ConfigError(Problem(f"not readable as YAML: {error}", where=source)) from error
    lines: dict[KeyPath, int] = {(): 1}
    _collect_lines(node, (), lines)
    return Document(value, lines)


def dump_yaml(values: Any) -> str:
    """YAML text from which `parse_yaml` reads the same values."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _syntax_problem(error: yaml.MarkedYAMLError, source: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    where = source if mark is None else f"{source}:{mark.line + 1}:{mark.column + 1}"
    message = ", ".join(part for part in (error.context, error.problem) if part)
    return Problem(f"not valid YAML: {message}", where=where)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for: a few anchors within one another can be billions."""
    if id(node) not in known:
        known[id(node)] = 1  # An anchor that contains itself is another problem.
        inner = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            inner = [item for _, item in node.value]
        known[id(node)] = 1 + sum(_size(item, known) for item in inner)
    return known[id(node)]


def _place(node: yaml.Node, source: str) -> str:
    """File and line; an option of the command line is one line, and is shown whole."""
    return source if source.startswith("--") else f"{source}:{node.start_mark.line + 1}"


def _problem_of(node: yaml.Node, parents: tuple[yaml.Node, ...]) -> str | None:
    if node in parents:
        return "the anchor contains itself"
    if node.tag == _AMBIGUOUS:
        return _ambiguous(node.value)
    if node.tag.startswith(_TAG) and node.tag.removeprefix(_TAG) not in _TAGS:
        return f"the tag {node.tag.replace(_TAG, '!!')} has no meaning here; leave it out"
    if len(parents) == _DEEPEST:
        return f"it is nested more than {_DEEPEST} deep"
    return None


def _key_problems(
    node: yaml.Node, source: str, parents: tuple[yaml.Node, ...], path: str = ""
) -> Iterator[Problem]:
    message = _problem_of(node, parents)
    if message is not None:
        yield Problem(message, _place(node, source), path[:80])
        return
    parents = (*parents, node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _key_problems(item, source, parents, f"{path}[{index}]")
    if not isinstance(node, yaml.MappingNode):
        return
    first_lines: dict[str, int] = {}
    for key, item in node.value:
        line, where = key.start_mark.line + 1, _place(key, source)
        if key.tag == f"{_TAG}merge":
            yield from _key_problems(item, source, parents, path)
            continue
        if key.tag == _AMBIGUOUS:
            key.tag = f"{_TAG}str"  # A key is text in any case.
        if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_TAG}str":
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            yield Problem("a key must be text; put it in quotes", where, path, shown)
            continue
        dotted = f"{path}.{key.value}" if path else key.value
        if key.value in first_lines:
            message = f"the key is given twice; it is already on line {first_lines[key.value]}"
            shown = item.value if isinstance(item, yaml.ScalarNode) else NOTHING
            yield Problem(message, where, dotted, shown)
        first_lines.setdefault(key.value, line)
        yield from _key_problems(item, source, parents, dotted)


def _collect_lines(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    # Runs after the values are constructed: by then PyYAML has merged `<<` into the nodes.
    if isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            _collect_lines(item, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _collect_lines(item, (*path, index), lines)
