"""Tables on the screen, in `build/benchmarks.json` and in `docs/develop/benchmarks.md`.

    build/benchmarks.json         {"throughput": {"command", "measured", "machine", "versions",
                                  "rounds", "quick", "tables": [{"title", "rows", "notes"}]}, ...}
    docs/develop/benchmarks.md    <!-- throughput --> ... <!-- end of throughput --> in prose

Measuring one table leaves the others in the file as they were.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from measuring import Table
from rich.console import Console
from rich.table import Table as Printed

from raytrain.versions import versions

_ALSO = ("stable_baselines3", "mujoco", "rliable")


def machine() -> str:
    """`AMD EPYC, 2 cores, 23 GB, Linux`"""
    memory = round(psutil.virtual_memory().total / 2**30)
    return f"{_cpu()}, {os.cpu_count()} cores, {memory} GB of memory, {platform.system()}"


def library_versions() -> dict[str, str]:
    found = {name: str(version) for name, version in versions().items()}
    for name in _ALSO:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def entry(tables: Sequence[Table], *, command: str, rounds: int, quick: bool) -> dict[str, Any]:
    return {
        "command": command,
        "measured": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": library_versions(),
        "rounds": rounds,
        "quick": quick,
        "tables": [
            {"title": t.title, "rows": [dict(r) for r in t.rows], "notes": list(t.notes)}
            for t in tables
        ],
    }


def store(path: Path, name: str, found: Mapping[str, Any]) -> None:
    """Put one entry into the JSON document and leave the others."""
    document = read(path)
    document[name] = dict(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def show(tables: Sequence[Table]) -> None:
    # A table that does not fit is better broken by the terminal than squeezed into stumps.
    console = Console(width=300)
    for table in tables:
        printed = Printed(title=table.title, title_justify="left")
        for column in table.columns:
            printed.add_column(column)
        for row in table.rows:
            printed.add_row(*(_cell(row.get(column)) for column in table.columns))
        console.print(printed)
        for note in table.notes:
            console.print(note)


def markdown(found: Mapping[str, Any]) -> str:
    """An entry of the JSON document as it stands in the docs."""
    listed = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    parts = [f"`{found['command']}`, {found['measured']}, rounds: {found['rounds']}."]
    if found["quick"]:
        parts.append("**A quick run, to see that it works: the figures mean nothing.**")
    parts.append(f"{found['machine']}; {listed}.")
    for each in found["tables"]:
        table = Table(each["title"], tuple(each["rows"]), tuple(each["notes"]))
        columns = table.columns
        lines = [
            "| " + " | ".join(columns) + " |",
            "| " + " | ".join("---" for _ in columns) + " |",
        ]
        for row in table.rows:
            lines.append("| " + " | ".join(_cell(row.get(column)) for column in columns) + " |")
        parts.append(f"**{table.title}**")
        parts.append("\n".join(lines))
        parts.extend(table.notes)
    return "\n\n".join(parts)


def write_docs(path: Path, document: Mapping[str, Any]) -> list[str]:
    """Fill the places of `path` for which the document has an entry. Returns their names.

    Raises ValueError if there is no place for an entry.
    """
    text = path.read_text()
    for name, found in document.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.S)
        if not place.search(text):
            raise ValueError(f"{path} has no place `<!-- {name} -->` ... `<!-- end of {name} -->`")
        filled = markdown(found)
        text = place.sub(partial(_filled, filled), text)
    path.write_text(text)
    return list(document)


def _filled(content: str, place: re.Match[str]) -> str:
    return f"{place[1]}\n{content}\n\n{place[2]}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
