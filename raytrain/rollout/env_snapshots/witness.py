"""What an environment imports and reads while it is tried in a fresh process.

This finds modules that are imported by a name that is computed, and data files, which no import
statement names. A file that is also written is the environment's own output and does not count.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from raytrain.config.user_code import origin_of
from raytrain.versions import versions

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_OF_PYTHON = (".py", ".pyc", ".so")


class Seen(NamedTuple):
    """Names of modules (not of libraries that `versions` lists), and the absolute paths of files
    that are no modules; sorted."""

    imports: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


def witnessed(make_env: Any, function: Callable[..., Any], *arguments: Any) -> Seen:
    """Call `function(make_env, *arguments)` in this process, which ends soon afterwards: what looks
    on cannot be removed."""
    opened: dict[bool, set[str]] = {False: set(), True: set()}

    def look(event: str, details: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(details[0], str | os.PathLike):
            path = os.path.abspath(os.fsdecode(details[0]))
            opened[bool((details[2] or 0) & _WRITES)].add(path)

    before = set(sys.modules)
    sys.addaudithook(look)
    function(make_env, *arguments)
    new = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    imports = {
        name if origin == "user" else name.partition(".")[0]
        for name, file in new.items()
        if name not in before
        and name.partition(".")[0] not in versions()
        and isinstance(file, str)
        and (origin := origin_of(file)) in ("user", "installed")
    }
    reads = {
        path
        for path in opened[False] - opened[True]
        if origin_of(path) == "user" and not path.endswith(_OF_PYTHON) and Path(path).is_file()
    }
    return Seen(tuple(sorted(imports)), tuple(sorted(reads)))
