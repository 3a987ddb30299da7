"""Commands on checkpoints and environments: list, check, evaluate, export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from raytrain.cli.app import (
    Address,
    Checkpoint,
    Directory,
    Json,
    bar,
    command,
    keep_ray_quiet,
    print_result,
    say,
)
from raytrain.commands.progress_bar import busy
from raytrain.errors import BadInput
from raytrain.storage.escapes import printable


@command
def checkpoints(experiment_dir: Directory, as_json: Json = False) -> None:
    """List the checkpoints: kind, counters, score, good or not.

    Every byte is checked; for a damaged checkpoint, the damaged file is named.
    """
    from raytrain.checkpoint.resolve import entries_below
    from raytrain.cli.documents import score_note
    from raytrain.cli.tables import table
    from raytrain.commands.checkpoint_documents import checkpoint_rows

    entries = entries_below(experiment_dir, bar("Checking"))
    rows = checkpoint_rows(entries, experiment_dir)
    titles = ("path", "kind", "iteration", "timesteps", "score", "weights", "good")
    text = table(titles, (_cells(row) for row in rows)) + "\n"
    print_result(as_json, rows, text + score_note(entries))


def _cells(row: Mapping[str, Any]) -> list[str]:
    score = "" if row["score"] is None else f"{row['score']:g}"
    weights = (row["weights_sha256"] or "")[:12]
    good = "good" if row["good"] else f"NO: {row['problem']}"
    cells = (row["path"], row["kind"], row["iteration"], row["timesteps"], score, weights, good)
    return ["" if cell is None else str(cell) for cell in cells]


@command
def inspect(checkpoint: Checkpoint, as_json: Json = False) -> None:
    """Show the manifest of a checkpoint.

    Counters, score, weights digest, parent, versions; with --json all of it, as it is on storage.
    """
    from raytrain.checkpoint import resolve
    from raytrain.cli.documents import manifest_text
    from raytrain.commands.checkpoint_documents import manifest_document

    with busy("Checking"):
        entry = resolve(checkpoint)
    document = manifest_document(entry)
    print_result(as_json, document, manifest_text(entry, document))


@command
def verify(
    path: Annotated[
        str, Argument(metavar="PATH", help="A checkpoint, or an experiment's directory.")
    ],
    as_json: Json = False,
) -> None:
    """Check every byte of a checkpoint, or of all checkpoints.

    Exit code 0 if all are good, 1 if any file is damaged; damaged files are named.
    """
    from raytrain.checkpoint.resolve import entries_at
    from raytrain.commands.checkpoint_documents import checkpoint_rows

    rows = checkpoint_rows(entries_at(path, bar("Checking")), path)
    bad = [row for row in rows if not row["good"]]
    text = ""
    for row in rows:
        verdict = "good" if row["good"] else f"DAMAGED: {row['problem']}"
        text += f"{printable(row['path'])}: {verdict}\n"
    print_result(as_json, {"good": not bad, "checkpoints": rows}, text)
    raise typer.Exit(1 if bad else 0)


@command
def evaluate(
    checkpoint: Checkpoint,
    *,
    episodes: Annotated[
        int, Option("--episodes", metavar="N", min=1, help="Episodes to play.")
    ] = 10,
    seed: Annotated[
        int,
        Option(
            "--seed", metavar="N", min=0, max=2**63 - 1, help="Episode i is played with seed + i."
        ),
    ] = 0,
    stochastic: Annotated[
        bool, Option("--stochastic", help="Sample actions instead of taking the mode.")
    ] = False,
    max_steps: Annotated[
        int | None,
        Option(
            "--max-steps",
            metavar="N",
            min=1,
            help="End an episode after N steps; by default after evaluation.max_episode_steps of "
            "the config, and without that when the environment ends it.",
        ),
    ] = None,
    video: Annotated[
        str | None,
        Option(
            "--video", metavar="DIR", help="Record each episode in DIR (needs the extra video)."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Play seeded episodes with a checkpoint's policy.

    Prints mean, standard deviation, minimum and maximum of return and length. The same seed gives
    the same numbers, with and without a video. Ray is not started.
    """
    from raytrain.commands.evaluate import evaluate_path

    keep_ray_quiet()
    result = evaluate_path(
        checkpoint,
        episodes=episodes,
        seed=seed,
        deterministic=not stochastic,
        video=video,
        max_steps=max_steps,
        track=bar("Playing"),
        tell=lambda message: say(f"warning: {message}"),
    )
    text, parts = "", ("mean", "std", "min", "max")
    for title, prefix in (("return", "episode_return"), ("length", "episode_len")):
        values = [f"{part} {getattr(result, f'{prefix}_{part}'):.6g}" for part in parts]
        text += f"{title}: {', '.join(values)} ({episodes} episodes)\n"
    if result.episodes_cut:
        text += (
            f"{result.episodes_cut} of {episodes} episodes ended after {result.max_steps} steps\n"
        )
    print_result(as_json, result.to_dict(), text)


@command
def probe(
    env: Annotated[
        str,
        Argument(
            metavar="ENV", help="A Gymnasium id, package.module:factory, or a YAML file of a run."
        ),
    ],
    env_config: Annotated[
        str | None,
        Option(
            "--env-config", metavar="MAPPING", help="Arguments of ENV in YAML, such as '{size: 5}'."
        ),
    ] = None,
    action_mask: Annotated[
        str | None,
        Option(
            "--action-mask", metavar="WHERE", help="Where ENV says which actions are allowed: info."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how an environment can be saved and restored.

    Each strategy is tried on copies, which have to continue bit for bit. With a YAML file, the
    network, callbacks, connectors and learner of your own that it names are tried too: two
    iterations are trained, saved, and restored in a new process.
    """
    from raytrain.commands.probe import probe as run
    from raytrain.commands.probe import probe_config, report

    if env.endswith((".yaml", ".yml")):
        if env_config is not None:
            raise BadInput("--env-config: the YAML file has the arguments of the environment")
        if action_mask is not None:
            raise BadInput("--action-mask: the YAML file has environment.action_mask")
        with busy("Trying"):
            probed = probe_config(Path(env))
        print_result(as_json, probed.to_dict(), probed.report())
        return
    with busy("Trying"):
        proof = run(env, env_config, action_mask)
    print_result(as_json, proof.to_dict(), report(env, proof))


@command
def audit(
    experiment_dir: Directory,
    from_: Annotated[
        int | None,
        Option("--from", metavar="N", help="Iteration of the checkpoint to begin at."),
    ] = None,
    to: Annotated[
        int | None, Option("--to", metavar="N", help="Iteration of the checkpoint to reach.")
    ] = None,
    *,
    on_every_node: Annotated[
        bool,
        Option("--on-every-node", help="Train again on each node of a running cluster."),
    ] = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Train again between two checkpoints, and compare.

    The training happens in a scratch directory, with the run's threads and order of hashes; weights
    digests and metrics are compared. The run may go on meanwhile. Exit code 0 if they are equal, 1
    if not; the first iteration that differs is named. With --on-every-node, the nodes that compute
    differently are named, and how they differ from what the run was trained on.
    """
    keep_ray_quiet()
    if on_every_node:
        from raytrain.cli.tables import nodes_text
        from raytrain.commands.audit_nodes import audit_on_every_node

        with busy("Training again on every node"):
            found = audit_on_every_node(experiment_dir, start=from_, end=to, address=address)
        print_result(as_json, found.to_dict(), nodes_text(found))
        raise typer.Exit(0 if found.equal else 1)
    if address is not None:
        raise BadInput("--address is for --on-every-node; give both, or neither.")
    from raytrain.commands.audit import audit as run

    with busy("Training again"):
        result = run(experiment_dir, start=from_, end=to)
    print_result(as_json, result.to_dict(), result.text())
    raise typer.Exit(0 if result.equal else 1)


@command
def export(
    checkpoint: Checkpoint,
    directory: Annotated[str, Argument(metavar="DIR", help="A new or empty directory, or a URI.")],
    *,
    onnx: Annotated[
        bool, Option("--onnx", help="Also policy.onnx (needs the extra export).")
    ] = False,
    torchscript: Annotated[bool, Option("--torchscript", help="Also policy.pt.")] = False,
    as_json: Json = False,
) -> None:
    """Write a policy that loads without Ray.

    \b
      raytrain export results/cartpole:best cartpole-policy --onnx
      python -c "import raytrain; raytrain.load_policy('cartpole-policy')"

    Weights as safetensors; network, spaces, filters and action mapping as JSON; a model card in
    README.md. The policy is first compared with RLlib's module: the same bits in Torch and
    TorchScript, 1e-5 in ONNX.
    """
    from raytrain.policy.export import export_policy

    keep_ray_quiet()
    with busy("Exporting"):
        written = export_policy(checkpoint, directory, onnx=onnx, torchscript=torchscript)
    text = f"{written.path}: {', '.join(written.files)}\n"
    print_result(as_json, written.to_dict(), text)
    if written.needs_ray is not None and not as_json:
        say(f"Loading the policy imports RLlib (without starting Ray): {written.needs_ray}.")
