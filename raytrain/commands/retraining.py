"""A stretch of a run is trained again, in a process that was started as those of the run were.

    audit -- task --> a new Python with the run's environment variables, a Ray of its own,
          <- result-- and a scratch directory; the experiment is only read

What numbers depend on is chosen before a program's first line: Python reads the order of its
hashes, and libraries their threads and kernels (see `arithmetic.settings`). The process ends, with
all that it has started, when the one that waits for it ends.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil

from raytrain import _ray
from raytrain.arithmetic.settings import ArithmeticSettings, use_threads
from raytrain.checkpoint import Manifest, fetch
from raytrain.config import ExperimentConfig
from raytrain.config.run_code import ProcessCode
from raytrain.driver.process_cleanup import nothing_left
from raytrain.driver.signals import Interrupts, sigterm_kept
from raytrain.errors import BadInput, RaytrainError
from raytrain.storage import Location, signing_key
from raytrain.storage.location import storage_errors
from raytrain.storage.scratch import scratch
from raytrain.storage.signing import KEY_VARIABLE
from raytrain.trial.changed_code import code_of_manifest
from raytrain.versions import changed_versions

if TYPE_CHECKING:  # They import Ray, which takes seconds.
    from raytrain.ppo.algorithm import ExactPPO
    from raytrain.records.row_files import Row

_RECORDS = "result.json"
_TASK, _RESULT, _OUTPUT = "task", "result", "output"
_OF_A_WORKER = ("RAY_ADDRESS", "RAY_JOB_", "RAY_RAYLET_PID")
_ENDING_S = 30.0
_NICENESS = 10


class CannotAudit(BadInput):
    """There is nothing that an audit can compare."""


@dataclass(frozen=True)
class Stretch:
    """From the checkpoint of iteration `start` to that of `end`, whose manifest is `written`.

    `root` is a directory, or a URI, that every process can open; `trial` and `checkpoint` are paths
    below it. `settings`: of the processes that trained it; None if they are not known. `is_signed`:
    its signatures were checked, and are to be.
    """

    root: str
    trial: str
    checkpoint: str
    start: int
    end: int
    weights_sha256: str
    written: Manifest
    config: ExperimentConfig
    snapshot: Mapping[str, Any]
    settings: ArithmeticSettings | None
    is_signed: bool

    @property
    def name(self) -> str:
        """Of the trial."""
        return (Location.of(self.root) / self.trial).name


@dataclass(frozen=True)
class Difference:
    """The first iteration that differs. `what` maps a metric's name, or `weights_sha256`, to the
    value on storage and the value of now."""

    iteration: int
    what: Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Retrained:
    """To the end, or to the first difference. `compared`: iterations that have a row in
    result.json. `digests`: of the weights, by iteration. `arithmetic`: fingerprint and machine, by
    role. `versions`: libraries that differ from those of the checkpoints: (then, now). `code`: what
    differs in the environment's code: `my_env.py changed`."""

    difference: Difference | None
    compared: int
    digests: Mapping[int, str]
    arithmetic: Mapping[str, tuple[str, Mapping[str, str]]]
    versions: Mapping[str, tuple[str, str]]
    code: Sequence[str] = ()


def train_again(stretch: Stretch) -> Retrained:
    """In a process of this machine, which writes where this one does.

    Raises:
        RaytrainError: what was raised there; or the process died.
    """
    with scratch("audit") as directory:
        return _in_new_process(stretch, dict(os.environ), directory, None)


def train_again_on_node(stretch: Stretch) -> Retrained | str:
    """The same from an actor of a cluster, with a low priority. Returns why it was not possible as
    text."""
    # What Ray tells its workers is not for another instance.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_OF_A_WORKER)}
    environment["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    with scratch("audit") as directory, (directory / _OUTPUT).open("w+b") as output:
        try:
            return _in_new_process(stretch, environment, directory, output)
        except RaytrainError as error:
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines()
            died = isinstance(error, _Died) and said
            return f"{error} Its last line: {said[-1]}" if died else str(error)


class _Died(RaytrainError):
    """The process ended without a result."""


def _in_new_process(
    stretch: Stretch, environment: dict[str, str], directory: Path, output: IO[bytes] | None
) -> Retrained:
    if stretch.settings is not None:
        environment.update(stretch.settings.variables())
    (directory / _TASK).write_bytes(pickle.dumps(stretch))
    reader, writer = os.pipe()
    niceness = 0 if output is None else _NICENESS
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; "
        f"main({str(directory)!r}, {reader}, {niceness}); "
        # A thread of the environment would keep the process alive.
        "import atexit, os; atexit._run_exitfuncs(); "
        "sys.stdout.flush(); sys.stderr.flush(); os._exit(0)"
    )
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            pass_fds=(reader,),
            # It learns from the pipe that it has to end: a terminal's Ctrl-C is for this process.
            start_new_session=True,
        )
    finally:
        os.close(reader)
    try:
        code_of_exit = process.wait()
    finally:
        os.close(writer)
        _end(process)
    if not (directory / _RESULT).exists():
        how = (
            f"ended with exit code {code_of_exit}"
            if code_of_exit >= 0
            else f"was ended by {signal.Signals(-code_of_exit).name}"
        )
        raise _Died(f"The process that trained again {how}.")
    result = pickle.loads((directory / _RESULT).read_bytes())
    if isinstance(result, RaytrainError):
        raise result
    retrained: Retrained = result
    return retrained


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process, whose pipe is closed, has ended and has cleaned up."""
    try:
        process.wait(_ENDING_S)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
        process.kill()
        process.wait()


# -- in the new process --------------------------------------------------------------------------


def main(directory: str, pipe: int, niceness: int) -> None:
    """The new process's main function."""
    interrupts = Interrupts(insist_after_s=_ENDING_S / 2)
    interrupts.install()
    os.nice(niceness)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    stretch: Stretch = pickle.loads(Path(directory, _TASK).read_bytes())
    result: Retrained | RaytrainError
    try:
        result = _train_again(stretch, Path(directory))
    except BaseException as error:
        if interrupts.received is not None:  # Any exception follows from it.
            sys.exit(interrupts.exit_code)
        if not isinstance(error, RaytrainError):
            raise
        result = error
    interrupts.ignore()
    Path(directory, _RESULT).write_bytes(pickle.dumps(result))


def _end_with(pipe: int) -> None:
    os.read(pipe, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _train_again(stretch: Stretch, directory: Path) -> Retrained:
    place = Location.of(stretch.root)
    if stretch.is_signed and signing_key() is None:
        raise CannotAudit(
            f"{place} is signed, but {KEY_VARIABLE} is not set on this machine. Set it there, in "
            "the environment in which Ray is started."
        )
    # At once: a run that goes on deletes old checkpoints.
    source = fetch(place / stretch.checkpoint, directory / "fetched")
    if not source.is_relative_to(directory):
        source = Path(shutil.copytree(source, directory / "copied"))
    records = _records(place / stretch.trial, stretch.start, stretch.end)
    from raytrain.ppo.state import StateMismatch

    difference, compared, digests = None, 0, dict[int, str]()
    with _algorithm(stretch, directory) as algorithm:
        try:
            restored = algorithm.load_exact(source)
        except StateMismatch as error:
            found = f"not what its files hold: {error}"
            difference = Difference(
                stretch.start, {"weights_sha256": (stretch.weights_sha256, found)}
            )
        else:
            if restored.exact_lost is not None:
                raise CannotAudit(
                    f"{place / stretch.trial} cannot be audited from {stretch.checkpoint}: "
                    f"{restored.exact_lost}."
                )
            difference, compared, digests = _train_and_compare(algorithm, records, stretch.written)
        arithmetic = algorithm.arithmetic()
    versions = changed_versions(stretch.written.versions)
    code = ProcessCode(code_of_manifest(stretch.written), stretch.config.import_path)
    return Retrained(difference, compared, digests, arithmetic, versions, code.changes_here())


def _train_and_compare(
    algorithm: ExactPPO, records: Mapping[int, Row], written: Manifest
) -> tuple[Difference | None, int, dict[int, str]]:
    """Train to the iteration of the manifest, or to the first difference. Returns that difference,
    the number of iterations compared, and the digests of the weights."""
    from raytrain.records import differences
    from raytrain.records.row_files import encode_row

    compared, digests = 0, dict[int, str]()
    while algorithm.iteration < written.iteration:
        result = {key: value for key, value in algorithm.train().items() if key != "config"}
        row = encode_row(result)
        # The weights come first: everything else may follow from them.
        what: dict[str, tuple[Any, Any]] = {}
        digest = digests[row.iteration] = algorithm.weights_digest
        if row.iteration == written.iteration and digest != written.weights_sha256:
            what["weights_sha256"] = (written.weights_sha256, digest)
        if row.iteration in records:
            compared += 1
            for key, then, now in differences(records[row.iteration].flat, row.flat):
                what.setdefault(key, (then, now))
        if what:
            return Difference(row.iteration, what), compared, digests
    return None, compared, digests


def _records(trial: Location, after: int, upto: int) -> dict[int, Row]:
    """The recorded rows of the iterations in (after, upto]."""
    from raytrain.records.row_files import decode_row

    place = trial / _RECORDS
    with storage_errors("Reading the records", place):
        if not place.exists():
            return {}
        lines = place.read_bytes().splitlines(keepends=True)
    rows = [row for line in lines if (row := decode_row(line)) is not None]
    return {row.iteration: row for row in rows if after < row.iteration <= upto}


@contextmanager
def _algorithm(stretch: Stretch, scratch: Path) -> Iterator[ExactPPO]:
    import ray
    from ray.rllib.algorithms.ppo import PPO

    from raytrain.ppo.algorithm import ExactPPO, algorithm_arguments

    _ray.tune.silence_ray()
    threads = None if stretch.settings is None else stretch.settings.threads
    arguments = algorithm_arguments(stretch.config, stretch.snapshot, threads)
    request = PPO.default_resource_request(arguments["config"].to_dict())
    needed = int(-(-request.required_resources.get("CPU", 1.0) // 1))
    try:
        with _ray.local.lean_instance(), _ray.local.quiet_start(), sigterm_kept():
            ray.init(
                address="local",  # Never another cluster that runs on this machine.
                num_cpus=max(os.cpu_count() or 1, needed),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _system_config=_ray.local.SYSTEM_CONFIG,
            )
    except SystemExit as error:  # From the handler for SIGTERM that Ray sets meanwhile.
        ray.shutdown()
        number = error.code if isinstance(error.code, int) else 1
        raise SystemExit(128 + number if number == signal.SIGTERM else number) from None
    except Exception as error:  # Ray raises bare Exceptions here.
        ray.shutdown()
        reason = str(error).rstrip(".")
        raise RaytrainError(f"Ray could not start on this machine: {reason}.") from None
    try:
        # Ray gives an actor as many threads as it has CPUs.
        cpus = max(1, int(request.bundles[0].get("CPU", 1)))
        use_threads(cpus if threads is None else threads["trial"])
        with _ray.local.files_below(str(scratch)):
            algorithm = ExactPPO(**arguments)
        try:
            yield algorithm
        finally:
            algorithm.stop()
    finally:
        with nothing_left():
            ray.shutdown()
