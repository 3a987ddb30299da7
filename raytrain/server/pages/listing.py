"""What Runs asks the history for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunQuery:
    """`sort`: a column, with `-` before it for descending order."""

    q: str = ""
    state: str | None = None
    sort: str = "-changed_at"
    page: int = 1
    per_page: int = 50
    include_gone: bool = True
