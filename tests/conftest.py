"""Shared by tests that start real runs."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch
from support import own_ray, s3_store
from support.browser import Browser, chromium
from support.browser import why_not as browser_missing
from support.paths import ENVS
from support.running import Reference, Run, train, trial_of, write_config
from support.small_disk import mounted

# Ray replaces a worker that needs more than 60 s to start, by one that begins its imports anew: on
# a machine that is busy with other things, for ever.
os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")

# Tests run side by side. Threads of one that wait for a core of the other's make a tiny network's
# update three times as long.
torch.set_num_threads(1)


_LONGEST = (
    "runs/test_disturbed_runs",
    "runs/test_cli",
    "runs/test_signals",
    "ray/test_curriculum",
    "runs/test_trial_states",
    "runs/test_export",
    "runs/test_jobs",
    "runs/test_s3",
    "ray/test_exact_state",
    "runs/test_preflight",
    "ray/test_snapshots",
    "ray/test_forkserver",
    "runs/test_fencing_at_every_line",
    "ray/test_sampler",
    "ray/test_policy",
    "runs/test_audit",
    "ray/test_watchdogs",
    "ray/test_stock_rllib",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that two processes end at about the same time."""
    places = {name: place for place, name in enumerate(_LONGEST)}

    def place(item: pytest.Item) -> int:
        return places.get(f"{item.path.parent.name}/{item.path.stem}", len(places))

    items.sort(key=place)


def trained_once(
    factory: pytest.TempPathFactory, name: str, configure: Callable[[Path], Path]
) -> Path:
    """The config of a finished run for all processes of this test run, which only read it: the
    first that asks trains it. `configure` writes `run.yaml` into a directory."""
    place = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    place /= name
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "trained").exists():
            train(configure(place))
            (place / "trained").touch()
    return place / "run.yaml"


@pytest.fixture(scope="session")
def chromium_of_all() -> Iterator[Browser]:
    why = browser_missing()
    if why is not None:
        pytest.skip(why)
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(chromium_of_all: Browser) -> Browser:
    """A window as it is at first."""
    chromium_of_all.look()
    chromium_of_all.driver.get("about:blank")
    chromium_of_all.hear()
    return chromium_of_all


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    config = trained_once(
        tmp_path_factory, "undisturbed", lambda place: write_config(place / "run.yaml")
    )
    return Reference(trial_of(config))


def _stumbling(place: Path) -> Path:
    shutil.copy(ENVS / "stumbling_cartpole.py", place)
    return write_config(
        place / "run.yaml",
        environment={
            "env": "stumbling_cartpole:make",
            "env_config": {"marker": str(place / "stumbled")},
        },
        env_runners={"num_env_runners": 0},
        training={"train_batch_size_per_learner": 256, "num_epochs": 1},
        stop={"iterations": 6},
        checkpoint={"checkpoint_frequency": 2, "num_to_keep": None},
    )


@pytest.fixture(scope="session")
def survivor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a finished run of 6 iterations that failed once: in iteration 4, after
    checkpoint 2. Its environment is in a module beside the YAML file."""
    return trained_once(tmp_path_factory, "survivor", _stumbling)


@pytest.fixture(autouse=True)
def no_run_is_left() -> Iterator[None]:
    """A test that fails leaves no run behind, which may be held for ever."""
    yield
    while Run.started:
        run = Run.started.pop()
        if run.process.poll() is None:
            run.kill_everything()


@pytest.fixture(scope="module", autouse=True)
def no_ray_is_left() -> Iterator[None]:
    """An algorithm of `tiny_ppo` has started one if there was none."""
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def local_ray() -> None:
    own_ray.ensure()


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of 256 KiB, or of the size that the test's parameter says."""
    with mounted(tmp_path / "disk", getattr(request, "param", "256k")) as place:
        yield place


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """The port of an S3 server on loopback, with an empty bucket."""
    if not s3_store.HAS_MOTO:
        pytest.skip("needs moto (in the extra dev)")
    with s3_store.server() as port:
        yield port


@pytest.fixture
def s3(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The same, and the environment variables by which this process finds it."""
    for name, value in s3_store.environment(s3_port).items():
        monkeypatch.setenv(name, value)
    return s3_port


@pytest.fixture
def s3_proxy(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3_store.Proxy]:
    """A proxy before it that can fail; the variables name the proxy."""
    with s3_store.Proxy(s3_port) as proxy:
        for name, value in s3_store.environment(proxy.port).items():
            monkeypatch.setenv(name, value)
        yield proxy
