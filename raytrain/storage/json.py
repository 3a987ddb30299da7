"""JSON that is read back from storage, where others may have written it.

Its size and its depth are looked at before it is parsed: what is nested deep is not too much for the
parser alone, but for everything that walks through the document after it, the check of a signature first.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain.storage.location import Location

LARGEST = 16 << 20
"""Bytes of a document; a manifest has some ten thousand."""
DEEPEST = 100
"""Lists and objects within one another; a manifest has ten."""
_MOST_DIGITS = 300  # of an integer, so that it is not too large for a float
_MOST = 1e15  # steps, seconds

# One that is never closed ends with the document.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def parse_json(data: bytes, *, largest: int = LARGEST, **options: Any) -> Any:
    """What `json.loads` makes of `data` and `options`. Raises `ValueError` if it is not JSON in UTF-8, is
    larger than `largest` bytes, is nested deeper than `DEEPEST`, or has an integer that no float can hold."""
    require_bounds(data, largest=largest)
    return json.loads(data.decode("utf-8-sig"), parse_int=_integer, **options)


def is_amount(value: Any) -> bool:
    """Whether a value that was read is a number of steps, seconds or the like."""
    return isinstance(value, int | float) and 0 <= value < _MOST


def moment(text: str) -> datetime:
    """The moment of an ISO 8601 text with an offset from UTC, as it is written into files. Raises
    `ValueError` for another text, and for a year that some time zone's calendar does not reach."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text!r} has no offset from UTC")
    if not 1970 <= found.year < 9999:
        raise ValueError(f"{text!r} is not in a year from 1970 to 9998")
    return found


def read_json(file: Location) -> Any:
    """As `parse_json`, of a file of which no more is read than may be parsed. Raises `OSError`, too."""
    return parse_json(file.read_bytes(LARGEST + 1))


def require_bounds(data: bytes, *, largest: int = LARGEST) -> None:
    """Raise `ValueError` for a document that `parse_json` would refuse to parse."""
    if len(data) > largest:
        raise ValueError(f"it is larger than {largest:,} bytes")
    if data.count(b"[") + data.count(b"{") <= DEEPEST:
        return
    brackets = _STRING.sub(b"", data).translate(None, _NO_BRACKETS)
    if max(accumulate(_STEPS[each] for each in brackets), default=0) > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer in it has {len(digits)} digits")
    return int(digits)
