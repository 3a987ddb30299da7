"""Signals to a run: to its process, its group, its session and all of its processes,
at each moment."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from support.running import (
    Reference,
    Run,
    committed,
    experiment_of,
    iteration_of,
    rows,
    train,
    trial_of,
    write_config,
)

from raytrain.driver.console import ConsoleReporter
from raytrain.driver.signals import InterruptedEarly, Interrupts

SAVING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture(autouse=True)
def as_a_shell_starts_it() -> Iterator[None]:
    """A test run in the background, or under `nohup`, ignores signals, and
    children inherit that."""
    numbers = (signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# -- what the driver makes of them ---------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def leave(*numbers: signal.Signals, apart: float = 2.0) -> int:
    """The exit code of a process that gets these signals; that of `Interrupts` if it is
    left to end."""
    child = os.fork()
    if child == 0:
        clock = Clock()
        interrupts = Interrupts(clock)
        interrupts.install()
        interrupts.defer()
        for number in numbers:
            clock.now += apart
            signal.raise_signal(number)
        os._exit(interrupts.exit_code - 100)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", SAVING)
def test_each_is_noted_once_and_twice_within_a_second_is_once(number: signal.Signals) -> None:
    assert leave(number, apart=0.9) == 28 + number
    assert leave(number, signal.SIGTERM, apart=0.9) == 28 + number


def test_a_later_one_leaves_at_once_and_sigquit_always() -> None:
    assert leave(signal.SIGTERM, signal.SIGTERM) == 143
    assert leave(signal.SIGTERM, signal.SIGINT) == 130
    assert leave(signal.SIGQUIT) == 131


def test_nohup_stays_in_force() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGHUP)
        assert interrupts.received is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_what_follows_from_a_signal_is_told_from_an_error() -> None:
    with Interrupts() as interrupts:
        assert not interrupts.early
        with pytest.raises(InterruptedEarly):
            signal.raise_signal(signal.SIGTERM)
        assert interrupts.early
        interrupts.defer()
        assert not interrupts.early


class Closed:
    """A terminal that is not there any more."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")

    flush = write


@pytest.mark.parametrize("terminal", [True, False])
def test_a_closed_terminal_does_not_end_the_run(terminal: bool) -> None:
    console = Console(file=Closed(), force_terminal=terminal)  # type: ignore[arg-type]
    reporter = ConsoleReporter(console)
    for _ in range(2):
        reporter.event("trial_00000", "info", "a sentence")
    reporter.close()
    reporter.finished("the end")


# -- what an actor makes of them -----------------------------------------------------------------

_ACTOR = """
import multiprocessing, os, signal, subprocess, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP])  # As in the raylet.
from raytrain._ray.actor_signals import spare_this_actor
spare_this_actor()
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGHUP)
program = "import time; print('up', flush=True); time.sleep(60)"
simulator = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
simulator.stdout.readline()
simulator.terminate()
exits = set()
for _ in range(200):  # Some of them get the signal before the fork is complete.
    forked = multiprocessing.get_context("fork").Process(target=signal.pause)
    forked.start()
    forked.terminate()
    forked.join(60)
    exits.add(forked.exitcode)
    forked.kill()
print(simulator.wait(), *exits)
"""


def test_an_actor_lives_on_and_can_end_its_own_processes() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _ACTOR], capture_output=True, text=True, check=True, timeout=120
    )
    assert ended.stdout.split() == ["-15", "-15"]


# -- commands ------------------------------------------------------------------------------------


def stopped(
    number: signal.Signals, *arguments: str, after: Callable[[psutil.Process], bool]
) -> tuple[int, str]:
    """Exit code and output of a command whose group gets the signal; none of its
    processes is left."""
    run = subprocess.Popen(
        [sys.executable, "-m", "raytrain", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    process = psutil.Process(run.pid)
    try:
        while run.poll() is None and not after(process):
            threading.Event().wait(0.02)
        family = process.children(recursive=True)
        os.killpg(run.pid, number)
        output, _ = run.communicate(timeout=600)
    finally:
        run.kill()
    assert not alive(family), output
    assert "Traceback" not in output, output
    return run.returncode, output


def alive(family: list[psutil.Process]) -> list[str]:
    found = []
    for each in family:
        try:
            if each.is_running() and each.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(each.cmdline()[:3]))
        except psutil.NoSuchProcess:
            continue
    return found


def has_imported_torch(process: psutil.Process) -> bool:
    return "libtorch_cpu" in Path(f"/proc/{process.pid}/maps").read_text()


def has_handlers(process: psutil.Process) -> bool:
    """Whether SIGTERM is caught."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught & 1 << (signal.SIGTERM - 1))


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(each, marks=pytest.mark.slow) for each in (2, signal.SIGHUP))],
)
def test_a_command_that_trains_nothing_ends_without_a_traceback(
    number: signal.Signals, survivor: Path
) -> None:
    at = ("evaluate", str(experiment_of(survivor)), "--episodes", "1000000")
    assert stopped(number, *at, after=has_imported_torch)[0] == 128 + number
    assert stopped(number, *at, after=has_handlers)[0] == 128 + number  # It imports itself.


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("process", ["gcs_server", "raylet", None])
def test_an_audit_leaves_no_process(
    number: signal.Signals, process: str | None, survivor: Path
) -> None:
    def runs(audit: psutil.Process) -> bool:
        children = audit.children(recursive=True)
        if process is None:
            return any(map(has_imported_torch, children))
        return process in [each.name() for each in children]

    code, _ = stopped(number, "audit", str(experiment_of(survivor)), after=runs)
    assert code == 128 + number


_SWALLOWER = """
import os, signal, sys, time
from raytrain.driver.signals import Interrupts
Interrupts(insist_after_s=1).install()
try:
    os.kill(os.getpid(), signal.SIGINT)
except BaseException:
    pass  # As an extension module does that is being imported.
while True:
    time.sleep(0.1)
"""


def test_a_signal_that_a_library_swallows_ends_the_program_all_the_same() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _SWALLOWER], capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 130 and "Leaving at once" in ended.stderr


# -- training ------------------------------------------------------------------------------------


def endless(tmp_path: Path, **sections: object) -> Path:
    """A config that is never finished, and saves only when it is told to."""
    sections.setdefault("checkpoint", {"checkpoint_frequency": 1000})
    return write_config(
        tmp_path / "run.yaml",
        training={"train_batch_size_per_learner": 128, "num_epochs": 1},
        stop={"iterations": 100_000},
        **sections,
    )


def hit(run: Run, number: signal.Signals, target: str) -> None:
    """Send a signal as a shell, a terminal, systemd and Slurm do."""
    pid = run.process.pid
    if target == "process":
        os.kill(pid, number)
    elif target == "group":
        os.killpg(pid, number)
    elif target == "timeout":  # coreutils: to the process, and to the group, which holds it.
        os.kill(pid, number)
        os.killpg(pid, number)
        os.killpg(pid, signal.SIGCONT)
    else:
        for each in [*run.processes(), psutil.Process(pid)]:
            if target == "session" and os.getsid(each.pid) != pid:
                continue
            try:
                each.send_signal(number)
            except psutil.NoSuchProcess:
                continue


def assert_saved(config: Path, trials: int = 1) -> None:
    """The newest row of each trial has its checkpoint, of kind `interrupted`."""
    for index in range(trials):
        trial = trial_of(config, index)
        last = iteration_of(trial)
        assert last > 0
        manifest = json.loads((trial / f"checkpoint_{last:06d}" / "manifest.json").read_text())
        assert (manifest["iteration"], manifest["kind"]) == (last, "interrupted")


def interrupt(
    config: Path,
    number: signal.Signals,
    target: str,
    when: Callable[[Run], object],
    *arguments: str,
) -> str:
    """Train, send the signal when the condition holds; the output. Nothing is left, and the
    code is right."""
    run = Run("train", str(config), *arguments, log=config.parent / "log.txt")
    run.until(lambda: when(run))
    family = run.processes()
    hit(run, number, target)
    assert run.wait(120) == 128 + number, run.output()
    assert not alive(family), run.output()
    assert "Traceback" not in run.output()
    return run.output()


def test_sigterm_to_every_process_saves_first(tmp_path: Path) -> None:
    """As systemd does to a unit and Slurm to a job: the trial and its runner get it, too."""
    config = endless(tmp_path)
    said = interrupt(config, signal.SIGTERM, "all", lambda run: iteration_of(trial_of(config)) >= 3)
    assert "Stopped by SIGTERM; saved in" in said
    assert_saved(config)


# Two runners with one env each, in the one order of groups: the same run as with none.
_TRAINING = [
    *[(number, "process", 0) for number in SAVING],
    *[(number, "all", 2) for number in SAVING],
    (signal.SIGTERM, "group", 1),
    (signal.SIGTERM, "timeout", 1),
    (signal.SIGINT, "timeout", 0),
    (signal.SIGHUP, "session", 1),
    (signal.SIGINT, "group", 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "target", "runners"), _TRAINING)
def test_every_signal_to_every_target_saves_first(
    number: signal.Signals, target: str, runners: int, tmp_path: Path
) -> None:
    config = endless(tmp_path, env_runners={"num_env_runners": runners})
    interrupt(config, number, target, lambda run: iteration_of(trial_of(config)) >= 3)
    assert_saved(config)


def starts(name: str) -> Callable[[Run], object]:
    return lambda run: run.pids(name)


_MOMENTS: dict[str, Callable[[Run], object]] = {
    "program": lambda run: has_handlers(psutil.Process(run.process.pid)),
    "gcs": starts("gcs_server"),
    "raylet": starts("raylet"),
    "workers": starts("ray::"),
    "trial": starts("ray::TrialPPO"),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", _MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_start_can_be_stopped_at_any_moment(
    moment: str, number: signal.Signals, tmp_path: Path
) -> None:
    config = endless(tmp_path)
    interrupt(config, number, "all", _MOMENTS[moment])
    if rows(trial_of(config)):
        assert_saved(config)


@pytest.mark.slow
def test_several_trials_and_saves_under_way(tmp_path: Path) -> None:
    config = endless(
        tmp_path,
        env_runners={"num_env_runners": 0},
        checkpoint={"checkpoint_frequency": 1},
        tune={"num_samples": 2},
    )
    trials = [0, 1]
    interrupt(
        config,
        signal.SIGTERM,
        "all",
        lambda run: all(iteration_of(trial_of(config, each)) >= 2 for each in trials),
    )
    for each in trials:
        trial = trial_of(config, each)
        assert committed(trial)[-1] == iteration_of(trial)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["process", "all"])
def test_sigquit_leaves_at_once_and_leaves_nothing(
    target: str, tmp_path: Path, undisturbed: Reference
) -> None:
    config = write_config(tmp_path / "run.yaml")
    said = interrupt(config, signal.SIGQUIT, target, lambda run: committed(trial_of(config)))
    assert "Leaving at once" in said
    train(config)
    assert [row["weights_sha256"] for row in rows(trial_of(config))] == undisturbed.digests()


def finished(trial: Path) -> bool:
    return (trial / "final" / "manifest.json").exists()


@pytest.mark.slow
def test_a_signal_at_the_end_finds_the_run_finished(tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml")
    run = Run("train", str(config), log=tmp_path / "log.txt")
    run.until(lambda: finished(trial_of(config)))
    hit(run, signal.SIGTERM, "all")
    # Whether the driver has seen the end, or asked the trial first, the run is what it is.
    assert run.wait(120) in (0, 143), run.output()
    assert "run is finished: " in train(config)


@pytest.mark.slow
def test_coreutils_timeout_lets_it_save(tmp_path: Path) -> None:
    config = endless(tmp_path)
    timeout = ["timeout", "--preserve-status", "--kill-after=120"]
    for options in (["60"], ["--foreground", "60"]):
        ended = subprocess.run(
            [*timeout, *options, sys.executable, "-m", "raytrain", "train", str(config)],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert ended.returncode == 143, ended.stderr
        assert_saved(config)


# -- a terminal ----------------------------------------------------------------------------------


def at_a_terminal(config: Path) -> tuple[int, int]:
    """Train as the leader of a session with a terminal of its own; pid and the
    terminal's other end."""
    pid, terminal = pty.fork()
    if pid == 0:
        program = [sys.executable, "-m", "raytrain", "train", str(config)]
        os.execve(sys.executable, program, {**os.environ, "TERM": "xterm", "COLUMNS": "120"})
    return pid, terminal


def read(terminal: int, condition: Callable[[], object]) -> bytes:
    said = b""
    while not condition():
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                said += os.read(terminal, 65536)
            except OSError:  # The other end is closed.
                return said
    return said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "code"), [(b"\x03", 130), (b"\x1c", 131), (None, 129)], ids=["^C", "^\\", "closed"]
)
def test_keys_at_a_terminal_and_its_end(key: bytes | None, code: int, tmp_path: Path) -> None:
    config = endless(tmp_path)
    pid, terminal = at_a_terminal(config)
    read(terminal, lambda: iteration_of(trial_of(config)) >= 3)
    family = psutil.Process(pid).children(recursive=True)
    if key is None:
        os.close(terminal)
    else:
        os.write(terminal, key)
        read(terminal, lambda: False)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    assert not alive(family)
    if code != 131:
        assert_saved(config)


# -- what cannot be spared -----------------------------------------------------------------------

_SIMULATED = '''
import subprocess, sys
import gymnasium as gym

class Simulated(gym.Wrapper):
    """CartPole with a process of its own beside it, as a simulator is."""
    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))
        self.simulator = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    def step(self, action):
        if self.simulator.poll() is not None:
            raise RuntimeError(f"the simulator has ended: {self.simulator.returncode}")
        return super().step(action)
    def close(self):
        self.simulator.terminate()
        self.simulator.wait()

def make():
    return Simulated()
'''


@pytest.mark.slow
def test_an_environment_that_dies_of_the_signal_is_told_of_honestly(tmp_path: Path) -> None:
    """Its iteration is lost, and must not be saved as if it were whole; the run continues
    as it was."""
    (tmp_path / "simulated.py").write_text(_SIMULATED)
    config = endless(
        tmp_path,
        environment={"env": "simulated:make"},
        env_runners={"num_env_runners": 0, "num_envs_per_env_runner": 1},
        checkpoint={"checkpoint_frequency": 3},
    )
    trial = trial_of(config)
    run = Run("train", str(config), log=tmp_path / "log.txt")
    run.until(lambda: len(committed(trial_of(config))) >= 1)
    family = run.processes()
    hit(run, signal.SIGTERM, "all")
    assert run.wait(120) == 143, run.output()
    assert not alive(family)
    trial = trial_of(config)
    good = [json.loads(path.read_text()) for path in trial.glob("checkpoint_*/manifest.json")]
    newest = max(good, key=lambda each: each["iteration"])
    if newest["kind"] == "periodic":  # It died before the iteration had ended.
        assert "not everything was saved" in run.output()
        assert "the simulator has ended" in run.output()
    last = iteration_of(trial)
    before = {row["training_iteration"]: row["weights_sha256"] for row in rows(trial)}
    train(config, "--set", f"stop.iterations={last + 2}")
    after = {row["training_iteration"]: row["weights_sha256"] for row in rows(trial)}
    assert before.items() <= after.items()
    shutil.rmtree(trial)
