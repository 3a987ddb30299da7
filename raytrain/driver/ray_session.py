"""Ray and Tune for the time of one run.

A local Ray instance is started unless an address is given, with at least as many logical CPUs as one
trial asks for: a trial that can never be placed would wait for ever. It is started before this process
imports RLlib and Torch, and what its workers are forked from imports them meanwhile (`forkserver`).
"""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psutil
import ray

from raytrain import _ray
from raytrain._ray import forkserver
from raytrain._ray.cluster import in_a_job, job_environment
from raytrain.checkpoint import Entry
from raytrain.cluster.join_check import JoinCheck
from raytrain.cluster.package import needs_files, pack
from raytrain.cluster.preflight import Envoys, alive_nodes, nodes_to_ask, preflight
from raytrain.config import ExperimentConfig, cpus_at_most, most_env_runners, param_space
from raytrain.driver.console import ConsoleReporter
from raytrain.driver.process_cleanup import lives, nothing_left, own_services
from raytrain.driver.signals import InterruptedEarly, Interrupts
from raytrain.errors import BadInput, RaytrainError
from raytrain.storage import Location

if TYPE_CHECKING:
    from raytrain.driver.tune_callback import RunCallback

_CONNECT_PATIENCE_S = 10.0
_ENVIRONMENT = {
    # Records are written by the trials, where they can be tied to checkpoints.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # An interrupt saves every trial before Tune is stopped (see `tune_callback`).
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Relative paths in an environment's config mean what they mean in the user's shell.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # What a failed trial leaves is ended after so many seconds (Tune: 600): the next attempt may need
    # its resources, and a process that waits for a lost node does not end by itself.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "30",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RayLost(RaytrainError):
    """The local Ray instance did not start, or died under the run."""


class RaySession:
    """`with RaySession(config, ...) as session: session.run(...)`"""

    def __init__(
        self, config: ExperimentConfig, *, address: str | None, interrupts: Interrupts
    ) -> None:
        self._config = config
        self._address = cluster_address(address)
        self._interrupts = interrupts
        self._started = False
        self._stack = ExitStack()
        self._services: dict[psutil.Process, str] = {}
        self.watch: RunCallback | None = None
        self._lost: RayLost | None = None

    def __enter__(self) -> RaySession:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        _keep_loggers_quiet()
        _ray.tune.quiet_driver()
        self._stack.enter_context(_ray.local.no_instance_by_itself())
        if not ray.is_initialized():
            self._start_ray()
        # Ray sets a SIGTERM handler of its own.
        self._interrupts.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        if self._started:
            with nothing_left(self._services):
                ray.shutdown()

    def run(
        self,
        place: Location,
        reporter: ConsoleReporter,
        *,
        finished: Mapping[str, Entry],
        find_finished: Callable[[Location], Entry | None],
    ) -> RunCallback:
        """Run all trials that are not done. Returns what was seen of them. `finished`: the last
        checkpoint of those that are, by directory name; `find_finished` looks at one directory.

        Raises:
            ClusterNotReady: a node of the cluster cannot take part.
        """
        join_check = None
        with ExitStack() as beside:
            envoys, there = None, [] if self._services else alive_nodes()
            if self._address is not None or len(there) > 1:
                envoys = beside.enter_context(Envoys(nodes_to_ask(there)))
            # Seconds of imports, while the workers do theirs.
            with _without_collections():
                from raytrain.driver.tune_callback import RunCallback, describe
                from raytrain.driver.tuner import build_tuner
                from raytrain.trial.trainable import TrialPPO
            if envoys is not None:
                storage = self._config.storage_path
                with self._interrupts.deferred():
                    preflight(storage, envoys, check=self._interrupts.raise_early)
                self._interrupts.raise_early()
                join_check = self._stack.enter_context(JoinCheck(storage, there))
        _keep_loggers_quiet()
        TrialPPO.default_resource_request(self._space())  # Refuses what RLlib will not take.

        def check() -> None:
            self._check_ray()
            for problem in join_check.told() if join_check is not None else ():
                reporter.event("raytrain", "warning", problem)

        self.watch = watch = RunCallback(self._config, reporter, self._interrupts, check=check)
        tuner, said = build_tuner(
            self._config, place, watch, finished=finished, find_finished=find_finished
        )
        if said is not None:
            reporter.event("raytrain", "warning", said)
        watch.begin()
        # To the end of the program: from here on there is something to say of what was saved.
        self._interrupts.defer()
        try:
            tuner.fit()
        except Exception as error:  # Of any kind: Tune tidies up as if nothing could fail,
            # and a full disk makes it raise. How the run ended is read from storage, not here.
            if self._lost is not None:
                raise self._lost from None
            watch.tune_error = describe(error)
        return watch

    def _check_ray(self) -> None:
        """Raise `RayLost` if a process of the local Ray instance has died: without its raylet or GCS
        a driver waits for ever, or is aborted a minute later."""
        for service, name in self._services.items():
            if not lives(service):
                # At once, before Tune tidies up by talking to processes that are not there any more.
                with nothing_left(self._services):
                    ray.shutdown()
                self._lost = RayLost(f"Ray's process {name} (pid {service.pid}) died")
                raise self._lost

    def _start_ray(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        options["runtime_env"] = self._workers()
        if self._address is not None:
            options["address"] = self._address
            if needs_files(self._config) and not in_a_job():
                archive = Path(self._stack.enter_context(TemporaryDirectory()), "run.zip")
                pack(self._config, archive)
                options["runtime_env"]["working_dir"] = str(archive)
        else:
            # Never a cluster that somebody else has running on this machine.
            options["address"] = "local"
            options["include_dashboard"] = False
            options["_system_config"] = _ray.local.SYSTEM_CONFIG
            options["num_cpus"] = self._logical_cpus()
        _require_reachable(self._address)
        try:
            with ExitStack() as stack:
                if self._address is None:
                    stack.enter_context(_ray.local.lean_instance())
                ray.init(**options)
        except InterruptedEarly:
            self._end_half_an_instance()
            raise
        except SystemExit:
            self._end_half_an_instance()
            # From its first moments on Ray answers a SIGTERM by itself, with the signal's number as code.
            self._interrupts.note_early(signal.SIGTERM)
        except Exception as error:  # Ray raises bare Exceptions here.
            if self._address is None:
                self._end_half_an_instance()
                said = str(error).rstrip(".")
                raise RayLost(f"Ray could not start on this machine: {said}") from None
            raise RaytrainError(
                f"Cannot connect to the cluster at {self._address}: {error} Check `--address`, and "
                "that the cluster runs the same Ray version."
            ) from None
        self._started = True
        if self._address is None:
            self._services = own_services()
            # The first worker takes the time that this process's own imports take.
            ray.remote(num_cpus=0)(_nothing).remote()

    def _end_half_an_instance(self) -> None:
        """What Ray has started when its start is interrupted: it knows nothing of it itself."""
        if self._address is None:
            with nothing_left():
                ray.shutdown()
                for each in own_services():
                    each.kill()

    def _workers(self) -> dict[str, Any]:
        """The runtime environment of all workers."""
        forked = _can_be_forked(self._config)
        workers: dict[str, Any] = {"env_vars": _ray.local.worker_variables(one_cpu=forked)}
        if forked and sys.platform == "linux" and "py_executable" not in job_environment():
            workers["py_executable"] = forkserver.COMMAND
        return workers

    def _logical_cpus(self) -> int:
        present = os.cpu_count() or 1
        if cpus_at_most(self._config) <= present:
            return present
        from raytrain.trial.trainable import TrialPPO

        reserved = TrialPPO.default_resource_request(self._space()).required_resources
        runners = self._config.env_runners
        further = max(0, most_env_runners(runners) - runners.min_actors)
        cpus = float(reserved.get("CPU", 1.0)) + further * runners.num_cpus_per_env_runner
        return max(present, math.ceil(cpus))

    def _space(self) -> dict[str, Any]:
        first_trial = self._config.model_copy(update={"search": ()})
        return {**param_space(first_trial), "import_path": self._config.import_path}


def cluster_address(address: str | None) -> str | None:
    """The cluster to use: `--address`, or RAY_ADDRESS, as Ray itself has it (a job's driver finds its
    cluster there). None starts a local instance."""
    found = address or os.environ.get("RAY_ADDRESS") or "local"
    if found.startswith(("http://", "https://")):
        raise BadInput(
            f"{found} is where a cluster takes jobs. Use `raytrain submit CONFIG --address {found}`; "
            "`raytrain train` wants the address of Ray itself, such as HOST:6379 (--address, or "
            "RAY_ADDRESS in the environment)."
        )
    return None if found == "local" else found


def _can_be_forked(config: ExperimentConfig) -> bool:
    """Whether workers can have imported Torch before they know what they are for. Not if an actor has two
    CPUs or more, as Torch learns of its threads when it is imported. Of the visible GPUs it learns when it
    uses one, which nothing does before the fork (`forkserver` looks)."""
    cpus = (
        config.resources.num_cpus_for_main_process,
        config.env_runners.num_cpus_per_env_runner,
        config.learners.num_cpus_per_learner,
    )
    return all(each == "auto" or float(each) < 2 for each in cpus)


def _nothing() -> None:
    pass


@contextmanager
def _without_collections() -> Iterator[None]:
    """A tenth of the time of imports goes into looking for garbage among what they make."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _keep_loggers_quiet() -> None:
    """What they have to say of a failure is said in plain words by `tune_callback`. Importing RLlib sets its
    logger's level."""
    for name in ("ray.tune", "ray.train", "ray.rllib", "ray._private.worker"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _require_reachable(address: str | None) -> None:
    """Raise `BadInput` if nobody listens at a cluster's address. Ray would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_PATIENCE_S).close()
    except OSError as error:
        raise BadInput(
            f"--address {address}: nobody answers there ({error}). Check host and port, and that the "
            "cluster is up."
        ) from None
