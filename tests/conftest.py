"""Shared by tests that start real runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import s3_store
from running import Reference, train, trial_of, write_config
from small_disk import mounted


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    config = write_config(tmp_path_factory.mktemp("undisturbed") / "run.yaml")
    train(config)
    return Reference(trial_of(config))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.shutdown()  # RLlib may have started one of its own accord, for the file before.
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


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
