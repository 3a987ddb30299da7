"""A program's objects as they are while it runs, and the module that is written for them."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from raytrain.migrate.script_code import ScriptCode


def names_of(text: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of a program in the module `__main__`, as they are while it runs."""
    program = place / "program.py"
    program.write_text(text)
    main = types.ModuleType("__main__")
    main.__file__ = str(program)
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(compile(text, program, "exec"), vars(main))
    return vars(main)


def evaluated(code: ScriptCode, expression: str, place: Path) -> Any:
    """The value of an expression over the module's names, in another process."""
    place.mkdir()
    (place / f"{code.module}.py").write_text(code.text)
    program = f"import json, {code.module} as m; print(json.dumps({expression}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + code.text
    return json.loads(done.stdout)
