"""Commands that look at whole experiments: show, list, plot, prune."""

from __future__ import annotations

from typing import Annotated

import typer

from raytrain.cli.app import Directory, Json, bar, busy, command, print_json, say, write


@command
def show(experiment_dir: Directory, as_json: Json = False) -> None:
    """Show trials, progress, failures and checkpoints.

    How far each trial is, its best score, the failures it survived and the time lost to them, its
    checkpoints with size and stage, and the commands that go on from them. May be given while the
    run goes on. Checkpoints are checked by names and sizes; `raytrain verify` reads every byte.
    """
    from raytrain.commands.status import view

    with busy("Looking"):
        found = view(experiment_dir)
    if as_json:
        print_json(found.to_dict())
        return
    from raytrain.cli.tables import show_text

    write(show_text(found))


@command
def list_(
    storage: Annotated[
        str, typer.Argument(metavar="STORAGE", help="The storage_path of the runs.")
    ],
    as_json: Json = False,
) -> None:
    """List the experiments in a place, newest first.

    The newest is the one that changed last.
    """
    from raytrain.commands.status import views

    found, problems = views(storage, bar("Looking"))
    for problem in problems:
        say(f"passed over: {problem}")
    if as_json:
        print_json([each.summary() for each in found])
        return
    from raytrain.cli.tables import list_text

    write(list_text(found) if found else f"There is no experiment in {storage}.\n")


@command
def plot(
    experiment_dir: Directory,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="FILE", help="A .png or .svg file; else curves.png in the directory."
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Another metric than the score, such as episode_len_mean.",
        ),
    ] = None,
) -> None:
    """Draw the learning curves of all trials.

    Over environment steps, with failures and the ends of stages marked. Needs the extra plot.
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
        typer.Option(
            "--keep", metavar="N", min=1, help="Newest good periodic checkpoints to keep."
        ),
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
    from raytrain.commands.prune import Rule, plan
    from raytrain.commands.prune import prune as run

    rule = Rule(keep, quarantine, errors)
    if yes:
        made = run(experiment_dir, rule, bar("Deleting"), say)
    else:
        with busy("Looking"):
            made = plan(experiment_dir, rule)
    if as_json:
        print_json({"deleted": yes, **made.to_dict()})
        return
    from raytrain.cli.tables import prune_text

    write(prune_text(made, done=yes))
