"""Ray and Tune for the time of one run.

A local Ray instance is started unless an address is given, with at least as many logical CPUs as
one trial asks for: a trial that can never be placed would wait for ever. It is started before this
process imports RLlib and Torch, which Ray's fork server imports meanwhile (`_ray.forkserver`).
"""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psutil
import ray

from raytrain import _ray
from raytrain._ray import forkserver
from raytrain._ray.cluster import in_a_job, job_environment
from raytrain.arithmetic.machine import require_portable
from raytrain.checkpoint import Entry
from raytrain.cluster.join_check import JoinCheck
from raytrain.cluster.package import needs_files, pack
from raytrain.cluster.preflight import NodeActors, alive_nodes, nodes_to_ask, preflight
from raytrain.config import ExperimentConfig, cpus_at_most, most_env_runners
from raytrain.driver.console import ConsoleReporter
from raytrain.driver.process_cleanup import lives, nothing_left, own_services
from raytrain.driver.signals import InterruptedEarly, Interrupts
from raytrain.errors import BadInput, RaytrainError
from raytrain.storage import Location

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

    from raytrain.driver.tune_callback import RunCallback

_CONNECT_S = 10.0
_ENVIRONMENT = {
    # The trials write the records, where they can be tied to checkpoints.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # An interrupt saves every trial before Tune is stopped (see `tune_callback`).
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Relative paths in an environment's config mean what they mean in the user's shell.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Processes left by a failed trial are killed after so many seconds (Tune: 600): the next
    # attempt may need their resources, and one that waits for a lost node does not end by itself.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "30",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # The run's threads hold, whatever variables a job was submitted with.
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
}


class RayLost(RaytrainError):
    """The local Ray instance did not start, or died during the run."""


class RaySession:
    """`with RaySession(config, ...) as session: session.run(...)`"""

    def __init__(
        self,
        config: ExperimentConfig,
        *,
        variables: Mapping[str, str],
        address: str | None,
        interrupts: Interrupts,
    ) -> None:
        """`variables`: of the environment of every worker (see `ArithmeticSettings`)."""
        self._config = config
        self._variables = variables
        self._address = cluster_address(address)
        self._interrupts = interrupts
        self._started = False
        self._stack = ExitStack()
        self._services: dict[psutil.Process, str] = {}
        self.watch: RunCallback | None = None
        self._lost: RayLost | None = None

    def __enter__(self) -> RaySession:
        _set_variables(_ENVIRONMENT)
        _silence_loggers()
        _ray.tune.quiet_driver()
        self._stack.enter_context(_ray.local.no_instance_by_itself())
        if not ray.is_initialized():
            self._start_ray()
        elif self._config.debugging.portable:
            raise BadInput(
                "debugging.portable: Ray was started by this program, so raytrain cannot set what "
                "its workers need. Leave ray.init() to raytrain, or use the command line."
            )
        # Ray sets a SIGTERM handler of its own.
        self._interrupts.install()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()
        if self._started:
            with nothing_left(self._services):
                ray.shutdown()

    def run(
        self,
        place: Location,
        reporter: ConsoleReporter,
        finished: Mapping[str, Entry],
        callbacks: Sequence[Any] = (),
    ) -> RunCallback:
        """Run all trials that are not finished. Returns the callback that watched them. `finished`:
        see `tuner.ExperimentScheduler`. `callbacks`: further ones of Tune's.

        Raises:
            ClusterNotReady: a node of the cluster cannot take part.
        """
        join_check = None
        with ExitStack() as beside:
            actors, nodes = None, [] if self._services else alive_nodes()
            if self._address is not None or len(nodes) > 1:
                actors = beside.enter_context(NodeActors(nodes_to_ask(nodes)))
            # Seconds of imports, while the workers do theirs; garbage collection would add a tenth.
            collects = gc.isenabled()
            gc.disable()
            try:
                from raytrain.driver.tune_callback import RunCallback, describe
                from raytrain.driver.tuner import build_tuner
            finally:
                if collects:
                    gc.enable()
            if actors is not None:
                storage = self._config.storage_path
                with self._interrupts.deferred():
                    preflight(
                        storage, actors, tell=reporter.note, check=self._interrupts.raise_early
                    )
                self._interrupts.raise_early()
                join_check = self._stack.enter_context(JoinCheck(storage, nodes))
        _silence_loggers()
        self._resources()  # Raises what RLlib does not accept.

        def check() -> None:
            self._check_ray()
            for problem in join_check.problems() if join_check is not None else ():
                reporter.note(problem, "warning")

        self.watch = watch = RunCallback(self._config, reporter, self._interrupts, check)
        tuner, message = build_tuner(self._config, place, [watch, *callbacks], finished)
        if message is not None:
            reporter.note(message, "warning")
        watch.begin()
        # To the end of the program: from here on there is something to save, or to report of it.
        self._interrupts.defer()
        try:
            tuner.fit()
        except Exception as error:  # Of any kind: a full disk makes Tune raise while it cleans up.
            # How the run ended is read from storage, not here.
            if self._lost is not None:
                raise self._lost from None
            watch.tune_error = describe(error)
        return watch

    def _check_ray(self) -> None:
        """Raise `RayLost` if a process of the local Ray instance has died: without its raylet or
        GCS a driver waits for ever, or is aborted a minute later."""
        for service, name in self._services.items():
            if not lives(service):
                # At once, before Tune cleans up by calling processes that are gone.
                with nothing_left(self._services):
                    ray.shutdown()
                self._lost = RayLost(f"Ray's process {name} (pid {service.pid}) died")
                raise self._lost

    def _start_ray(self) -> None:
        is_local = self._address is None
        options: dict[str, Any] = {
            # Never a cluster that somebody else runs on this machine.
            "address": self._address or "local",
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "runtime_env": self._runtime_env(),
        }
        if is_local and self._config.debugging.portable:
            require_portable()
        if is_local:
            options["include_dashboard"] = False
            options["_system_config"] = _ray.local.SYSTEM_CONFIG
            options["num_cpus"] = self._logical_cpus()
        elif needs_files(self._config) and not in_a_job():
            archive = Path(self._stack.enter_context(TemporaryDirectory()), "run.zip")
            pack(self._config, archive)
            options["runtime_env"]["working_dir"] = str(archive)
        require_reachable(self._address)
        try:
            with ExitStack() as stack:
                if is_local:
                    stack.enter_context(_ray.local.lean_instance())
                ray.init(**options)
        except InterruptedEarly:
            self._end_half_an_instance()
            raise
        except SystemExit:
            self._end_half_an_instance()
            # Early in its start Ray already handles SIGTERM itself, and exits with its number.
            self._interrupts.received = signal.SIGTERM
            raise InterruptedEarly from None
        except Exception as error:  # Ray raises bare Exceptions here.
            if is_local:
                self._end_half_an_instance()
                reason = str(error).rstrip(".")
                raise RayLost(f"Ray could not start on this machine: {reason}") from None
            raise cannot_connect(self._address, error) from None
        self._started = True
        if is_local:
            self._services = own_services()
            # The first worker imports while this process does.
            ray.remote(num_cpus=0)(lambda: None).remote()

    def _end_half_an_instance(self) -> None:
        """End what Ray has started when its start is interrupted: it does not know of it itself."""
        if self._address is None:
            with nothing_left():
                ray.shutdown()
                for service in own_services():
                    service.kill()

    def _runtime_env(self) -> dict[str, Any]:
        """The runtime environment of all workers."""
        variables = {**_ray.local.worker_variables(), **self._variables}
        options: dict[str, Any] = {"env_vars": variables}
        if sys.platform == "linux" and "py_executable" not in job_environment():
            options["py_executable"] = forkserver.COMMAND
        return options

    def _logical_cpus(self) -> int:
        present = os.cpu_count() or 1
        if cpus_at_most(self._config) <= present:
            return present
        reserved = self._resources().required_resources
        runners = self._config.env_runners
        further = max(0, most_env_runners(runners) - runners.min_actors)
        cpus = float(reserved.get("CPU", 1.0)) + further * runners.num_cpus_per_env_runner
        return max(present, math.ceil(cpus))

    def _resources(self) -> PlacementGroupFactory:
        """The resources of the first trial."""
        from raytrain.trial.trainable import TrialPPO

        return TrialPPO.resources_of(self._config.model_copy(update={"search": ()}))


def cluster_address(address: str | None) -> str | None:
    """The cluster to use: `--address`, or RAY_ADDRESS, which Ray sets for the driver of a job. None
    starts a local instance."""
    chosen = address or os.environ.get("RAY_ADDRESS") or "local"
    if chosen.startswith(("http://", "https://")):
        raise BadInput(
            f"{chosen} is an address for jobs. Use `raytrain submit CONFIG --address {chosen}`; "
            "`raytrain train` needs the address of Ray itself, such as HOST:6379 (--address, or "
            "RAY_ADDRESS in the environment)."
        )
    return None if chosen == "local" else chosen


def cannot_connect(address: str | None, error: Exception) -> RaytrainError:
    """What `ray.init` raised for a cluster that is reachable."""
    return RaytrainError(
        f"Cannot connect to the cluster at {address}: {error} Check `--address`, and that the "
        "cluster runs the same Ray version."
    )


def _set_variables(values: Mapping[str, str]) -> None:
    """Set variables of this process's environment that have no value.

    With a Ray that the program has started they are set for Python alone, which is where Tune reads
    them: Ray's threads call `getenv`, and glibc before 2.41 frees the environment under them when
    it grows. Seen as a SIGSEGV of the driver with Ray 2.60.
    """
    known = getattr(os.environ, "_data", None)
    for name, value in values.items():
        if known is None or not ray.is_initialized():
            os.environ.setdefault(name, value)
        else:
            known.setdefault(os.fsencode(name), os.fsencode(value))


def _silence_loggers() -> None:
    """`tune_callback` reports failures in plain words. Importing RLlib sets its logger's level."""
    for name in ("ray.tune", "ray.train", "ray.rllib", "ray._private.worker"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def require_reachable(address: str | None) -> None:
    """Raise `BadInput` if nothing listens at a cluster's address. Ray would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise BadInput(
            f"--address {address}: no connection ({error}). Check host and port, and that the "
            "cluster is running."
        ) from None
