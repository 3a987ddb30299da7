"""What the checkpoint tests share: manifests, staged files, and a child process that is killed at
its n-th step.

A child sends itself SIGKILL just before its n-th change of the file system (Python's audit events),
and exits by itself if its action takes fewer. With `generic` the same directory is reached through
fsspec, so that nothing knows it to be a local disk.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pyarrow.fs as pafs

from raytrain.checkpoint import Catalogue, Manifest, RetentionPolicy, replace
from raytrain.checkpoint.background_commit import prune
from raytrain.checkpoint.commit import commit
from raytrain.storage import Location
from raytrain.storage.fsspec import LeanFSSpecHandler

FILES = {
    "rllib_checkpoint.json": b'{"type": "Algorithm"}',
    "algorithm_state.pkl": b"a" * 2048,
    "learner_group/learner/state.pkl": b"b" * 5000,
    "learner_group/learner/rl_module/default_policy/module_state.pkl": b"c" * 3000,
    "resume/rng.json.gz": b"not really gzip",
    "policy.safetensors": b"",
}
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}


def manifest(iteration: int, **changes: object) -> Manifest:
    keys: dict[str, object] = {
        "kind": "periodic",
        "experiment": "cartpole",
        "trial_id": "t0",
        "run_id": "r0",
        "attempt": 0,
        "iteration": iteration,
        "timesteps": iteration * 4000,
        "episodes": iteration * 7,
        "stage": None,
        "score": float(iteration),
        "metrics": {"training_iteration": iteration, "vf_explained_var": math.nan},
        "config_digest": "d" * 8,
        "weights_sha256": "0" * 64,
        "parent": None,
        "exact": True,
        "exact_lost": None,
        "snapshot_strategy": "pickle",
        "versions": {"raytrain": "0.1.0"},
        "created_at": "2026-01-02T03:04:05+00:00",
    }
    return Manifest(**{**keys, **changes})  # type: ignore[arg-type]


def stage(directory: Path, mark: int = 0) -> Path:
    for name, data in FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data + str(mark).encode() if data else data)
    return directory


def place(path: Path, generic: bool) -> Location:
    if generic:
        files = fsspec.filesystem("file", skip_instance_cache=True)
        return Location(pafs.PyFileSystem(LeanFSSpecHandler(files)), str(path))
    return Location.of(path)


def put(trial: Location, scratch: Path, iteration: int, **changes: object) -> Location:
    """Commit `checkpoint_<iteration>`, or the name given by `name`."""
    name = str(changes.pop("name", f"checkpoint_{iteration:06d}"))
    staging = stage(scratch / f"staging-{name.replace('/', '_')}", iteration)
    commit(staging, trial / name, manifest(iteration, **changes))
    return trial / name


def run_child(action: str, root: Path, step: int, generic: bool) -> bool:
    """Did the child end by itself? False: it was killed at `step`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["raytrain.checkpoint", "fsspec"])
    child = context.Process(target=act, args=(action, root, step, generic))
    child.start()
    child.join(600)
    assert child.exitcode in (0, -signal.SIGKILL), child
    return child.exitcode == 0


def die_at(step: int) -> None:
    left = step

    def count(event: str, details: tuple[object, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(details[2], int) and details[2] & os.O_ACCMODE
        if writes or event in CHANGES:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def act(action: str, root: Path, step: int, generic: bool) -> None:
    trial = place(root / "trial", generic)
    if action == "sweep_and_commit":
        staging = stage(root / "staged", 3)
        die_at(step)
        Catalogue(trial).sweep()
        commit(staging, trial / "checkpoint_000003", manifest(3))
    elif action == "replace":
        die_at(step)
        replace(trial / "checkpoint_000003", trial / "best", kind="best")
    elif action == "prune":
        die_at(step)
        prune(Catalogue(trial), RetentionPolicy(1))
