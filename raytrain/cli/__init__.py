"""The command line: one short function a command, no logic of its own.

Besides it, only the driver prints.

app           the program, and what its commands share
train         train, submit, resume, fork
checkpoints   checkpoints, inspect, verify, evaluate, probe, audit, export
experiments   show, list, plot, prune
server        serve
documents     checkpoints as text
tables        what is printed without `--json`
"""

from raytrain.cli.early_signals import nothing_begun

with nothing_begun():
    # In the order of --help.
    from raytrain.cli import train, checkpoints, experiments, server, history  # noqa: F401, I001
    from raytrain.cli.app import app, main

__all__ = ["app", "main"]
