"""The program `raytrain` without its commands: what the commands share.

Exit codes: 0 finished; 1 the run failed, or a checkpoint is damaged; 2 bad input; 130/143 stopped
by SIGINT/SIGTERM after saving. `--json` prints one JSON document on stdout, all else is on stderr.
"""

from __future__ import annotations

import errno
import faulthandler
import functools
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from typer import Argument, Option

from raytrain.cli.json_output import close_stdout, stdout_for_the_document, write_document
from raytrain.commands.progress_bar import track
from raytrain.driver.signals import Interrupts
from raytrain.errors import RaytrainError
from raytrain.storage.escapes import printable

_THREADS_END_WITHIN_S = 10.0
_HELP = """Train RLlib PPO so that the same command always continues the same run, bit for bit.

\b
  raytrain train configs/cartpole.yaml    start, continue, or find finished
  raytrain resume results/cartpole        the same, without the YAML file
  raytrain evaluate results/cartpole:best

A path may be a checkpoint, a trial or an experiment (it means the newest good checkpoint), or
DIRECTORY:best or DIRECTORY:final; local, or a URI such as s3://bucket/runs/cartpole.

\b
Exit codes:
  0        finished; all is good
  1        the run failed, a checkpoint is damaged, or an audit found a difference
  2        bad input: the message says what, where, and what to do
  130/143  stopped by SIGINT/SIGTERM after saving; the same command continues
           (also SIGHUP, SIGUSR1, SIGUSR2: 129, 138, 140; SIGQUIT ends without saving: 131)

\b
Environment variables:
  RAYTRAIN_SIGNING_KEY   sign checkpoints, and refuse those that are not signed with this key
                         (RAYTRAIN_SIGNING_KEY_FILE: the same from a file)
  AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...   for s3:// paths, as everywhere

With --json, stdout holds one JSON document. Everything else is on stderr."""

app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_Command = TypeVar("_Command", bound=Callable[..., None])
Json = Annotated[bool, Option("--json", help="Print one JSON document on stdout.")]
Config = Annotated[Path, Argument(metavar="CONFIG", help="The YAML file of the run.")]
Set = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Override a key; can be given several times."),
]
Name = Annotated[str | None, Option("--name", metavar="NAME", help="Another name: another run.")]
StoragePath = Annotated[
    str | None,
    Option("--storage-path", metavar="PATH", help="Where results go: a path or a URI."),
]
Directory = Annotated[str, Argument(metavar="EXPERIMENT_DIR", help="The experiment's directory.")]
Checkpoint = Annotated[
    str,
    Argument(metavar="CHECKPOINT", help="A checkpoint, an experiment, or EXPERIMENT_DIR:best."),
]
Address = Annotated[
    str | None,
    Option(
        "--address",
        metavar="ADDRESS",
        help="A running Ray cluster, such as auto or ray://host:10001.",
    ),
]


def main() -> None:
    """Entry point of the console script. A signal ends any command without a traceback, with exit
    code 128 + its number; commands that train handle the signals themselves, and save."""
    # None: the stream was closed for this program (`>&-`), so nobody wants to read it.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the program ends
        # A file name may have characters that the terminal's encoding lacks.
        stream = getattr(sys, name)
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)  # An environment may crash the process.
    interrupts = Interrupts(insist_after_s=10)
    try:
        interrupts.install()
        app()
    except BaseException as error:
        if interrupts.received is not None:
            say(f"Stopped by {interrupts.received.name}.")
            sys.exit(interrupts.exit_code)
        if isinstance(error, SystemExit):
            _end_in_any_case(error.code)
            raise
        # An error of another file has the name of that file.
        if not (
            isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None
        ):
            raise
        say(f"error: the output could not be written: {error.strerror}.")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes the rest at its end.
        sys.exit(1)
    finally:
        interrupts.ignore()
        close_stdout()


def _end_in_any_case(code: object) -> None:
    """End the program even if the environment's code started threads that are no daemons."""
    names = [thread.name for thread in threading.enumerate() if not thread.daemon]
    names.remove(threading.main_thread().name)
    if not names:
        return

    def leave() -> None:
        time.sleep(_THREADS_END_WITHIN_S)  # Those of executors end.
        say(f"Threads that the environment's code started have not ended: {', '.join(names)}.")
        os._exit(code if isinstance(code, int) else int(bool(code)))

    threading.Thread(target=leave, daemon=True).start()


def command(function: _Command, group: typer.Typer = app) -> _Command:
    """Make a function a command. The message of a `RaytrainError` is printed, without a traceback,
    and the program exits with its code."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        # Hide warnings that libraries cause, except where `-W` or PYTHONWARNINGS is given.
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        try:
            with stdout_for_the_document() if kwargs.get("as_json") else nullcontext():
                function(*args, **kwargs)
            sys.stdout.flush()  # While an error can still be reported.
        except RaytrainError as error:
            say(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of a pipe has ended (`| head`).
            sys.stderr.close()
            raise typer.Exit(1) from None

    # `list` would hide the builtin, so its function has another name.
    group.command(name=function.__name__.rstrip("_"))(guarded)
    return function


def keep_ray_quiet() -> None:
    """Keep Ray's loggers off stderr. Importing Ray sets their levels, so the import comes first."""
    from raytrain import _ray

    # The level of Ray's C++ part. It warns (Ray 2.60) about each env runner that a driver starts:
    # "has constructor arguments in the object store and max_restarts > 0".
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    _ray.tune.silence_ray()


def _show_version(wanted: bool) -> None:
    if wanted:
        from raytrain.versions import versions

        installed = versions()
        others = ", ".join(f"{name} {installed[name]}" for name in ("ray", "torch", "python"))
        write(f"raytrain {installed['raytrain']} ({others})\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """The options of the program itself."""
    if sys.flags.optimize > 1:
        say(
            "error: Python runs with -OO (or PYTHONOPTIMIZE=2), and Ray cannot be imported then. "
            "Run it without, or with -O."
        )
        raise typer.Exit(2)


def say(text: str) -> None:
    """Print lines of text on stderr."""
    with suppress(OSError):  # The terminal may be gone, or the reader of a pipe.
        console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        console.print(printable(text, lines=True), soft_wrap=True)


def write(text: str) -> None:
    """Write lines of text on stdout."""
    sys.stdout.write(printable(text, lines=True))


def print_result(as_json: bool, document: Any, text: str) -> None:
    """Print what a command found: with `--json` the document, without it the text."""
    if as_json:
        write_document(document)
    else:
        write(text)


def bar(what: str) -> Callable[[Any], Any]:
    """A bar that counts how many of some items are done."""
    return functools.partial(track, what=what)
