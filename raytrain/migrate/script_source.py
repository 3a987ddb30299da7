"""Where an object of a program is defined, and what its definition uses.

A definition is read from the file that Python has it from. It says how the object was made, and not
always what the object is now: a default value may come from a loop that went on, and an attribute
may have been set later. So defaults and plain attributes of a class are taken from the object where
the source does not give the same, and so are attributes that the source does not have.
"""

from __future__ import annotations

import abc
import ast
import builtins
import functools
import inspect
import linecache
import symtable
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

PLAIN = (bool, int, str, bytes, type(None), type(...))
_VALUE = "_value_of_raytrain_"
_Def = ast.FunctionDef | ast.AsyncFunctionDef


class NoSource(Exception):
    """The object cannot be loaded by another process; the text says why, and what to do."""


@dataclass
class Definition:
    """`tree`: the whole file. `node`: the definition, a copy, in which the names in `values` stand
    for these values. `later`: attributes that were set after the definition."""

    tree: ast.Module
    node: Any
    values: dict[str, Any] = field(default_factory=dict)
    later: dict[str, Any] = field(default_factory=dict)

    def names_used(self) -> dict[str, set[str]]:
        """The names from outside that the definition uses; for those of which only attributes are
        read, the attributes."""
        return _names_used(self.node)

    def binds(self, name: str) -> bool:
        """Whether the name is, somewhere in the definition, a variable of its own."""
        return any(
            symbol.get_name() == name and (symbol.is_local() or symbol.is_parameter())
            for table in _tables(self.node)
            if table.get_type() != "module"
            for symbol in table.get_symbols()
        )


def written_function(value: Any) -> Any:
    """The function whose source, with its decorators, makes `value`; `value` itself if it has none
    of its own."""
    wrapped = value if isinstance(value, type) else inspect.unwrap(value)
    if isinstance(wrapped, types.FunctionType) and wrapped is not value:
        found = definition_of(wrapped, []).node
        if getattr(found, "decorator_list", None):
            return wrapped
    return value


def short(name: str) -> str:
    """A qualified name for a message."""
    return name.replace("<locals>.", "")


def is_data(value: Any) -> bool:
    """Whether a value consists of numbers, text, lists, tuples, sets and dictionaries only."""
    if type(value) in (*PLAIN, float):
        return True
    if type(value) is dict:
        return all(is_data(part) for item in value.items() for part in item)
    return type(value) in (list, tuple, set, frozenset) and all(map(is_data, value))


def definition_of(value: Any, files: list[str], *, raw: bool = False) -> Definition:
    """The definition of a function, lambda or class. `files`: those of other objects of the
    program; a class may not know its own. `raw`: without decorators that make another object of it.

    Raises NoSource.
    """
    tree, node = _found(value, files)
    made = Definition(tree, node)
    if raw and isinstance(node, _Def) and value.__qualname__ == node.name:
        bound = value.__globals__.get(node.name)
        if bound is not None and bound is not value:
            node.decorator_list = []
    _take_values(value, made)
    _take_later(value, made)
    return made


def _take_values(value: Any, made: Definition) -> None:
    """Put names in the places of expressions whose values are not what the object has."""

    def replaced(written: ast.expr, actual: Any) -> ast.expr:
        if _gives(written, actual, value, made.node):
            return written
        name = f"{_VALUE}{len(made.values)}"
        made.values[name] = actual
        return ast.Name(name, ast.Load())

    if isinstance(value, types.FunctionType):
        _take_defaults(value, made.node, replaced)
        return
    held = vars(value)
    for part in made.node.body:
        if isinstance(part, _Def):
            for function in functions_of_member(held.get(part.name)):
                if function.__code__.co_name == part.name:
                    _take_defaults(function, part, replaced)
        elif (name := _assigned(part)) is None or name not in held:
            continue
        elif is_data(held[name]):
            part.value = replaced(part.value, held[name])
        elif _is_filled(part.value, held[name]):
            made.later[name] = held[name]


def _take_defaults(function: Any, node: Any, replaced: Callable[[ast.expr, Any], ast.expr]) -> None:
    given, named = function.__defaults__ or (), function.__kwdefaults__ or {}
    arguments = node.args
    if len(given) == len(arguments.defaults):
        arguments.defaults = list(map(replaced, arguments.defaults, given))
    for index, argument in enumerate(arguments.kwonlyargs):
        written = arguments.kw_defaults[index]
        if written is not None and argument.arg in named:
            arguments.kw_defaults[index] = replaced(written, named[argument.arg])


def _is_filled(written: ast.expr, actual: Any) -> bool:
    """Whether something was put into a list or dictionary that is written as an empty one."""
    return ast.unparse(written) in ("[]", "{}") and type(actual) in (list, dict) and bool(actual)


def _assigned(statement: ast.stmt) -> str | None:
    """The name of `name = value`."""
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        target: ast.expr = statement.target
    elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
    else:
        return None
    return target.id if isinstance(target, ast.Name) else None


def _gives(written: ast.expr, actual: Any, value: Any, node: Any) -> bool:
    """Whether an expression of a definition has this value, as far as that is seen without running
    the program's code."""
    try:
        return repr(ast.literal_eval(written)) == repr(actual)
    except (ValueError, TypeError):
        pass
    path: list[str] = []
    while isinstance(written, ast.Attribute):
        path.insert(0, written.attr)
        written = written.value
    if not isinstance(written, ast.Name):
        return False
    found, held = lookup(written.id, value, node)
    held = held if found else getattr(builtins, written.id, None)
    for name in path:
        held = inspect.getattr_static(held, name, None) if held is not None else None
    return held is actual


def _take_later(value: Any, made: Definition) -> None:
    """Find the attributes that the definition does not give."""
    if getattr(made.node, "decorator_list", None):
        return
    if isinstance(value, types.FunctionType):
        made.later = {key: item for key, item in vars(value).items() if key != "__wrapped__"}
        return
    inherit = any(
        "__init_subclass__" in vars(base) and base.__module__ not in ("typing", "builtins")
        for base in value.__mro__[1:]
    )
    if type(value) not in (type, abc.ABCMeta) or inherit or issubclass(value, tuple):
        return  # Others, such as NamedTuple, set attributes of each class.
    table = next(each for each in _tables(made.node) if each.get_type() == "class")
    own = {symbol.get_name() for symbol in table.get_symbols()}
    own |= {f"_{made.node.name.lstrip('_')}{name}" for name in own if name.startswith("__")}
    plain = {_assigned(part) for part in made.node.body}
    made.later |= {
        key: item
        for key, item in vars(value).items()
        if (key not in own or (key not in plain and is_data(item)))
        and not (key.startswith("__") and key.endswith("__"))
        and not isinstance(item, types.MemberDescriptorType)  # Of `__slots__`.
        and key != "_abc_impl"
    }


@functools.lru_cache(maxsize=8)
def _tree(file: str, source: str) -> ast.Module:
    return ast.parse(source, file)


def _found(value: Any, files: list[str]) -> tuple[ast.Module, Any]:
    """The file of an object, and its definition, a copy."""
    what = short(getattr(value, "__qualname__", repr(value)))
    own = _file_of(value)
    sources = {file: "".join(linecache.getlines(file)) for file in (own, *files) if file}
    if not any(sources.values()):
        raise NoSource(
            f"the source of {what} is not known (it was typed in or made by `exec`). Put it into a "
            "file and import it"
        )
    for file, source in sources.items():
        try:
            tree = _tree(file, source)
        except SyntaxError:
            continue  # It is no file of Python's, or it is being edited.
        node = _class_in(tree, value) if isinstance(value, type) else _function_in(tree, value)
        if node is not None:
            files[:] = dict.fromkeys([file, *files])
            copied = ast.parse(ast.unparse(node), mode="exec").body[0]
            return tree, copied.value if isinstance(copied, ast.Expr) else copied
    raise NoSource(
        f"the definition of {what} was not found in {own or files[0]}: it was made by a call, or "
        "the file was edited meanwhile. Define it with `class` or `def`, or import it from a module"
    )


def _file_of(value: Any) -> str:
    if isinstance(value, types.FunctionType):
        return value.__code__.co_filename
    for method in map(inspect.unwrap, functions_of(value)):
        if isinstance(method, types.FunctionType):
            file: str = method.__code__.co_filename  # Methods of dataclasses are in no file.
            if method.__qualname__.startswith(value.__qualname__) and linecache.getlines(file):
                return file
    try:
        return inspect.getsourcefile(value) or ""
    except (TypeError, OSError):
        return ""


def _function_in(tree: ast.Module, value: types.FunctionType) -> ast.AST | None:
    code = value.__code__
    if value.__name__ != "<lambda>":
        return next(
            (
                node
                for node in ast.walk(tree)
                if isinstance(node, _Def)
                and node.name == code.co_name
                and code.co_firstlineno
                == min([node.lineno, *(part.lineno for part in node.decorator_list)])
            ),
            None,
        )
    places = [place for place in code.co_positions() if None not in place and place[3]]
    lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
    inside = [node for node in lambdas if any(_within(place, node.body) for place in places)]
    # Of nested ones, the innermost around everything of the function.
    around = [node for node in inside if all(_within(place, node) for place in places[1:])]
    return min(
        around, key=lambda node: ((node.end_lineno or 0) - node.lineno, _width(node)), default=None
    )


def _width(node: Any) -> int:
    return int(node.end_col_offset - node.col_offset)


def _within(place: Any, node: Any) -> bool:
    line, end_line, column, end_column = place
    start, end = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
    return bool(start <= (line, column) and (end_line, end_column) <= end)


def _class_in(tree: ast.Module, value: type) -> ast.AST | None:
    wanted = [part for part in value.__qualname__.split(".") if part != "<locals>"]

    def search(node: ast.AST, path: list[str]) -> Iterator[ast.ClassDef]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            here = [*path, child.name] if named else path  # type: ignore[attr-defined]
            if isinstance(child, ast.ClassDef) and here == wanted:
                yield child
            yield from search(child, here)

    found = list(search(tree, []))
    lines = {
        function.__code__.co_firstlineno
        for function in vars(value).values()
        if isinstance(function, types.FunctionType)
    }
    holding = [
        node
        for node in found
        if any(node.lineno <= line <= (node.end_lineno or 0) for line in lines)
    ]
    return next(iter(holding or found[::-1]), None)


def _text_of(node: Any) -> str:
    """The definition as a statement."""
    source = ast.unparse(node)
    return f"_ = ({source})" if isinstance(node, ast.Lambda) else source


def _tables(node: Any) -> Iterator[symtable.SymbolTable]:
    """The symbol tables of a definition: of the module that holds it, and all below."""

    def below(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
        yield table
        for child in table.get_children():
            yield from below(child)

    return below(symtable.symtable(_text_of(node), "<definition>", "exec"))


def _names_used(node: ast.AST) -> dict[str, set[str]]:
    used: dict[str, None] = {}
    for table in _tables(node):
        top = table.get_type() == "module"
        for symbol in table.get_symbols():
            outside = symbol.is_global() or (top and not symbol.is_assigned())
            outside = outside and not symbol.is_imported() and not symbol.is_namespace()
            if outside and symbol.is_referenced():
                used[symbol.get_name()] = None
    tree = ast.parse(_text_of(node))
    loads = dict.fromkeys(used, 0)
    attributes: dict[str, set[str]] = {name: set() for name in used}
    reads = dict(loads)
    for part in ast.walk(tree):
        if isinstance(part, ast.Name) and part.id in loads:
            loads[part.id] += 1
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            name = part.value.id
            if name in reads:
                reads[name] += 1
                attributes[name].add(part.attr)
    return {name: attributes[name] if reads[name] == loads[name] else set() for name in used}


def lookup(name: str, value: Any, node: Any) -> tuple[bool, Any]:
    """Whether the name of `value`'s source has a value there, and the value."""
    functions = [value] if isinstance(value, types.FunctionType) else list(functions_of(value))
    for function in functions:
        for free, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            if free == name:
                try:
                    return True, cell.cell_contents
                except ValueError:
                    return False, None
    if isinstance(value, type):
        for base, written in zip(value.__bases__, node.bases, strict=False):
            if isinstance(written, ast.Name) and written.id == name:
                return True, base
    for scope in [*(function.__globals__ for function in functions), _globals_of(value)]:
        if name in scope:
            return (not hasattr(builtins, name)) or scope[name] is not getattr(builtins, name), (
                scope[name]
            )
    return False, None


def functions_of(value: type) -> Iterator[types.FunctionType]:
    """The functions that a class and the classes in it define."""
    for member in vars(value).values():
        if isinstance(member, type) and member.__qualname__.startswith(value.__qualname__ + "."):
            yield from functions_of(member)
        else:
            yield from functions_of_member(member)


def functions_of_member(member: Any) -> Iterator[types.FunctionType]:
    """The functions of a method, of whatever kind."""
    for held in (
        member,
        getattr(member, "__func__", None),
        getattr(member, "fget", None),
        getattr(member, "__wrapped__", None),
    ):
        if isinstance(held, types.FunctionType):
            yield held


def _globals_of(value: Any) -> dict[str, Any]:
    return vars(sys.modules.get(getattr(value, "__module__", ""), builtins))
