"""Which modules a module imports, wherever the statements stand, without importing them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raytrain.config.imports import file_of, imported_by


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(place: Path, **modules: str) -> None:
    """`a__b="..."` is the file a/b.py, and `a__init="..."` is a/__init__.py."""
    for name, source in modules.items():
        *packages, last = name.split("__")
        file = place.joinpath(*packages, "__init__.py" if last == "init" else f"{last}.py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)


@pytest.mark.parametrize(
    "statement",
    [
        "import found_lib",
        "import found_lib as lib",
        "from found_lib import thing",
        "from found_lib import *",
        "def step():\n    import found_lib",
        "class Env:\n    def step(self):\n        from found_lib import thing",
        "try:\n    import found_lib\nexcept ImportError:\n    pass",
        "import importlib\nimportlib.import_module('found_lib')",
        "from importlib import import_module\nimport_module(name='x') if 0 else 0\n"
        "import_module('found_lib')",
        "__import__('found_lib')",
    ],
)
def test_every_way_to_import_counts(place: Path, statement: str) -> None:
    write(place, top_env=statement, found_lib="raise SystemExit('it was imported')")
    assert set(imported_by(["top_env"]).files) == {"top_env.py", "found_lib.py"}
    assert "found_lib" not in sys.modules


def test_packages_and_what_they_import(place: Path) -> None:
    write(place, env_of_pack="from pack.deep import reward", alone="")
    write(place, pack__init="from . import shared", pack__shared="", pack__unused="")
    write(place, pack__other="from .deep import reward\nfrom ..nowhere import x")
    (place / "pack" / "deep").mkdir()
    (place / "pack" / "deep" / "__init__.py").write_text("from ..other import x; import alone")
    (place / "pack" / "deep" / "reward.py").write_text("from .. import deep")
    assert set(imported_by(["env_of_pack"]).files) == {
        "env_of_pack.py",
        "alone.py",
        "pack/__init__.py",
        "pack/shared.py",
        "pack/other.py",
        "pack/deep/__init__.py",
        "pack/deep/reward.py",
    }


def test_installed_missing_and_python_s_own(place: Path) -> None:
    write(place, some_env="import gymnasium.spaces, yaml, json, os.path, not_there, winreg")
    write(place, not_python="print 'for Python 2'")
    (place / "namespace").mkdir()
    write(place, namespace__inner="import not_python, raytrain")
    write(place, other_env="import namespace.inner")
    found = imported_by(["some_env", "other_env"])
    assert found.installed == {"gymnasium", "yaml"}
    assert found.missing == {"not_there"}
    assert set(found.files) == {
        "some_env.py",
        "other_env.py",
        "namespace/inner.py",
        "not_python.py",
    }


def test_what_was_imported_before_changes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(place, third_env="import third_lib", third_lib="import third_inner", third_inner="")
    fresh = imported_by(["third_env"])
    monkeypatch.setitem(sys.modules, "third_lib", sys)
    assert imported_by(["third_env"]) == fresh
    assert set(fresh.files) == {"third_env.py", "third_lib.py", "third_inner.py"}


def test_a_package_that_is_installed_for_editing(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setuptools puts a finder of its own into `sys.meta_path`, not a directory into `sys.path`."""
    from importlib.machinery import PathFinder

    source = tmp_path / "checkout" / "src"
    source.mkdir(parents=True)
    write(source, editable__init="import editable.inner", editable__inner="")

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> object:
            return PathFinder.find_spec(name, [str(source)]) if name == "editable" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert imported_by(["editable"]).files == {
        "editable/__init__.py": source / "editable" / "__init__.py",
        "editable/inner.py": source / "editable" / "inner.py",
    }
    assert file_of("editable/inner.py", None) == source / "editable" / "inner.py"
    assert file_of("editable/none.py", None) is None
