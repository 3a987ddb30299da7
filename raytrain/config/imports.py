"""The modules that a module imports, found by reading their source, not by importing them.

What a process happens to have imported says little: an `import` within a function may not have run
yet. So every import statement counts wherever it is, and `import_module` with a name in plain text.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path

from raytrain.config.user_code import Origin, origin_of

_BY_NAME = ("import_module", "__import__")


@dataclass
class Imported:
    """Users' files by key (see `key_of`), the first parts of installed modules' names, and those of
    modules that do not exist (an optional import)."""

    files: dict[str, Path] = field(default_factory=dict)
    installed: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)


def imported_by(modules: Iterable[str]) -> Imported:
    """These modules, and all that users' modules among them import, and so on."""
    found, specs = Imported(), dict[str, ModuleSpec | None]()
    todo, seen = list(modules), set[str]()
    while todo:
        name = todo.pop()
        if name in seen or not name:
            continue
        seen.add(name)
        parent, _, _ = name.rpartition(".")
        todo.append(parent)
        spec = _spec(name, specs)
        origin = None if spec is None else origin_of_spec(spec)
        if spec is None:
            if not parent and name not in sys.stdlib_module_names:
                found.missing.add(name)
        elif origin == "installed":
            found.installed.add(name.partition(".")[0])
        elif origin == "user" and spec.has_location and spec.origin is not None:
            file = Path(spec.origin)
            if file.is_file():  # It is not in a zip file.
                found.files[key_of(spec)] = file
                todo += _imports(file, _package_of(spec))
    return found


def origin_of_spec(spec: ModuleSpec) -> Origin:
    """Whose a module is. Modules within the interpreter are Python's."""
    if spec.has_location and spec.origin is not None:
        return origin_of(spec.origin)
    places = list(spec.submodule_search_locations or ())
    return origin_of(str(Path(places[0], ""))) if places else "python"


def key_of(spec: ModuleSpec) -> str:
    """The module's file, relative to the directory in which Python finds its first part:
    `my_envs.py`, `levels/hard.py`. The same wherever that directory is."""
    assert spec.origin is not None
    return "/".join([*_package_of(spec).split("."), Path(spec.origin).name]).lstrip("/")


def file_of(key: str, import_path: str | None) -> Path | None:
    """The file or directory of a key in this process; None if there is none."""
    roots = [root for root in (import_path, *sys.path) if root]
    top = _spec(key.partition("/")[0].partition(".")[0], {})
    if top is not None:  # A package that is installed for editing need not be in Python's path.
        own = [top.origin] if top.has_location and top.origin is not None else []
        places = list(top.submodule_search_locations or ()) or own
        roots += [str(Path(place).parent) for place in places]
    return next((path for root in roots if (path := Path(root, key)).exists()), None)


def _package_of(spec: ModuleSpec) -> str:
    """The package against which the module's relative imports count."""
    is_package = spec.submodule_search_locations is not None
    return spec.name if is_package else spec.name.rpartition(".")[0]


def _spec(name: str, known: dict[str, ModuleSpec | None]) -> ModuleSpec | None:
    """Where Python would find a module now; unlike `importlib.util.find_spec` it looks into no
    module that is imported already, and imports no package."""
    if name in known:
        return known[name]
    parent, _, _ = name.rpartition(".")
    places: Sequence[str] | None = None
    if parent:
        package = _spec(parent, known)
        places = package.submodule_search_locations if package is not None else None
    known[name] = None
    if not parent or places is not None:
        specs = (finder.find_spec(name, places) for finder in sys.meta_path)
        known[name] = next((spec for spec in specs if spec is not None), None)
    return known[name]


def _imports(file: Path, package: str) -> Iterator[str]:
    """The names that a source file imports; of `from a import b`, where b may be a module, both."""
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # A file that Python cannot import, such as one for another version.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Call) and _called(node) in _BY_NAME and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str) and name.value:
                yield _absolute(name.value, package)


def _called(node: ast.Call) -> str:
    function = node.func
    return getattr(function, "attr", "") or getattr(function, "id", "")


def _absolute(name: str, package: str) -> str:
    """The absolute name; empty if a relative one leads out of its package."""
    if not name.startswith("."):
        return name
    try:
        return importlib.util.resolve_name(name, package).rstrip(".")
    except ImportError:
        return ""
