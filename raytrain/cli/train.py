"""Commands that train: train, submit, resume, fork."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer
from typer import Option

from raytrain.cli.app import (
    Address,
    Checkpoint,
    Config,
    Directory,
    Name,
    Set,
    StoragePath,
    command,
    say,
)
from raytrain.errors import BadInput

FromStage = Annotated[
    str | None,
    Option(
        "--from-stage", metavar="NAME", help="Go back to the end of this stage of the curriculum."
    ),
]
WeightsOnly = Annotated[
    bool, Option("--weights-only", help="Take only weights and filters; count from 0.")
]


@command
def train(
    config: Config,
    *,
    set_: Set = None,
    name: Name = None,
    storage_path: StoragePath = None,
    fresh: Annotated[
        bool, Option("--fresh", help="Move the run's old directory aside and begin again.")
    ] = False,
    from_: Annotated[
        str | None,
        Option("--from", metavar="CHECKPOINT", help="Begin a new run (--name) at this checkpoint."),
    ] = None,
    weights_only: Annotated[
        bool,
        Option("--weights-only", help="With --from: take only weights and filters; count from 0."),
    ] = False,
    from_stage: FromStage = None,
    address: Address = None,
) -> None:
    """Start the run, continue it, or report that it is finished.

    \b
      raytrain train configs/cartpole.yaml
      raytrain train configs/cartpole.yaml --set stop.timesteps=3e5
      raytrain train configs/cartpole.yaml --name wide \\
          --set training.lr=1e-4 --set 'rl_module.model_config.fcnet_hiddens=[256, 256]'
      raytrain train configs/cartpole.yaml --from results/cartpole:best --name slower \\
          --set training.lr=5e-5 --set stop.timesteps=4e5

    A value is YAML. The keys are those of the file, with dots: see docs/guide/config.md. A run that
    continues may change only `stop`, `checkpoint`, `failure`, `resources` and some other keys. A
    fork (--from) may change everything except the spaces and the network; its counters continue.
    """
    from raytrain.cluster.package import submitted
    from raytrain.config import load_config
    from raytrain.driver.command_text import command_for
    from raytrain.driver.experiment import train as run
    from raytrain.driver.fork import Fork

    if weights_only and from_ is None:
        raise BadInput(
            "--weights-only needs the checkpoint to take weights from: give it with --from."
        )
    if from_ is not None and from_stage is not None:
        raise BadInput(
            f"--from and --from-stage cannot be used together: to fork after a stage, use --from "
            f"{from_}/stages/{from_stage} (the stage's directory in that of the trial)."
        )
    fork = None if from_ is None else Fork(from_, weights_only)
    loaded = load_config(config, overrides=set_ or (), name=name, storage_path=storage_path)
    again = _options(
        set_,
        ("--name", name),
        ("--storage-path", storage_path),
        ("--address", address),
        ("--from", from_),
    )
    again += ["--weights-only"] * weights_only
    command = submitted(config) or command_for("train", config, again)
    _end(
        run(
            loaded,
            fresh=fresh,
            fork=fork,
            from_stage=from_stage,
            address=address,
            command=command,
        )
    )


@command
def submit(
    config: Config,
    *,
    address: Annotated[
        str,
        Option(
            "--address",
            metavar="ADDRESS",
            envvar="RAY_API_SERVER_ADDRESS",
            help="The cluster's dashboard, such as http://HOST:8265.",
        ),
    ],
    wait: Annotated[
        bool, Option("--wait", help="Follow the log, and exit with the run's exit code.")
    ] = False,
    set_: Set = None,
    name: Name = None,
    storage_path: StoragePath = None,
) -> None:
    """Run the experiment on a cluster, as a Ray job.

    \b
      raytrain submit cartpole.yaml --address http://head:8265 --storage-path s3://bucket/runs
      raytrain submit cartpole.yaml --address http://head:8265 --storage-path s3://bucket/runs \\
          --wait

    The same command again is the same run: it follows the running job, reports that the run has
    finished, or continues the run in a new job. Exit codes with --wait are those of `raytrain
    train`; Ctrl-C does not stop the job. See docs/clusters/jobs.md.
    """
    from raytrain.commands.submit import submit_and_follow
    from raytrain.config import load_config

    # The environment may be missing on the machine that submits.
    loaded = load_config(
        config, overrides=set_ or (), name=name, storage_path=storage_path, check_env=False
    )
    write = partial(print, end="", flush=True)
    raise typer.Exit(submit_and_follow(loaded, address, wait=wait, say=say, write=write))


@command
def resume(
    experiment_dir: Directory,
    *,
    set_: Set = None,
    from_stage: FromStage = None,
    address: Address = None,
) -> None:
    """Continue an experiment, from its directory alone.

    \b
      raytrain resume results/cartpole
      raytrain resume results/cartpole --set stop.timesteps=3e5

    It continues with the config of its last start. What --set may change is what `raytrain train`
    may change in a run that continues: `stop`, `checkpoint`, `failure`, `resources` and some other
    keys.
    """
    from raytrain.driver.command_text import command_for
    from raytrain.driver.experiment import resume as run

    again = _options(set_, ("--address", address))
    _end(
        run(
            experiment_dir,
            overrides=set_ or (),
            from_stage=from_stage,
            address=address,
            command=command_for("resume", experiment_dir, again),
        )
    )


@command
def fork(
    checkpoint: Checkpoint,
    *,
    name: Annotated[str, Option("--name", metavar="NEW", help="The name of the new run.")],
    set_: Set = None,
    weights_only: WeightsOnly = False,
    address: Address = None,
) -> None:
    """Begin a new run at a checkpoint, without the YAML file.

    \b
      raytrain fork results/cartpole:best --name slower --set training.lr=5e-5 \\
          --set stop.timesteps=4e5

    It has the config of the checkpoint's run, with the changes that --set makes, and is written
    beside it. The same as `raytrain train CONFIG --from CHECKPOINT --name NEW` otherwise.
    """
    from raytrain.driver.command_text import command_for
    from raytrain.driver.experiment import fork as run

    again = _options(set_, ("--name", name), ("--address", address))
    again += ["--weights-only"] * weights_only
    _end(
        run(
            checkpoint,
            name=name,
            overrides=set_ or (),
            weights_only=weights_only,
            address=address,
            command=command_for("fork", checkpoint, again),
        )
    )


def _options(overrides: list[str] | None, *given: tuple[str, str | None]) -> list[str]:
    """The options of a command line that have a value."""
    again = [part for override in overrides or () for part in ("--set", override)]
    for option, value in given:
        again += [option, value] if value is not None else []
    return again


def _end(outcome: Any) -> None:
    from raytrain.driver.command_text import next_steps

    if outcome.exit_code == 0:
        say(next_steps(outcome))
    raise typer.Exit(outcome.exit_code)
