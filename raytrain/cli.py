"""The command line: one short function a command, no logic of its own.

Exit codes: 0 finished; 1 the run failed, or a checkpoint is damaged; 2 bad input; 130/143 stopped by
SIGINT/SIGTERM after saving. `--json` prints one JSON document on stdout; everything else is on stderr.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from raytrain.errors import RaytrainError

app = typer.Typer(
    help="Train RLlib PPO so that the same command always continues the same run, bit for bit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_Command = TypeVar("_Command", bound=Callable[..., None])
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Directory = Annotated[str, typer.Argument(help="The experiment's directory.")]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster, such as auto or ray://host:10001.")
]


def main() -> None:
    """Entry point of the console script."""
    app()


def _command(function: _Command) -> _Command:
    """Print the message of a `RaytrainError` and exit with its code; no traceback."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
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


def _say(text: str) -> None:
    Console(stderr=True).print(text, soft_wrap=True, markup=False, highlight=False)


def _print_json(document: Any) -> None:
    from raytrain.reporting.plain import json_ready

    sys.stdout.write(json.dumps(json_ready(document), indent=1, allow_nan=False) + "\n")


@_command
def train(
    config: Annotated[Path, typer.Argument(help="The YAML file of the run.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, such as training.lr=1e-4.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Another name, so another run.")] = None,
    storage_path: Annotated[
        str | None, typer.Option(help="Where results go: a path or a URI.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set the run's old directory aside and begin again.")
    ] = False,
    address: Address = None,
) -> None:
    """Start the run, continue it, or say that it is finished."""
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
    """Continue an experiment from its directory, without the YAML file."""
    from raytrain.experiment import command_for
    from raytrain.experiment import resume as run

    again = ["--address", address] if address else []
    _end(run(experiment_dir, address=address, command=command_for("resume", experiment_dir, again)))


def _end(outcome: Any) -> None:
    from raytrain.experiment import next_steps

    _say(outcome.message)
    if outcome.exit_code == 0:
        _say(next_steps(outcome))
    raise typer.Exit(outcome.exit_code)


@_command
def checkpoints(experiment_dir: Directory, as_json: Json = False) -> None:
    """List every checkpoint: kind, iteration, timesteps, score, good or why not."""
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
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint, an experiment, or EXPERIMENT_DIR:best.")
    ],
    as_json: Json = False,
) -> None:
    """Show what is in a checkpoint: its manifest, the weights digest, its parent."""
    from raytrain.checkpoint import resolve
    from raytrain.reporting.plain import manifest_document, manifest_text

    entry = resolve(checkpoint)
    if as_json:
        _print_json(manifest_document(entry))
    else:
        sys.stdout.write(manifest_text(entry))


@_command
def verify(
    path: Annotated[str, typer.Argument(help="A checkpoint or an experiment's directory.")],
    as_json: Json = False,
) -> None:
    """Check every byte. Exit 0 if all is good, 1 if anything is damaged, naming the files."""
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
    checkpoint: Annotated[
        str, typer.Argument(help="A checkpoint, an experiment, or EXPERIMENT_DIR:best.")
    ],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed; episode i is played with seed + i.")] = 0,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Sample actions instead of taking the mode.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Play seeded episodes with a checkpoint's policy: mean, std, min, max of return and length."""
    from raytrain.evaluation import evaluate_path

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
    env: Annotated[str, typer.Argument(help="A Gymnasium id, or package.module:factory.")],
    env_config: Annotated[
        str | None, typer.Option(help="The environment's arguments, as YAML or JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Which snapshot strategy works for an environment, and how it was proved."""
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
        int | None, typer.Option("--from", help="Iteration of the checkpoint to begin at.")
    ] = None,
    to: Annotated[int | None, typer.Option(help="Iteration of the checkpoint to reach.")] = None,
    as_json: Json = False,
) -> None:
    """Train again between two checkpoints in a scratch directory and compare the digests."""
    from raytrain.audit import audit as run

    result = run(experiment_dir, start=from_, end=to)
    if as_json:
        _print_json(result.to_dict())
    else:
        sys.stdout.write(result.text())
    raise typer.Exit(0 if result.equal else 1)
