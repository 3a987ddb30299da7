"""JSON: documents that are read back from storage, where others may have written them, and values
that are written.

The size and depth of what is read are checked before it is parsed: deep nesting is too much for
the parser, and for everything that walks through the document afterwards, such as the check of a
signature.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

from pydantic import AfterValidator, InstanceOf, TypeAdapter, ValidationError

if TYPE_CHECKING:
    from raytrain.storage.location import Location

LARGEST = 16 << 20
"""Bytes of a document; a manifest has some ten thousand."""
DEEPEST = 100
"""Lists and objects within one another; a manifest has ten."""
_MOST_DIGITS = 300  # of an integer: a float can hold it
_MOST = 1e15  # steps, seconds

# A string that is never closed ends with the document.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}

_T = TypeVar("_T")


def parse_json(data: bytes, *, largest: int = LARGEST, **options: Any) -> Any:
    """What `json.loads` makes of `data` and `options`. Raises `ValueError` if it is not JSON in
    UTF-8, is larger than `largest` bytes, is nested deeper than `DEEPEST`, or has an integer that
    no float can hold."""
    require_bounds(data, largest=largest)
    return json.loads(data.decode("utf-8-sig"), parse_int=_integer, **options)


def read_json(file: Location) -> Any:
    """As `parse_json`, reading no more of the file than may be parsed. Raises `OSError`, too."""
    return parse_json(file.read_bytes(LARGEST + 1))


def read_object(file: Location) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file, or if it is damaged. Raises
    `OSError`."""
    try:
        document = read_json(file)
    except (FileNotFoundError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def json_ready(value: Any) -> Any:
    """`value` with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def validated(schema: TypeAdapter[_T], document: Mapping[str, Any]) -> _T:
    """`document` as what `schema` describes. Raises `ValueError`, naming the first key that is
    wrong and what was found there."""
    try:
        return schema.validate_python(document)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        raise ValueError(f"the key {key!r} is missing")
    if problem["type"] == "unexpected_keyword_argument":
        raise ValueError(f"the key {key!r} is unknown")
    if problem["type"] == "value_error":
        raise ValueError(f"{key}: {problem['ctx']['error']}")
    message = re.sub(r"^\w+ should ", "must ", problem["msg"])
    raise ValueError(f"{key}: {message}, found {problem['input']!r:.100}")


def is_amount(value: Any) -> bool:
    """Whether a value that was read is a number of steps, seconds or the like."""
    return isinstance(value, int | float) and 0 <= value < _MOST


def moment(text: str) -> datetime:
    """The moment of an ISO 8601 text with an offset from UTC, as it is written into files. Raises
    `ValueError` for another text, and for a year that some time zone's calendar does not reach."""
    parsed = datetime.fromisoformat(text)
    if parsed.tzinfo is None:
        raise ValueError(f"{text!r} has no offset from UTC")
    if not 1970 <= parsed.year < 9999:
        raise ValueError(f"{text!r} is not in a year from 1970 to 9998")
    return parsed


def _moment_text(text: str) -> str:
    moment(text)
    return text


Text: TypeAlias = InstanceOf[str]
"""A string in a schema. Pydantic's own `str` refuses the surrogates of names that are not UTF-8."""
Moment: TypeAlias = Annotated[Text, AfterValidator(_moment_text)]
"""The text of a `moment` in a schema."""


def require_bounds(data: bytes, *, largest: int = LARGEST) -> None:
    """Raise `ValueError` for a document that `parse_json` would refuse to parse."""
    if len(data) > largest:
        raise ValueError(f"it is larger than {largest:,} bytes")
    if data.count(b"[") + data.count(b"{") <= DEEPEST:
        return
    brackets = _STRING.sub(b"", data).translate(None, _NO_BRACKETS)
    if max(accumulate(_STEPS[bracket] for bracket in brackets), default=0) > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer in it has {len(digits)} digits")
    return int(digits)
