"""A program's objects are taken as they are when the run starts, not as the source reads: defaults,
attributes that were set later, several objects of one name."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from support.script_programs import evaluated, names_of

from raytrain.migrate.script_code import ScriptCode
from raytrain.migrate.script_source import NoSource

PROGRAM = """
import collections
import dataclasses
import enum
import functools
import typing

by_loop = []
for size in (5, 8):
    by_loop.append(lambda x, size=size, *, more=size: [size + x, more])

def made_with(limit):
    def step(x, *, limit=limit, scale=[1, 2]):
        return [x + limit, *scale]
    class Env:
        top = 1
        def __init__(self, start=limit):
            self.start = start
        def where(self):
            return Env.__name__, __name__
    return step, Env

three, Three = made_with(3)
four, Four = made_with(4)

class Counted:
    number, kept = 0, [1]
    empty: int
    def total(self):
        return [self.number, self.extra, self.kept, self.twice()]

Counted.number = 7
Counted.extra = "e"
Counted.twice = lambda self: 2 * self.number

def counts():
    counts.calls += 1
    return counts.calls

counts.calls = 10

class Outer:
    class Mode(enum.Enum):
        A = 1
        B = 2
    @staticmethod
    def made(x):
        return Outer, x
    @classmethod
    def of_class(cls, x):
        return cls.__name__, x

MODE = Outer.Mode.B
is_b = lambda: MODE is Outer.Mode.B

class Point(typing.NamedTuple):
    x: int
    y: int

POINT = Point(1, 2)
of_point = lambda: POINT.x + POINT.y

@dataclasses.dataclass
class Doubled:
    size: int
    def __post_init__(self):
        self.size *= 2

@dataclasses.dataclass
class Fields:
    most: int = size
    others: list = dataclasses.field(default_factory=list)

FIELDS = Fields(others=[1])
of_fields = lambda: [Fields().most, Fields().others, FIELDS.others]

DOUBLED = Doubled(2)
of_doubled = lambda: DOUBLED.size

def shadowing(offset):
    def one(x):
        return [offset + x] + [offset for offset in range(2)]
    return one

one, other = shadowing(1), shadowing(2)

def global_counter():
    global TOTAL
    TOTAL += 1
    return TOTAL

TOTAL = 5

def local_total(TOTAL):
    def more():
        return TOTAL
    return more

ten = local_total(10)

Called = collections.namedtuple("Called", "x")
CALLED = Called(1)
of_called = lambda: CALLED.x

def plain_wrapper(function):
    def inner(*arguments):
        return function(*arguments) + 100
    return inner

@plain_wrapper
def plus(x):
    return x + 1

@plain_wrapper
def plus_by_name(x):
    return plus(x)

def wrapper(function):
    @functools.wraps(function)
    def inner(*arguments):
        return function(*arguments) + 100
    return inner

def raw(x):
    return x

by_call = wrapper(raw)

def with_inner():
    @wrapper
    def raw(x):
        return x + 1
    return raw

inner = with_inner()

class Registry:
    known = {}
    @classmethod
    def register(cls, kind):
        cls.known[kind.__name__] = kind
        return kind

REGISTRY, NAMES = {}, []

def register(function):
    REGISTRY[function.__name__] = function
    NAMES.append(function)
    return function

@Registry.register
class Known:
    pass

@register
def known_too(x):
    return x + 1

of_registries = lambda: [Registry.known["Known"] is Known, REGISTRY["known_too"](1), len(NAMES)]
by_class = lambda: [Registry.known["Known"].__name__, len(Registry.known)]

class Given:
    def __init__(self, number, factor=None):
        self.number, self.factor = number, factor
    def all(self):
        return [self.number, self.factor.name]

def around(width):
    class Wide:
        size = width
    return Wide

Wide = around(3)
"""


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return names_of(PROGRAM, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("objects", "expression", "expected"),
    [
        (["by_loop[0]", "by_loop[1]"], "[m.a(1), m.b(1)]", [[6, 5], [9, 8]]),
        (["three", "four"], "[m.a(1), m.b(1)]", [[4, 1, 2], [5, 1, 2]]),
        (
            ["Three", "Four"],
            "[[c().start, c().where()[1], getattr(m, c.__qualname__) is c] for c in (m.a, m.b)]",
            [[3, "own_code", True], [4, "own_code", True]],
        ),
        (["Counted"], "m.a().total()", [7, "e", [1], 14]),
        (["counts"], "[m.a(), m.a()]", [11, 12]),
        (["Outer.Mode", "Outer"], "m.a is m.b.Mode", True),
        (["is_b"], "m.a()", True),
        (["Outer.made"], "m.a(1)[0] is m.Outer", True),
        (["Outer.of_class"], "m.a(1)", ["Outer", 1]),
        (["of_fields"], "m.a()", [8, [], [1]]),
        (["of_point"], "m.a()", 3),
        (["global_counter", "ten"], "[m.a(), m.a(), m.b()]", [6, 7, 10]),
        (["ten", "global_counter"], "[m.a(), m.b(), m.b()]", [10, 6, 7]),
        (["plus", "plus_by_name"], "[m.a(1), m.b(1)]", [102, 202]),
        (["inner"], "m.a(1)", 102),
        (["by_call", "raw"], "[m.a(1), m.b(1)]", [101, 1]),
        (["of_registries"], "m.a()", [True, 2, 1]),
        (["by_class"], "m.a()", ["Known", 1]),
        (["Wide"], "m.a.size", 3),
    ],
)
def test_an_object_is_what_it_was(
    names: dict[str, Any], tmp_path: Path, objects: list[str], expression: str, expected: Any
) -> None:
    code = ScriptCode("own_code")
    for given, found in zip("ab", objects, strict=False):
        path = code.path_of(eval(found, names), given).partition(":")[2]
        expression = expression.replace(f"m.{given}", f"m.{path}")
    assert evaluated(code, expression, tmp_path / "elsewhere") == expected


def test_a_class_with_arguments_becomes_one_without(names: dict[str, Any], tmp_path: Path) -> None:
    code = ScriptCode("own_code")
    path = code.path_of_class(
        functools.partial(names["Given"], 2, factor=names["Outer"].Mode.B), "a"
    )
    assert code.path_of_class(names["Given"], "a") == "own_code:Given"
    expression = f"m.{path.partition(':')[2]}().all()"
    assert evaluated(code, expression, tmp_path / "elsewhere") == [2, "B"]


@pytest.mark.parametrize(
    ("objects", "why"),
    [
        (["of_doubled"], "of_doubled|<lambda> uses 'DOUBLED'.*Doubled"),
        (["of_called"], "uses 'CALLED': .*the definition of Called was not found in .*a call"),
        (["one", "other"], "one uses another 'offset'"),
    ],
)
def test_what_would_be_another_object_is_refused(
    names: dict[str, Any], objects: list[str], why: str
) -> None:
    code = ScriptCode("own_code")
    with pytest.raises(NoSource, match=why):
        for found in objects:
            code.path_of(names[found], "a")
