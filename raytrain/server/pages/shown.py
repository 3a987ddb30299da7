"""Values as the pages show them. Each function is a filter of the templates.

`static/dom.js` has the same functions for what the browser draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raytrain.storage.escapes import printable

NOTHING = "\u2013"
_UNITS = ("B", "kB", "MB", "GB", "TB")


def count(value: float | None) -> str:
    """`12,345`."""
    return NOTHING if value is None else f"{value:,.0f}"


def number(value: float | None) -> str:
    """Four significant digits: `475`, `82.58`, `0.001234`, `1.2e-07`."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        return f"{value:.3g}"
    digits = max(0, 3 - (math.floor(math.log10(abs(value))) if value else 0))
    text = f"{value:,.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def size(value: float | None) -> str:
    """Bytes in powers of 1,000: `390.5 kB`."""
    if value is None:
        return NOTHING
    unit = 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def seconds(value: float | None) -> str:
    """The two largest units: `45s`, `3m 20s`, `5h 12m`, `2d 3h`."""
    if value is None:
        return NOTHING
    if value < 60:
        return f"{value:.0f}s"
    minutes = int(value) // 60
    if minutes < 60:
        return f"{minutes}m {int(value) % 60}s"
    if minutes < 24 * 60:
        return f"{minutes // 60}h {minutes % 60}m"
    return f"{minutes // 1440}d {minutes % 1440 // 60}h"


def percent(value: float | None) -> str:
    """`40%`; rounded down, so that 100% is the end."""
    return NOTHING if value is None else f"{math.floor(value * 100)}%"


def moment(value: str | None) -> str:
    """`2026-01-01 12:00`, in UTC. The browser shows how long ago it is."""
    return NOTHING if not value else value[:16].replace("T", " ")


def times(value: int, one: str, many: str | None = None) -> str:
    """`1 failure`, `2 failures`."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def spark(values: Sequence[float | None], width: int = 96, height: int = 24) -> str:
    """The `d` of an SVG path through the values; empty with fewer than two of them."""
    known = [(i, v) for i, v in enumerate(values) if v is not None and math.isfinite(v)]
    if len(known) < 2:
        return ""
    low, high = min(v for _, v in known), max(v for _, v in known)
    across, up = width / (len(values) - 1), (height - 4) / ((high - low) or 1.0)
    points = (f"{i * across:.1f} {height - 2 - (v - low) * up:.1f}" for i, v in known)
    return "M" + "L".join(points)


def lost_s(run: Mapping[str, Any]) -> float:
    """Seconds that failures cost: trained again, and without training."""
    return float(run.get("redone_s") or 0.0) + float(run.get("away_s") or 0.0)


FILTERS = {
    "count": count,
    "lost_s": lost_s,
    "moment": moment,
    "number": number,
    "percent": percent,
    "printable": printable,
    "seconds": seconds,
    "size": size,
    "spark": spark,
    "times": times,
}
