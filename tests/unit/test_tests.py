"""The tree of the tests: what mirrors what, and who imports whom."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT, TESTS

FILES = sorted(TESTS.rglob("test_*.py"))
UNITS = sorted((TESTS / "unit").rglob("test_*.py"))
NO_PACKAGES = {"configs", "support"}
"""Directories of `tests/unit` for what is not in the package."""


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", sorted(TESTS.rglob("*.py")), ids=lambda file: file.stem)
def test_nothing_is_imported_from_a_test(file: Path) -> None:
    """What tests share is in `tests/support`."""
    tests = {file.stem for file in FILES} | {"conftest"}
    assert [name for name in imported(file) if tests & set(name.split("."))] == []


def test_names_are_unique_where_no_package_tells_them_apart() -> None:
    stems = Counter(file.stem for file in FILES if file not in UNITS)
    assert [stem for stem, count in stems.items() if count > 1] == []
    for directory in {file.parent for file in UNITS}:
        assert (directory / "__init__.py").exists(), f"{directory} has no __init__.py"


def test_unit_tests_mirror_the_package() -> None:
    """`tests/unit/<package>/test_<module>[_<aspect>].py` is about
    `raytrain/<package>/<module>.py`."""
    strays = []
    for file in UNITS:
        package = file.parent.relative_to(TESTS / "unit")
        if package.parts[:1] and package.parts[0] not in NO_PACKAGES:
            modules = {module.stem for module in (ROOT / "raytrain" / package).glob("*.py")}
            subject = file.stem.removeprefix("test_")
            if not any(f"{subject}_".startswith(f"{module}_") for module in modules):
                strays.append(str(file.relative_to(TESTS)))
    assert strays == []


def test_every_directory_of_helpers_and_tests_is_known() -> None:
    known = {"unit", "ray", "runs", "support", "envs", "benchmarks"}
    assert {path.name for path in TESTS.iterdir() if path.is_dir()} - {"__pycache__"} == known
    assert {path.name for path in TESTS.glob("*.py")} == {"conftest.py", "digests.py"}
