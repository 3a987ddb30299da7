"""Slurm's commands as far as docs/clusters/slurm.sbatch uses them, for one machine.

`srun` runs the command here, `scontrol` lists the allocation's nodes and notes what is requeued.
"""

from __future__ import annotations

from pathlib import Path

_SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
echo "$@" >> {place}/srun.txt
exec "$@" {agent}
"""
_SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo first; echo second; fi
if [ "$1" = requeue ]; then echo "$2" >> {place}/requeued.txt; fi
"""
_HOSTNAME = """#!/bin/bash
echo 127.0.0.1
"""


def install(place: Path, agent_port: int) -> Path:
    """A directory to be put in front of PATH. Two nodes on one machine need two ports
    for their agents."""
    programs = place / "bin"
    programs.mkdir()
    texts = {"srun": _SRUN, "scontrol": _SCONTROL, "hostname": _HOSTNAME}
    for name, text in texts.items():
        agent = f"--dashboard-agent-listen-port={agent_port}"
        (programs / name).write_text(text.format(place=place, agent=agent))
        (programs / name).chmod(0o755)
    return programs
