"""Classes, functions and lambdas of a program become a module that another process imports."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.script_programs import evaluated, names_of

from raytrain.migrate.script_code import ScriptCode
from raytrain.migrate.script_source import NoSource

PROGRAM = """
from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import math as mathematics
import re
import sys
from os.path import join as joined
from pathlib import Path

import gymnasium as gym
import numpy as np

import beside
from beside import LIST, relu

SCALE = 2.5
TABLE = {"a": (1, 2), "b": [float("inf"), None]}
OPENED = open(__file__)
MIXED = np.array([1.0, 2.0], np.float32)

class Base:  # a comment
    factor = SCALE

    def __init__(self, more=0):
        self.more = more

class Own(Base):
    '''Text
        with lines.'''

    @property
    def value(self):
        return helper(self.factor) + beside.ONE + self.more

    def again(self):
        return super().__init__()

def helper(x):
    total = 0
    for SCALES in range(2):
        total += x * mathematics.floor(SCALE)
    return total

def with_file():
    return OPENED.read()

def make():
    offset = 4
    class Local(Own):
        def offset(self):
            return offset
    return Local, (lambda: Local().offset()), lambda x: [y + x for y in range(offset)]

Local, first, second = make()
args = argparse.Namespace(size=3, unused=OPENED)
by_args = lambda config, k=1: {"size": args.size * k, "config": config}
partly = functools.partial(helper, 2)
box = gym.spaces.Box(-1.0, 1.0, (2,))
space = gym.spaces.Dict({"x": box, "n": gym.spaces.Discrete(3, start=1)})
of_space = lambda: (space.contains({"x": MIXED[:2] * 0, "n": 2}), TABLE, joined("a", "b"))

@dataclasses.dataclass(frozen=True)
class Settings:
    factor: float = 2.0
    more: Marked = None

SETTINGS = Settings(3.0)
logger = logging.getLogger(__name__)
PATTERN = re.compile("a+", re.IGNORECASE)

@functools.lru_cache
def cached(x: int) -> float:
    logger.debug("cached")
    return x * SETTINGS.factor + len(PATTERN.findall("Aab"))

def decorated(function):
    @functools.wraps(function)
    def inner(*arguments):
        return function(*arguments) + CALLS
    return inner

CALLS = 100

@decorated
def plus(x, y):
    return x + y

def of_modules():
    return [beside.ONE, LIST, Path("a").name, relu(3)]

def even(n):
    return n == 0 or odd(n - 1)

def odd(n):
    return n != 0 and even(n - 1)

if __name__ == "__main__":
    def inside(x): return x + args.size
"""


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the program, as they are while it runs."""
    (tmp_path / "beside.py").write_text(
        "import math\nONE = 1\nLIST = [None]\nrelu = max.__call__ and abs\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    return names_of(PROGRAM, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("name", "expression", "expected"),
    [
        ("Own", "m.Own(more=5).value", 16.0),
        ("Local", "[m.Local().offset(), m.Local().value]", [4, 11.0]),
        ("first", "m.given()", 4),
        ("second", "m.given(10)", [10, 11, 12, 13]),
        ("by_args", "m.given(7, k=2)", {"size": 6, "config": 7}),
        ("partly", "m.given()", 8),
        ("of_space", "m.given()", [True, {"a": [1, 2], "b": [float("inf"), None]}, "a/b"]),
        ("cached", "m.given(2)", 7.0),
        ("plus", "m.given(1, 2)", 103),
        ("of_modules", "m.given()", [1, [None], "a", 3]),
        ("even", "m.even(10)", True),
        ("inside", "m.inside(1)", 4),
    ],
)
def test_an_object_of_a_program_is_the_same_elsewhere(
    names: dict[str, Any], tmp_path: Path, name: str, expression: str, expected: Any
) -> None:
    code = ScriptCode("own_code")
    path = code.path_of(names[name], "given")
    assert path.partition(":")[0] == "own_code"
    expression = expression.replace("m.given", f"m.{path.partition(':')[2]}")
    assert evaluated(code, expression, tmp_path / "elsewhere") == expected


def test_the_module_holds_what_is_used_only(names: dict[str, Any]) -> None:
    code = ScriptCode("own_code")
    code.path_of(names["by_args"], "given")
    assert "size=3" in code.text
    assert not any(word in code.text for word in ("unused", "comment", "Own", "TABLE", "open("))


def test_names_of_modules_stay_as_they_are() -> None:
    code = ScriptCode("own_code")
    assert code.path_of(json.dumps, "given") == "json:dumps"
    assert code.path_of(Path, "given").endswith(":Path")
    assert not code.is_needed


def test_a_value_that_cannot_be_written_is_refused_by_name(names: dict[str, Any]) -> None:
    with pytest.raises(NoSource, match=r"with_file uses 'OPENED': a value of type TextIOWrapper"):
        ScriptCode("own_code").path_of(names["with_file"], "given")


def test_an_object_without_source_is_refused() -> None:
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec("def made(): return 1", scope)
    with pytest.raises(NoSource, match="source of made is not known"):
        ScriptCode("own_code").path_of(scope["made"], "given")


def test_two_objects_of_one_name_get_two_names(names: dict[str, Any], tmp_path: Path) -> None:
    code = ScriptCode("own_code")
    first = code.path_of(names["first"], "given").partition(":")[2]
    second = code.path_of(names["second"], "given").partition(":")[2]
    assert first != second
    expression = f"[m.{first}(), m.{second}(1)]"
    assert evaluated(code, expression, tmp_path / "elsewhere") == [4, [1, 2, 3, 4]]
