"""What `make` says of a Python that raytrain cannot run on, before it installs anything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT


def make(directory: Path, python: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "Makefile", directory)
    for name in ("pyproject.toml", "constraints.txt"):
        (directory / name).touch()
    command = ["make", "train", f"PYTHON={python}"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", [(2, 7), (3, 10), (3, 15)])
def test_a_python_of_another_version_is_refused_at_once(tmp_path: Path, version: Any) -> None:
    python = tmp_path / "other"
    pretend = f"import sys; sys.version_info = {(*version, 1)}; exec(sys.argv[1])"
    python.write_text(
        f'#!/bin/sh\necho "$1" >> called\nexec {sys.executable} -c "{pretend}" "$2"\n'
    )
    python.chmod(0o755)
    done = make(tmp_path, str(python))
    assert done.returncode == 2, done.stderr
    found = ".".join(map(str, version))
    assert done.stderr.splitlines()[0] == (
        f"raytrain needs Python 3.11 to 3.14, and {python} is {found}. "
        "Name another one: make clean; make train PYTHON=python3.12"
    )
    assert (tmp_path / "called").read_text() == "-c\n"  # Neither venv nor pip.
    assert not (tmp_path / ".venv").exists()


def test_a_missing_python_is_named(tmp_path: Path) -> None:
    done = make(tmp_path, "python3.99")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("There is no python3.99 here. Name another one: make clean;")


def test_the_versions_are_the_same_everywhere() -> None:
    named = re.findall(r'"3\.(\d+)"', (ROOT / "Makefile").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">=3.{named[0]},<3.{int(named[-1]) + 1}"
    assert f"With Python 3.{named[0]} to 3.{named[-1]} and make" in (ROOT / "README.md").read_text()
    tested = (ROOT / "constraints.txt").read_text().splitlines()[0]
    assert re.findall(r"3\.(\d+)", tested) == named
