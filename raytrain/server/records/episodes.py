"""How the returns and lengths of a trial's episodes are distributed.

    {"returns": {"edges": [n + 1 numbers], "counts": [n numbers]}, "lengths": the same}

Bins have equal widths, from the lowest to the highest value; those of lengths begin at whole
numbers. Values that are not finite, or all but infinite, are left out; without any value there are
no edges.
"""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raytrain.records import read_episodes
from raytrain.storage import Location, storage_errors

BINS = 40
_MOST = 1e300  # So that differences are finite, too.


def episodes(trial: Location) -> dict[str, Any]:
    """See the module's docstring. Raises `StorageError`, also for a damaged file."""
    with storage_errors("Reading the episodes", trial):
        try:
            table = read_episodes(trial, ("return", "length"))
        except pa.ArrowInvalid as error:
            raise OSError(None, str(error), str(trial / "episodes")) from error
    return {
        "returns": histogram(table["return"]),
        "lengths": histogram(table["length"], whole=True),
    }


def histogram(values: Any, *, whole: bool = False) -> dict[str, list[float]]:
    """The histogram of a column. `whole`: its values are whole numbers, and so are the edges."""
    numbers = pc.cast(values, pa.float64())
    numbers = numbers.filter(pc.less(pc.abs(numbers), _MOST))
    if not len(numbers):
        return {"edges": [], "counts": []}
    extremes = pc.min_max(numbers).as_py()
    lowest, highest = extremes["min"], extremes["max"]
    if whole:
        width = float(max(1, math.ceil((highest + 1 - lowest) / BINS)))
        bins = math.ceil((highest + 1 - lowest) / width)
    else:
        bins = BINS if highest > lowest else 1
        width = (highest - lowest) / bins
    # The highest value belongs to the last bin.
    places = pc.divide(pc.subtract(numbers, lowest), width or 1.0)
    places = pc.min_element_wise(pc.floor(places), bins - 1)
    counts = [0] * bins
    for found in pc.value_counts(places).to_pylist():
        counts[int(found["values"])] = found["counts"]
    edges = [lowest + place * width for place in range(bins)]
    return {"edges": [*edges, lowest + bins * width if whole else highest], "counts": counts}
