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

from raytrain.errors import BadInput, RaytrainError

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
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The YAML file of the run.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another value for a key; may be given often."),
]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="Another name, so another run.")]
StoragePath = Annotated[
    str | None, typer.Option(metavar="PATH", help="Where results go: a path or a URI.")
]
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

    # `list` would hide the builtin, so its function has another name.
    app.command(name=function.__name__.rstrip("_"))(guarded)
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


def _bar(what: str) -> Callable[[Any], Any]:
    """Count on a bar how many of some items are done."""
    from raytrain.reporting.progress import track

    return functools.partial(track, what=what)


def _busy(what: str) -> Any:
    from raytrain.reporting.progress import busy

    return busy(what)


@_command
def train(
    config: Config,
    *,
    set_: Set = None,
    name: Name = None,
    storage_path: StoragePath = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set the run's old directory aside and begin again.")
    ] = False,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="CHECKPOINT", help="Begin a new run (--name) where this one was."
        ),
    ] = None,
    weights_only: Annotated[
        bool,
        typer.Option("--weights-only", help="With --from: take weights and filters, count from 0."),
    ] = False,
    from_stage: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Go back to the end of this stage of the curriculum."),
    ] = None,
    address: Address = None,
) -> None:
    """Start the run, continue it, or say that it is finished.

    \b
      raytrain train configs/cartpole.yaml
      raytrain train configs/cartpole.yaml --set stop.timesteps=3e5
      raytrain train configs/cartpole.yaml --name wide \\
          --set training.lr=1e-4 --set 'rl_module.model_config.fcnet_hiddens=[256, 256]'
      raytrain train configs/cartpole.yaml --from results/cartpole:best --name slower \\
          --set training.lr=5e-5 --set stop.timesteps=4e5

    A value is YAML. The keys are those of the file, with dots: see docs/config.md. A run that
    continues must be the same run, but for `stop`, `checkpoint`, `failure` and `resources`. A fork
    (--from) may change anything but the spaces and the network; its counters run on.
    """
    from raytrain.cluster.packing import submitted
    from raytrain.config import load_config
    from raytrain.experiment import command_for
    from raytrain.experiment import train as run
    from raytrain.forking import Fork

    if weights_only and from_ is None:
        raise BadInput("--weights-only says what to take from a checkpoint; name it with --from.")
    if from_ is not None and from_stage is not None:
        raise BadInput(
            f"--from and --from-stage cannot go together: to fork after a stage, use --from "
            f"{from_}/stages/{from_stage} (the stage's directory in the trial's)."
        )
    fork = None if from_ is None else Fork(from_, weights_only)
    loaded = load_config(config, overrides=set_ or (), name=name, storage_path=storage_path)
    again = [part for each in set_ or () for part in ("--set", each)]
    for option, value in (
        ("--name", name),
        ("--storage-path", storage_path),
        ("--address", address),
        ("--from", from_),
    ):
        again += [option, value] if value is not None else []
    again += ["--weights-only"] * weights_only
    command = submitted(config) or command_for("train", config, again)
    outcome = run(
        loaded,
        fresh=fresh,
        fork=fork,
        from_stage=from_stage,
        address=address,
        command=command,
    )
    _end(outcome)


@_command
def submit(
    config: Config,
    *,
    address: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            envvar="RAY_API_SERVER_ADDRESS",
            help="The cluster's dashboard, such as http://HOST:8265.",
        ),
    ],
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the log, and end with the run's exit code.")
    ] = False,
    set_: Set = None,
    name: Name = None,
    storage_path: StoragePath = None,
) -> None:
    """Run it on a cluster, as a Ray job.

    \b
      raytrain submit cartpole.yaml --address http://head:8265 --storage-path s3://bucket/runs
      raytrain submit cartpole.yaml --address http://head:8265 --storage-path s3://bucket/runs --wait

    The same command again is the same run: it follows the job that runs, says that the run has
    finished, or starts it again where it stopped. Exit codes with --wait are those of `raytrain
    train`; Ctrl-C stops only the following. See docs/jobs.md.
    """
    from raytrain.cluster.submitting import submit_and_follow
    from raytrain.config import load_config

    # The environment need not be installed on the machine that submits.
    loaded = load_config(
        config, overrides=set_ or (), name=name, storage_path=storage_path, check_env=False
    )
    raise typer.Exit(submit_and_follow(loaded, address, wait=wait, say=_say, write=_write_log))


def _write_log(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


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

    rows = checkpoint_rows(entries_below(experiment_dir, _bar("Checking")), experiment_dir)
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

    with _busy("Checking"):
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

    rows = checkpoint_rows(entries_at(path, _bar("Checking")), path)
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
    *,
    episodes: Annotated[int, typer.Option(metavar="N", min=1, help="Episodes to play.")] = 10,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Episode i is played with seed + i.")
    ] = 0,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Sample actions instead of taking the mode.")
    ] = False,
    video: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Record each episode there (needs the extra video)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Play seeded episodes with a checkpoint's policy.

    Mean, standard deviation, least and greatest return and length; the same seed gives the same
    numbers, with a video and without. Ray is not started.
    """
    from raytrain.evaluation import evaluate_path

    _keep_ray_quiet()
    result = evaluate_path(
        checkpoint,
        episodes=episodes,
        seed=seed,
        deterministic=not stochastic,
        video=video,
        track=_bar("Playing"),
    )
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

    with _busy("Trying"):
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
    with _busy("Training again"):
        result = run(experiment_dir, start=from_, end=to)
    if as_json:
        _print_json(result.to_dict())
    else:
        sys.stdout.write(result.text())
    raise typer.Exit(0 if result.equal else 1)


@_command
def export(
    checkpoint: Checkpoint,
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="A new or empty directory, or a URI.")
    ],
    *,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also policy.onnx (needs the extra export).")
    ] = False,
    torchscript: Annotated[bool, typer.Option("--torchscript", help="Also policy.pt.")] = False,
    as_json: Json = False,
) -> None:
    """Write a policy that loads without Ray.

    \b
      raytrain export results/cartpole:best cartpole-policy --onnx
      python -c "import raytrain; raytrain.load_policy('cartpole-policy')"

    Weights as safetensors; network, spaces, filters and action mapping as JSON; a model card in
    README.md. What is written is compared with RLlib's module before: the same bits in Torch and
    TorchScript, 1e-5 in ONNX.
    """
    from raytrain.checkpoint.export import export_policy

    _keep_ray_quiet()
    with _busy("Exporting"):
        written = export_policy(checkpoint, directory, onnx=onnx, torchscript=torchscript)
    if as_json:
        _print_json(written.to_dict())
        return
    sys.stdout.write(f"{written.path}: {', '.join(written.files)}\n")
    if written.needs_ray is not None:
        _say(f"Loading it imports RLlib (without starting Ray): {written.needs_ray}.")


@_command
def show(experiment_dir: Directory, as_json: Json = False) -> None:
    """Show trials, progress, failures and checkpoints.

    How far each trial is, its best score, the failures it survived and the time lost to them, its
    checkpoints with size and stage, and the commands that go on from them. May be given while the
    run goes on. Checkpoints are checked by names and sizes; `raytrain verify` reads every byte.
    """
    from raytrain.looking import view

    with _busy("Looking"):
        found = view(experiment_dir)
    if as_json:
        _print_json(found.to_dict())
        return
    from raytrain.tables import show_text

    sys.stdout.write(show_text(found))


@_command
def list_(
    storage: Annotated[
        str, typer.Argument(metavar="STORAGE", help="The storage_path of the runs.")
    ],
    as_json: Json = False,
) -> None:
    """List the experiments in a place, newest first.

    The newest is the one that changed last.
    """
    from raytrain.looking import views

    found, problems = views(storage, _bar("Looking"))
    for problem in problems:
        _say(f"passed over: {problem}")
    if as_json:
        _print_json([each.summary() for each in found])
        return
    from raytrain.tables import list_text

    sys.stdout.write(list_text(found) if found else f"There is no experiment in {storage}.\n")


@_command
def plot(
    experiment_dir: Directory,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A .png or .svg file; else curves.png in the directory."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Another metric than the score, such as episode_len_mean."
        ),
    ] = None,
) -> None:
    """Draw the learning curves of all trials.

    Over environment steps, with failures and the ends of stages marked. Needs the extra plot.
    """
    from raytrain.plotting import plot as run

    with _busy("Drawing"):
        written = run(experiment_dir, out=out, metric=metric)
    sys.stdout.write(f"{written}\n")


@_command
def prune(
    experiment_dir: Directory,
    *,
    keep: Annotated[
        int, typer.Option(metavar="N", min=1, help="Newest good periodic checkpoints to keep.")
    ] = 1,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Also what was set aside as damaged.")
    ] = False,
    errors: Annotated[
        bool, typer.Option("--errors", help="Also the states kept after a divergence.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only say what.")] = False,
    as_json: Json = False,
) -> None:
    """Delete checkpoints that nobody needs any more.

    Says what it would delete and how much that frees; with --yes it does so. The newest good
    checkpoint, best, final and stages always stay. Refused while a run is writing there.
    """
    from raytrain.pruning import Rule, plan
    from raytrain.pruning import prune as run

    rule = Rule(keep, quarantine, errors)
    if yes:
        made = run(experiment_dir, rule, _bar("Deleting"))
    else:
        with _busy("Looking"):
            made = plan(experiment_dir, rule)
    if as_json:
        _print_json({"deleted": yes, **made.to_dict()})
        return
    from raytrain.tables import prune_text

    sys.stdout.write(prune_text(made, done=yes))
