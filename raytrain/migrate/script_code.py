"""A script's own classes, functions and lambdas -> import paths, which every process can load.

A run names its code by import path, so that another process, on another day, has the same code.
What a script gives in Python becomes such a path:

    a class or function of a module    my_envs:Maze, as it is
    one of the script itself, one in   its source, and all that it uses, in a module that is written
    a function, a lambda               into the experiment's directory

The module holds the source of the object and, in the same way, of everything of the script that it
names: imports become imports, other functions and classes their source, plain values (numbers,
text, lists, `argparse`'s arguments, spaces, arrays) are written out. Nothing else of the script is
in it: no comments, and no statements that run when the script does. So a script that is edited
elsewhere, or started with other arguments that the object does not use, gives the same module.

An object whose source cannot be had, or that uses a value which cannot be written out (an open
file, a network, an environment), is refused with what to do.
"""

from __future__ import annotations

import argparse
import ast
import copyreg
import dataclasses
import enum
import functools
import math
import os
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from raytrain.config.imports import origin_of_spec
from raytrain.migrate.script_source import (
    PLAIN,
    Definition,
    NoSource,
    definition_of,
    lookup,
    short,
    written_function,
)

_LARGEST_ARRAY = 10_000  # elements that are written out
_HEADER = '"""Written by raytrain: the parts of {script} that its run needs. Edit them there."""\n'
_FUTURE = "from __future__ import annotations"


class ScriptCode:
    """Collects the objects of one script, and writes the module for those that no module has."""

    def __init__(self, module: str) -> None:
        """`module`: the name of the module to write."""
        self.module = module
        self._names: dict[str, Any] = {}
        self._blocks: list[str] = []
        self._begun: set[str] = set()
        """Names of definitions whose block is not there yet, since what they use comes first."""
        self._fill: list[str] = []
        """Statements that need these definitions."""
        self._roots: set[str] = set()
        self._future = False
        self._files: list[str] = []

    @property
    def is_needed(self) -> bool:
        """Whether anything has to be written."""
        return bool(self._blocks)

    @property
    def places(self) -> list[str]:
        """The directories of the user's modules that are imported."""
        return sorted({place for root in self._roots if (place := place_of(root)) is not None})

    @property
    def text(self) -> str:
        """The module's source."""
        future = [f"{_FUTURE}\n"] if self._future else []
        header = _HEADER.format(script=script_name())
        parts = [header, *future, *self._path_lines(), *self._blocks]
        return "\n".join(parts) + "\n"

    def path_of(self, value: Any, name: str) -> str:
        """The import path of a class or function. One that gets a name of its own is called
        `name`. Raises NoSource."""
        found = importable(value)
        if found is not None and "." not in found[1]:
            self._roots.add(found[0])
            return ":".join(found)
        return f"{self.module}:{self._put(name, value)}"

    def path_of_expression(self, name: str, arguments: str, expression: str) -> str:
        """The import path of a new function `name(arguments)` that returns `expression`, in which
        names are those that `bind` gave."""
        name = self._free(name)
        self._names[name] = object()
        self._blocks.append(f"\ndef {name}({arguments}):\n    return {expression}\n")
        return f"{self.module}:{name}"

    def path_of_network(self, base: str, values: str) -> str:
        """The import path of a new RLModule, derived from `base` (a name that `bind` gave), with
        further `values` (an expression) in its `model_config`."""
        return self._derived(
            f"{base}WithValues",
            base,
            "    def setup(self):\n"
            f"        self.model_config = {{**self.model_config, **{values}}}\n"
            "        super().setup()\n",
        )

    def path_of_class(self, value: Any, name: str) -> str:
        """The import path of a class, also of one with arguments (`functools.partial`), for which a
        class without is derived. Raises NoSource."""
        if not (isinstance(value, functools.partial) and isinstance(value.func, type)):
            return self.path_of(value, name)
        base = self.bind(value.func.__name__, value.func)
        given = [self._expression(item) for item in value.args]
        given += [f"{key}={self._expression(item)}" for key, item in value.keywords.items()]
        return self._derived(
            f"{base}WithArguments",
            base,
            f"    def __init__(self):\n        super().__init__({', '.join(given)})\n",
        )

    def _derived(self, name: str, base: str, body: str) -> str:
        name = self._free(name)
        self._names[name] = object()
        self._blocks.append(f"\nclass {name}({base}):\n\n{body}")
        return f"{self.module}:{name}"

    def bind(self, name: str, value: Any) -> str:
        """The name in the module of an object. Raises NoSource."""
        return self._put(name, value)

    def expression(self, value: Any) -> str:
        """A value as an expression of the module. Raises NoSource."""
        return self._expression(value)

    # -- binding names ---------------------------------------------------------------------------

    def _put(self, name: str, value: Any) -> str:
        """Define `name` as `value`, and return its name, which differs if another value has it."""
        for known, other in self._names.items():
            if other is value and not isinstance(value, (int, float, str, bytes, tuple)):
                return known
        name = self._free(name, value)
        if name in self._names:
            return name
        self._names[name] = value
        if isinstance(value, types.ModuleType):
            self._blocks.append(_import_of(name, value))
            self._roots.add(value.__name__)
        elif (found := importable(value)) is not None:
            module, path = found
            first, *rest = path.split(".")
            self._roots.add(module)
            if rest:
                held = self._put(first, getattr(sys.modules[module], first))
                self._blocks.append(f"{name} = {'.'.join([held, *rest])}")
            else:
                alias = "" if first == name else f" as {name}"
                self._blocks.append(f"from {module} import {first}{alias}")
        elif isinstance(value, (types.FunctionType, type)) and (outer := _outer(value)):
            held = self._put(outer.__name__, outer)
            path = value.__qualname__.partition(".")[2]
            self._blocks.append(f"{name} = {held}.{path}")
        elif isinstance(written_function(value), (types.FunctionType, type)):
            self._put_source(name, value)
        else:
            self._put_value(name, value)
        return name

    def _put_value(self, name: str, value: Any) -> None:
        if type(value) not in (list, dict):
            self._blocks.append(f"{name} = {self._expression(value)}")
            return
        # It is there before what it holds, which may put itself into it.
        at = len(self._blocks)
        self._blocks.append(f"{name} = {type(value)()!r}")
        expression = self._expression(value)
        filled = f"{name}[:] = {expression}"
        if type(value) is dict:
            filled = f"{name}.clear()\n{name}.update({expression})"
        held = {node.id for node in ast.walk(ast.parse(expression)) if isinstance(node, ast.Name)}
        if not held.isdisjoint(self._begun):
            self._fill.append(filled)
        elif len(self._blocks) > at + 1:
            self._blocks.append(filled)
        else:
            self._blocks[at] = f"{name} = {expression}"

    def _free(self, name: str, value: Any = None) -> str:
        candidate, number = name, 1
        while candidate in self._names and not _same(self._names[candidate], value):
            number += 1
            candidate = f"{name}_{number}"
        return candidate

    def _put_source(self, name: str, value: Any) -> None:
        function = value if isinstance(value, type) else written_function(value)
        made = definition_of(function, self._files, raw=function is value)
        self._future |= f"{_FUTURE}" in map(ast.unparse, made.tree.body[:3])
        changed: dict[str, ast.expr] = {}
        original = name
        if not isinstance(made.node, ast.Lambda):
            original = self._free(made.node.name, value)
            self._names[original] = value
            if original != made.node.name:
                self._rename(made, {made.node.name: ast.Name(original)}, function)
                made.node.name = original
        self._begun |= {name, original}
        for used, attributes in made.names_used().items():
            if used in made.values:
                changed[used] = self._parsed(made.values[used], function)
            elif used != original and (bound := self._bound(used, attributes, function, made)):
                changed[used] = ast.Name(bound)
        self._rename(made, changed, function)
        if isinstance(made.node, ast.Lambda):
            self._blocks.append(f"{name} = {ast.unparse(made.node)}")
        else:
            self._blocks.append(f"\n{ast.unparse(made.node)}\n")
        for key, item in made.later.items():
            self._blocks.append(f"{original}.{key} = {ast.unparse(self._parsed(item, function))}")
        if original != name:
            self._blocks.append(f"{name} = {original}")
        self._begun -= {name, original}
        if not self._begun:
            self._blocks += self._fill
            self._fill = []

    def _parsed(self, value: Any, owner: Any) -> ast.expr:
        """A value of `owner`, as an expression of the module."""
        try:
            return ast.parse(self._expression(value), mode="eval").body
        except NoSource as error:
            raise NoSource(f"{short(owner.__qualname__)}: {error}") from None

    def _bound(self, used: str, attributes: set[str], value: Any, made: Definition) -> str | None:
        """Define what a name of `value`'s source stands for; its name in the module, if it is
        another one."""
        found, inner = lookup(used, value, made.node)
        if not found or used == "__name__" or self._put_import(used, inner, made.tree):
            return None
        if isinstance(inner, (argparse.Namespace, types.SimpleNamespace)) and attributes:
            inner = _Part(inner, tuple(sorted(attributes)))
        try:
            bound = self._put(used, inner)
        except NoSource as error:
            raise NoSource(f"{short(value.__qualname__)} uses {used!r}: {error}") from None
        return None if bound == used else bound

    def _rename(self, made: Definition, names: Mapping[str, ast.expr], owner: Any) -> None:
        for name in filter(made.binds, names):
            raise NoSource(
                f"{short(owner.__qualname__)} uses another {name!r} than the rest of the program, "
                "and has a variable of this name besides. Give one of them another name"
            )
        if names:
            made.node = _Replaced(names).visit(made.node)

    def _put_import(self, name: str, value: Any, tree: ast.Module) -> bool:
        """Import a name as the program does, if the program imports it."""
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                if bound != name or not _is_imported(node, alias, value):
                    continue
                if name in self._names:
                    return self._names[name] is value
                self._names[name] = value
                self._roots.add(_module_of(node, alias))
                only = ast.alias(alias.name, alias.asname)
                statement = (
                    ast.Import([only])
                    if isinstance(node, ast.Import)
                    else ast.ImportFrom(node.module, [only], 0)
                )
                self._blocks.append(ast.unparse(statement))
                return True
        return False

    # -- values as expressions -------------------------------------------------------------------

    def _expression(self, value: Any) -> str:
        if type(value) in PLAIN:
            return repr(value)
        if type(value) is float:
            return repr(value) if math.isfinite(value) else f"float({str(value)!r})"
        if type(value) in (list, tuple, set, frozenset):
            return self._sequence(value)
        if isinstance(value, Mapping) and type(value).__name__ in ("dict", "EnvContext"):
            items = (f"{self._expression(k)}: {self._expression(v)}" for k, v in value.items())
            return "{" + ", ".join(items) + "}"
        if isinstance(value, (argparse.Namespace, types.SimpleNamespace)):
            value = _Part(value, tuple(sorted(vars(value))))
        if isinstance(value, _Part):
            return value.expression(self)
        if isinstance(value, types.ModuleType):
            return self._put(value.__name__.rpartition(".")[2], value)
        if isinstance(value, (types.FunctionType, type)) or importable(value) is not None:
            return self._put(_identifier(value.__name__), value)
        return self._made_by_class(value) or self._library_value(value)

    def _made_by_class(self, value: Any) -> str | None:
        """Objects whose class makes them of their parts."""
        if isinstance(value, enum.Enum):
            return f"{self._put(type(value).__name__, type(value))}.{value.name}"
        if isinstance(value, os.PathLike):
            return f"{self._put('Path', Path)}({os.fspath(value)!r})"
        parts: list[str] = []
        keywords: Mapping[str, Any] = {}
        if isinstance(value, typing.TypeVar):
            parts = [repr(value.__name__)]  # Nothing looks at its bounds while a program runs.
        elif isinstance(value, functools.partial):
            parts = [self._expression(value.func), *map(self._expression, value.args)]
            keywords = value.keywords
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            keywords = dict(zip(value._fields, value, strict=True))
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [item.name for item in dataclasses.fields(value) if item.init]
            keywords = {name: getattr(value, name) for name in fields}
            if _text(type(value)(**keywords)) != _text(value):
                return None  # It was changed when it was made, or later.
        else:
            return None
        parts += [f"{name}={self._expression(item)}" for name, item in keywords.items()]
        return f"{self._put(type(value).__name__, type(value))}({', '.join(parts)})"

    def _sequence(self, value: Any) -> str:
        items = [self._expression(item) for item in value]
        if isinstance(value, (set, frozenset)):
            return f"{type(value).__name__}([{', '.join(sorted(items))}])"
        if isinstance(value, tuple):
            return "(" + ", ".join(items) + ("," if len(items) == 1 else "") + ")"
        return f"[{', '.join(items)}]"

    def _library_value(self, value: Any) -> str:
        """Arrays, scalars and dtypes of NumPy, Gymnasium's spaces, RLlib's configs."""
        numpy, spaces = sys.modules.get("numpy"), sys.modules.get("gymnasium.spaces")
        if numpy is not None:
            np = (
                self._put("numpy", numpy)
                if isinstance(value, (numpy.ndarray, numpy.generic, numpy.dtype))
                else ""
            )
            if isinstance(value, numpy.dtype) and value.names is None:
                return f"{np}.dtype({value.str!r})"
            if isinstance(value, numpy.generic):
                return f"{np}.dtype({value.dtype.str!r}).type({self._expression(value.item())})"
            if isinstance(value, numpy.ndarray) and value.dtype.kind in "biuf":
                return self._array(value, np)
        if spaces is not None and isinstance(value, spaces.Space):
            return self._space(value, spaces)
        if hasattr(value, "algo_class") and hasattr(value, "update_from_dict"):
            made = self._put(type(value).__name__, type(value))
            before = vars(type(value)())
            changed = {
                name: part
                for name, part in vars(value).items()
                if name != "_is_frozen" and _text(part) != _text(before.get(name, ...))
            }
            return f"{made}().update_from_dict({self._expression(changed)})"
        function, arguments = _remade(value)
        if function is not None:
            with suppress(NoSource):  # It is told of the value, not of a part of it.
                parts = ", ".join(map(self._expression, arguments))
                return f"{self._put(_identifier(function.__name__), function)}({parts})"
        raise NoSource(
            f"a value of type {type(value).__name__} cannot be written into a module. Make it in "
            "the function or class that uses it, or put both into a module of their own (a file "
            "beside the script) and import them"
        )

    def _array(self, value: Any, np: str) -> str:
        if value.size > _LARGEST_ARRAY:
            raise NoSource(
                f"an array of {value.size:,} numbers is too large to be written into a module. "
                "Load it in the function or class that uses it"
            )
        if value.size and bool((value == value.flat[0]).all()):
            fill = self._expression(value.flat[0].item())
            return f"{np}.full({value.shape!r}, {fill}, {value.dtype.str!r})"
        items = self._expression(value.tolist())
        return f"{np}.array({items}, {value.dtype.str!r}).reshape({value.shape!r})"

    def _space(self, value: Any, spaces: Any) -> str:
        kind = type(value)
        arguments: list[str] = []
        if kind is spaces.Box:
            parts = {"low": value.low, "high": value.high, "dtype": value.dtype}
        elif kind is spaces.Discrete:
            parts = {"n": int(value.n), "start": int(value.start)}
        elif kind is spaces.MultiBinary:
            parts = {"n": value.n}
        elif kind is spaces.MultiDiscrete:
            parts = {"nvec": value.nvec, "dtype": value.dtype, "start": value.start}
        elif kind in (spaces.Dict, spaces.Tuple):
            parts = {"spaces": dict(value.spaces) if kind is spaces.Dict else tuple(value.spaces)}
        else:
            raise NoSource(
                f"a space of type {kind.__name__} cannot be written into a module. Make it in the "
                "environment"
            )
        arguments = [f"{name}={self._expression(part)}" for name, part in parts.items()]
        return f"{self._put(kind.__name__, kind)}({', '.join(arguments)})"

    # -- modules beside the script ---------------------------------------------------------------

    def _path_lines(self) -> Iterator[str]:
        """Lines that let the module find other modules of the user's, which lie elsewhere."""
        if self.places:
            yield "import sys\n"
            for place in self.places:
                yield f"if {place!r} not in sys.path:\n    sys.path.append({place!r})"


class _Part:
    """Those attributes of a namespace that are used."""

    def __init__(self, value: Any, names: tuple[str, ...]) -> None:
        self._value, self._used = value, names

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Part) and (
            (self._value, self._used) == (other._value, other._used)
        )

    def __hash__(self) -> int:
        return hash(self._used)

    def expression(self, code: ScriptCode) -> str:
        held = {
            name: getattr(self._value, name) for name in self._used if hasattr(self._value, name)
        }
        arguments = (f"{name}={code.expression(item)}" for name, item in held.items())
        return f"{code.bind('SimpleNamespace', types.SimpleNamespace)}({', '.join(arguments)})"


class _Replaced(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, ast.expr]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        found = self._names.get(node.id)
        if isinstance(found, ast.Name):
            return ast.Name(found.id, node.ctx)
        return node if found is None else found

    def visit_Global(self, node: ast.Global) -> ast.Global:
        found = [self._names.get(name, ast.Name(name)) for name in node.names]
        return ast.Global([name.id for name in found if isinstance(name, ast.Name)])


def script_name() -> str:
    """The name of the script's file, as a part of a message."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return "a program" if file is None else os.path.basename(file)


def importable(value: Any) -> tuple[str, str] | None:
    """Module and name of an object that every process can import; None if there is no such name."""
    module = getattr(value, "__module__", None)
    path = getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(path, str):
        return None
    if module == "__main__":
        # Importing a script by its name would run it, unless it is guarded: it is written out.
        return None
    if "<" in path or module not in sys.modules:
        return None
    spec = getattr(sys.modules[module], "__spec__", None)
    if spec is None and module != "builtins":
        return None
    found: Any = sys.modules[module]
    for part in path.split("."):
        found = getattr(found, part, None)
    return (module, path) if found is value else None


def _outer(value: Any) -> Any:
    """The class of the program in which a class or function is defined; None if there is none."""
    first, *rest = value.__qualname__.split(".")
    outer = found = getattr(sys.modules.get(value.__module__), first, None)
    for part in rest:
        found = getattr(found, part, None)
    return outer if rest and found is value and isinstance(outer, type) else None


def place_of(module: str) -> str | None:
    """The directory in which Python finds a module of the user's; None for an installed one."""
    top = module.partition(".")[0]
    spec = getattr(sys.modules.get(top), "__spec__", None)
    if spec is None or origin_of_spec(spec) != "user" or spec.origin is None:
        return None
    file = Path(spec.origin).resolve()
    return str(file.parents[1] if spec.submodule_search_locations else file.parent)


def _import_of(name: str, module: types.ModuleType) -> str:
    if module.__name__ == "__main__":
        raise NoSource("the script's own module cannot be imported by another process")
    if module.__name__ == name:
        return f"import {name}"
    parent, _, last = module.__name__.rpartition(".")
    if parent and getattr(sys.modules.get(parent), last, None) is module:
        return f"from {parent} import {last}" + ("" if last == name else f" as {name}")
    return f"import {module.__name__} as {name}"


def _same(known: Any, value: Any) -> bool:
    if known is value:
        return True
    return type(known) is type(value) and type(value) in (*PLAIN, float, _Part) and known == value


def _identifier(name: str) -> str:
    return name if name.isidentifier() else "_function"


def _remade(value: Any) -> tuple[Any, tuple[Any, ...]]:
    """An importable function and plain arguments that make the value again, as `pickle` would;
    None if there is no such function."""
    reduce = copyreg.dispatch_table.get(type(value))
    try:
        made = value.__reduce_ex__(2) if reduce is None else reduce(value)
    except Exception:  # Of any kind: the value cannot be pickled.
        return None, ()
    if not isinstance(made, tuple) or any(part is not None for part in made[2:]):
        return None, ()
    function, arguments = made[:2]
    kept = getattr(function, "__name__", "") != "__newobj__" and importable(function) is not None
    return (function, arguments) if kept else (None, ())


def _text(value: Any) -> str:
    """The value as text, without the addresses of objects."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _module_of(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
    return alias.name if isinstance(node, ast.Import) else node.module or ""


def _is_imported(node: ast.Import | ast.ImportFrom, alias: ast.alias, value: Any) -> bool:
    """Whether the import statement gives this very value."""
    if isinstance(node, ast.ImportFrom) and (node.level or node.module == "__future__"):
        return False
    name = _module_of(node, alias)
    if isinstance(node, ast.Import):
        return sys.modules.get(name if alias.asname else name.partition(".")[0]) is value
    return getattr(sys.modules.get(name), alias.name, None) is value
