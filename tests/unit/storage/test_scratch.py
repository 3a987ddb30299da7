"""What killed processes leave in the directory for temporary files is deleted by the next one."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raytrain.storage.scratch import scratch, sweep

_HOLDER = """
import sys
from raytrain.storage.scratch import scratch
with scratch("trial") as directory:
    (directory / "much").write_text("data")
    print(directory, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "raytrain-of-somebody").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    directory = Path(holder.stdout.readline().strip())
    with scratch("policy") as own:
        sweep()
        assert (directory / "much").exists() and own.is_dir() and own.stat().st_mode & 0o77 == 0
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        sweep()
        assert own.is_dir() and not directory.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["raytrain-of-somebody"]


def test_a_process_that_needs_many_one_after_another_keeps_none_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def open_there() -> list[str]:
        """What this process has open below `tmp_path`; other descriptors come and go
        with other tests."""
        found = []
        for descriptor in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(str(descriptor.readlink()))
        return [name for name in found if name.startswith(str(tmp_path))]

    with scratch("policy"):
        assert open_there(), "the one in use is held"
    for _ in range(3):
        with scratch("policy"):
            pass
    assert open_there() == []
