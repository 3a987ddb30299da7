"""The command line: one short function a command, no logic of its own.

Exit codes: 0 finished; 1 the run failed, or a checkpoint is damaged; 2 bad input; 130/143 stopped by
SIGINT/SIGTERM after saving. `--json` prints one JSON document on stdout; everything else is on stderr.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from raytrain.errors import RaytrainError

_HELP = """Train RLlib PPO so that the same command always continues the same run, bit for bit.

\b
  raytrain train configs/cartpole.yaml    start, continue, or find finished
  raytrain resume results/cartpole        the same, without the YAML file
  raytrain evaluate results/cartpole:best

A path may be a checkpoint, a trial or an experiment (then its newest good checkpoint is meant), or
DIRECTORY:best or DIRECTORY:final; local, or a URI such as s3://bucket/runs/cartpole.

\b
Exit codes:
  0        finished; all is good
  1        the run failed, a checkpoint is damaged, or an audit found a difference
  2        bad input: the message says what, where, and what to do
  130/143  stopped by SIGINT/SIGTERM after saving; the same command continues

\b
Environment variables:
  RAYTRAIN_SIGNING_KEY   sign checkpoints, and use none that is not signed with this key
                         (RAYTRAIN_SIGNING_KEY_FILE: the same from a file)
  AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...   for s3:// paths, as everywhere

With --json, stdout holds one JSON document. Everything else is said on stderr."""

app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_Command = TypeVar("_Command", bound=Callable[..., None])
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Directory = Annotated[
    str, typer.Argument(metavar="EXPERIMENT_DIR", help="The experiment's directory.")
]
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT", help="A checkpoint, an experiment, or EXPERIMENT_DIR:best."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="A running Ray cluster, such as auto or ray://host:10001."
    ),
]


def main() -> None:
    """Entry point of the console script."""
    app()


def _command(function: _Command) -> _Command:
    """Print the message of a `RaytrainError` and exit with its code; no traceback."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        _keep_warnings_quiet()
        try:
            function(*args, **kwargs)
        except RaytrainError as error:
            _say(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader of a pipe has gone (`| head`): nothing is left to say to it.
            sys.stderr.close()
            raise typer.Exit(1) from None

    app.command()(guarded)
    return function


def _keep_warnings_quiet() -> None:
    """Libraries warn of what is not the user's doing. `python -W` and PYTHONWARNINGS still count."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _keep_ray_quiet() -> None:
    """Keep Ray's loggers off stderr. Importing Ray sets their levels, so that has to come first."""
    from raytrain import _ray

    _ray.quiet_driver()
    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _show_version(wanted: bool) -> None:
    if wanted:
        from raytrain.versions import versions

        found = versions()
        others = ", ".join(f"{name} {found[name]}" for name in ("ray", "torch", "python"))
        sys.stdout.write(f"raytrain {found['raytrain']} ({others})\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """The options of the program itself; its help is the app's."""


def _say(text: str) -> None:
    Console(stderr=True).print(text, soft_wrap=True, markup=False, highlight=False)


def _print_json(document: Any) -> None:
    from raytrain.reporting.plain import json_ready

    sys.stdout.write(json.dumps(json_ready(document), indent=1, allow_nan=False) + "\n")


@_command
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The YAML file of the run.")],
    *,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Another value for a key; may be given often."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another name, so another run.")
    ] = None,
    storage_path: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where results go: a path or a URI.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set the run's old directory aside and begin again.")
    ] = False,
    address: Address = None,
) -> None:
    """Start the run, continue it, or say that it is finished.

    \b
      raytrain train configs/cartpole.yaml
      raytrain train configs/cartpole.yaml --set stop.timesteps=3e5
      raytrain train configs/cartpole.yaml --name wide \\
          --set training.lr=1e-4 --set 'rl_module.model_config.fcnet_hiddens=[256, 256]'

    A value is YAML. The keys are those of the file, with dots: see docs/config.md. A run that
    continues must be the same run, but for `stop`, `checkpoint`, `failure` and `resources`.
    """
    from raytrain.config import load_config
    from raytrain.experiment import command_for
    from raytrain.experiment import train as run

    loaded = load_config(config, overrides=set_ or (), name=name, storage_path=storage_path)
    again = [part for each in set_ or () for part in ("--set", each)]
    for option, value in (
        ("--name", name),
        ("--storage-path", storage_path),
        ("--address", address),
    ):
        again += [option, value] if value is not None else []
    _end(run(loaded, fresh=fresh, address=address, command=command_for("train", config, again)))


@_command
def resume(experiment_dir: Directory, address: Address = None) -> None:
    """Continue an experiment, from its directory alone.

    Its config is the one that it was last started with; to change a value, use `raytrain train`.
    """
    from raytrain.experiment import command_for
    from raytrain.experiment import resume as run

    again = ["--address", address] if address else []
    _end(run(experiment_dir, address=address, command=command_for("resume", experiment_dir, again)))


def _end(outcome: Any) -> None:
    from raytrain.experiment import next_steps

    if outcome.exit_code == 0:
        _say(next_steps(outcome))
    raise typer.Exit(outcome.exit_code)


@_command
def checkpoints(experiment_dir: Directory, as_json: Json = False) -> None:
    """List the checkpoints: kind, counters, score, good or not.

    Every byte is checked; a checkpoint that is damaged says which file is wrong.
    """
    from raytrain.checkpoint.locate import entries_below
    from raytrain.reporting.plain import checkpoint_rows

    rows = checkpoint_rows(entries_below(experiment_dir), experiment_dir)
    if as_json:
        _print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("path", "kind", "iteration", "timesteps", "score", "weights", "good"):
        table.add_column(title)
    for row in rows:
        score = "" if row["score"] is None else f"{row['score']:g}"
        weights = (row["weights_sha256"] or "")[:12]
        good = "good" if row["good"] else f"NO: {row['problem']}"
        cells = (row["path"], row["kind"], row["iteration"], row["timesteps"], score, weights, good)
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    # A path must stay one word in a pipe, however narrow that is.
    Console(width=None if sys.stdout.isatty() else 240).print(table)


@_command
def inspect(
    checkpoint: Checkpoint,
    as_json: Json = False,
) -> None:
    """Show what a checkpoint's manifest says of it.

    Counters, score, weights digest, parent, versions; with --json all of it, as it lies on storage.
    """
    from raytrain.checkpoint import resolve
    from raytrain.reporting.plain import manifest_document, manifest_text

    entry = resolve(checkpoint)
    if as_json:
        _print_json(manifest_document(entry))
    else:
        sys.stdout.write(manifest_text(entry))


@_command
def verify(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A checkpoint, or an experiment's directory.")
    ],
    as_json: Json = False,
) -> None:
    """Check every byte of a checkpoint, or of all of them.

    Exit code 0 if all is good, 1 if anything is damaged; the files are named.
    """
    from raytrain.checkpoint.locate import entries_at
    from raytrain.reporting.plain import checkpoint_rows

    rows = checkpoint_rows(entries_at(path), path)
    bad = [row for row in rows if not row["good"]]
    if as_json:
        _print_json({"good": not bad, "checkpoints": rows})
    else:
        for row in rows:
            verdict = "good" if row["good"] else f"DAMAGED: {row['problem']}"
            sys.stdout.write(f"{row['path']}: {verdict}\n")
    raise typer.Exit(1 if bad else 0)


@_command
def evaluate(
    checkpoint: Checkpoint,
    episodes: Annotated[int, typer.Option(metavar="N", min=1, help="Episodes to play.")] = 10,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Episode i is played with seed + i.")
    ] = 0,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Sample actions instead of taking the mode.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Play seeded episodes with a checkpoint's policy.

    Mean, standard deviation, least and greatest return and length; the same seed gives the same
    numbers. Ray is not started.
    """
    from raytrain.evaluation import evaluate_path

    _keep_ray_quiet()
    result = evaluate_path(checkpoint, episodes=episodes, seed=seed, deterministic=not stochastic)
    if as_json:
        _print_json(result.to_dict())
        return
    for title, prefix in (("return", "episode_return"), ("length", "episode_len")):
        values = [f"{part} {getattr(result, f'{prefix}_{part}'):.6g}" for part in _STATISTICS]
        sys.stdout.write(f"{title}: {', '.join(values)} ({episodes} episodes)\n")


_STATISTICS = ("mean", "std", "min", "max")


@_command
def probe(
    env: Annotated[
        str, typer.Argument(metavar="ENV", help="A Gymnasium id, or package.module:factory.")
    ],
    env_config: Annotated[
        str | None,
        typer.Option(metavar="MAPPING", help="Its arguments in YAML, such as '{size: 5}'."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how an environment can be saved and restored.

    Each way is tried on scratch copies, and has to continue bit for bit.
    """
    from raytrain.probe import probe as run
    from raytrain.probe import report

    proof = run(env, env_config)
    if as_json:
        _print_json(proof.to_dict())
    else:
        sys.stdout.write(report(env, proof))


@_command
def audit(
    experiment_dir: Directory,
    from_: Annotated[
        int | None,
        typer.Option("--from", metavar="N", help="Iteration of the checkpoint to begin at."),
    ] = None,
    to: Annotated[
        int | None, typer.Option(metavar="N", help="Iteration of the checkpoint to reach.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train again between two checkpoints, and compare.

    The training happens in a scratch directory; weights digests and metrics are compared. Exit code
    0 if they are equal, 1 if not, with the first iteration that differs.
    """
    from raytrain.audit import audit as run

    _keep_ray_quiet()
    result = run(experiment_dir, start=from_, end=to)
    if as_json:
        _print_json(result.to_dict())
    else:
        sys.stdout.write(result.text())
    raise typer.Exit(0 if result.equal else 1)
