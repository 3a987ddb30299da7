"""Commands that look at whole experiments: show, list, plot, prune."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from raytrain.cli.app import Directory, Json, bar, command, print_result, say, write
from raytrain.commands.progress_bar import busy


@command
def show(experiment_dir: Directory, as_json: Json = False) -> None:
    """Show trials, progress, failures and checkpoints.

    For each trial: progress, best score, survived failures and the time lost to them, checkpoints
    with size and stage, and the commands that continue from them. Works while the run is running.
    Checkpoints are checked by names and sizes; `raytrain verify` reads every byte.
    """
    from raytrain.cli.tables import show_text
    from raytrain.commands.status import view

    with busy("Reading"):
        experiment = view(experiment_dir)
    print_result(as_json, experiment.to_dict(), show_text(experiment))


@command
def list_(
    storage: Annotated[str, Argument(metavar="STORAGE", help="The storage_path of the runs.")],
    as_json: Json = False,
) -> None:
    """List the experiments in a directory, newest first.

    The newest is the one that changed last.
    """
    from raytrain.cli.tables import list_text
    from raytrain.commands.status import views

    experiments, problems = views(storage, bar("Reading"))
    for problem in problems:
        say(f"skipped: {problem}")
    text = list_text(experiments) if experiments else f"There is no experiment in {storage}.\n"
    print_result(as_json, [experiment.summary() for experiment in experiments], text)


@command
def plot(
    experiment_dir: Directory,
    out: Annotated[
        str | None,
        Option(
            "--out",
            metavar="FILE",
            help="A .png or .svg file; by default curves.png in the directory.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        Option(
            "--metric",
            metavar="NAME",
            help="A metric instead of the score, such as episode_len_mean.",
        ),
    ] = None,
) -> None:
    """Draw the learning curves of all trials.

    Over environment steps, with marks for failures and the ends of stages. Needs the extra plot.
    """
    from raytrain.commands.plot import plot as run

    with busy("Drawing"):
        written = run(experiment_dir, out=out, metric=metric)
    write(f"{written}\n")


@command
def prune(
    experiment_dir: Directory,
    *,
    keep: Annotated[
        int,
        Option("--keep", metavar="N", min=1, help="Newest good periodic checkpoints to keep."),
    ] = 1,
    quarantine: Annotated[
        bool, Option("--quarantine", help="Also delete checkpoints in quarantine.")
    ] = False,
    errors: Annotated[
        bool, Option("--errors", help="Also delete states saved after a divergence.")
    ] = False,
    yes: Annotated[bool, Option("--yes", help="Delete; without it, only list.")] = False,
    as_json: Json = False,
) -> None:
    """Delete checkpoints that are not needed any more.

    Lists what it would delete and how much space that frees; with --yes it deletes. The newest good
    checkpoint, best, final and stages are always kept. Refused while a run is writing there.
    """
    from raytrain.cli.tables import prune_text
    from raytrain.commands.prune import Rule, plan
    from raytrain.commands.prune import prune as run

    rule = Rule(keep, quarantine, errors)
    if yes:
        result = run(experiment_dir, rule, bar("Deleting"), say)
    else:
        with busy("Reading"):
            result = plan(experiment_dir, rule)
    print_result(as_json, {"deleted": yes, **result.to_dict()}, prune_text(result, done=yes))
