"""The command line: one short function a command, no logic of its own.

app           the program, and what its commands share
runs          train, submit, resume
checkpoints   checkpoints, inspect, verify, evaluate, probe, audit, export
looking       show, list, plot, prune
"""

from raytrain.cli.starting import nothing_begun

with nothing_begun():
    from raytrain.cli import train, checkpoints, experiments  # noqa: F401, I001  in the order of --help
    from raytrain.cli.app import app, main

__all__ = ["app", "main"]
