"""The tables of docs/guide/config.md, made from the schema.

    python -m raytrain.config.reference docs/guide/config.md    write the tables into the file

In the file, a table lies between `<!-- table: SECTION -->` and `<!-- end -->`; the text around them
is written by hand.
"""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raytrain.config.errors import show_value
from raytrain.config.schema import NOT_YAML_KEYS, ExperimentConfig
from raytrain.config.validation import schema_fields, section_type

TOP = "top"
"""The table of the keys that stand outside the sections."""

_TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(text: str) -> str:
    """The document with new tables. Raises KeyError for a section that does not exist."""
    sections = all_sections()
    return _TABLE.sub(lambda m: f"{m[1]}{table(sections[m[2]], m[2])}{m[3]}", text)


def all_sections() -> dict[str, type[BaseModel]]:
    """Dotted name -> section, in the schema's order; `top` for the config itself."""
    sections: dict[str, type[BaseModel]] = {TOP: ExperimentConfig}
    for path, section in schema_fields():
        # A section that only overrides another one (a stage's `training`) has the keys of that one.
        if section is not None and not issubclass(section, tuple(sections.values())):
            sections[".".join(path)] = section
    return sections


def table(section: type[BaseModel], name: str) -> str:
    """The section's keys as a Markdown table; sections within it have tables of their own."""
    lines = ["| key | type | default | |", "| --- | --- | --- | --- |"]
    for key, field in section.model_fields.items():
        is_section = section_type(field.annotation) is not None
        if name == TOP and (key in NOT_YAML_KEYS or is_section):
            continue
        kind = "mapping" if is_section else _type_name(field.annotation)
        shown = "required" if field.is_required() else f"`{_default(field)}`"
        if (name, key) == (TOP, "name"):
            shown = "the file's name"
        text = " ".join((field.description or "").split())
        lines.append(f"| `{field.alias or key}` | {kind} | {shown} | {text} |")
    return "\n".join(lines) + "\n"


def described_fields() -> list[dict[str, Any]]:
    """Every key of the file that holds a value: {key, type, default, required, help, choices}, in
    the schema's order. `default` is a JSON-able value; `choices` is None if any value may be."""
    sections = {"": ExperimentConfig} | {
        ".".join(path): section for path, section in schema_fields() if section is not None
    }
    fields = []
    for path, inner in schema_fields():
        *parents, name = path
        model = sections[".".join(parents)]
        field = next(f for key, f in model.model_fields.items() if (f.alias or key) == name)
        if inner is not None and get_origin(field.annotation) is not list:
            continue
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        fields.append(
            {
                "key": ".".join(path),
                "type": _type_name(field.annotation).replace("`", ""),
                "default": _plain(default),
                "required": field.is_required(),
                "help": " ".join((field.description or "").split()),
                "choices": _choices(field.annotation),
            }
        )
    return fields


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _choices(annotation: Any) -> list[Any] | None:
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Literal:
            return list(get_args(part))
    return None


def _default(field: FieldInfo) -> str:
    value = field.get_default()
    return show_value(value.model_dump() if isinstance(value, BaseModel) else value)


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        # Wherever a float may stand, a whole number may.
        wider = [part for part in arguments if part is not int or float not in arguments]
        return " or ".join(_type_name(part) for part in wider)
    if hasattr(annotation, "__metadata__"):
        return _type_name(arguments[0])
    plain = {int: "int", float: "float", bool: "bool", str: "text", type(None): "null"}
    return plain.get(annotation) or ("list" if origin is list else "mapping")


def main(arguments: list[str]) -> int:
    """Rewrite the tables of each file named."""
    for argument in arguments:
        path = Path(argument)
        path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
