"""A run is killed and continued where something outside of it has changed: the same bits.

The table in docs/concepts/exactness.md lists what was tried.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from support.running import Reference, Run, committed, train, trial_of, write_config
from support.same_run import assert_same_run


@dataclass(frozen=True)
class Condition:
    """What differs when the run continues: environment variables, settings, CPUs (`one_cpu`)."""

    variables: dict[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    one_cpu: bool = False
    umask: int | None = None
    open_files: int | None = None


CONDITIONS = {
    "locale": Condition({"LANG": "de_DE.UTF-8", "LC_ALL": "de_DE.UTF-8", "PYTHONUTF8": "0"}),
    "time-zone": Condition({"TZ": "Pacific/Kiritimati"}),
    "memory": Condition(
        {
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_THRESHOLD_": "4096",
            "MALLOC_PERTURB_": "170",
            "PYTHONMALLOC": "malloc",
        }
    ),
    "schedule-of-threads": Condition(
        {"OMP_DYNAMIC": "TRUE", "OMP_SCHEDULE": "dynamic,1", "MKL_DYNAMIC": "FALSE"}
    ),
    "compiler": Condition({"NUMBA_OPT": "0", "NUMBA_BOUNDSCHECK": "1", "NUMBA_DISABLE_JIT": "1"}),
    "one-cpu": Condition(one_cpu=True),
    "without-asserts": Condition({"PYTHONOPTIMIZE": "1", "PYTHONDONTWRITEBYTECODE": "1"}),
    "limits": Condition(umask=0o077, open_files=1024),
    "checkpoints": Condition(
        settings=(
            "checkpoint.every_seconds=0.05",
            "checkpoint.checkpoint_frequency=0",
            "debugging.log_level=DEBUG",
        )
    ),
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was killed after its checkpoint of iteration 4."""
    config = write_config(tmp_path_factory.mktemp("killed") / "run.yaml")
    run = Run("train", str(config), log=config.parent / "log.txt")
    run.until(lambda: 4 in committed(trial_of(config)))
    run.kill_everything()
    return config.parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="uses CPU sets")
@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)
def test_the_same_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: Path,
    undisturbed: Reference,
    condition: Condition,
) -> None:
    place = shutil.copytree(killed, tmp_path / "elsewhere")
    config = place / "run.yaml"
    moved = {**yaml.safe_load(config.read_text()), "storage_path": str(place / "results")}
    config.write_text(yaml.safe_dump(moved))
    for name, value in {**condition.variables, "NUMBA_CACHE_DIR": str(tmp_path / "numba")}.items():
        monkeypatch.setenv(name, value)
    cpus, umask = os.sched_getaffinity(0), os.umask(0)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:  # A run inherits these.
        os.umask(umask if condition.umask is None else condition.umask)
        if condition.one_cpu:
            os.sched_setaffinity(0, {min(cpus)})
        if condition.open_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (condition.open_files, limits[1]))
        settings = [part for setting in condition.settings for part in ("--set", setting)]
        said = train(config, *settings, log=tmp_path / "continued.txt")
    finally:
        os.umask(umask)
        os.sched_setaffinity(0, cpus)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "Continued from checkpoint_" in said
    assert "not exact" not in said
    assert_same_run(trial_of(config), undisturbed)
