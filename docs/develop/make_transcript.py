"""The picture at the top of the README: a run that is killed and continued, and one left alone.

    python docs/develop/make_transcript.py docs/transcript.svg

trains `configs/cartpole.yaml` three times in a scratch directory (about a minute) and draws what a
terminal showed: commands and output are real, and only the scratch directory's name becomes `~`.
The script fails, and writes nothing, unless both runs end with the same weights.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

CONFIG = Path(__file__).parents[2] / "configs" / "cartpole.yaml"
WIDTH = 100
TRAIN = "raytrain train cartpole.yaml"
DIGESTS = (
    "for run in results undisturbed; do raytrain inspect $run/cartpole:final | grep weights; done"
)
KILLED_AFTER = 13
"""Iterations until the first run is killed. Every second one is saved, so one is lost."""

# A live line is rewritten in place: what was erased is not seen any more.
_ERASED = re.compile(r".*\x1b\[2K|\x1b\[\?25[lh]|\r")
# GitHub loads no fonts for a picture.
_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


class Terminal:
    """Runs commands in `place` and shows them, with their output, as a terminal would."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.screen = Console(
            record=True,
            width=WIDTH,
            file=io.StringIO(),
            force_terminal=True,
            color_system="truecolor",
        )

    def run(self, command: str, *, killed_after: int | None = None, comment: str = "") -> str:
        """The output. With `killed_after`, SIGKILL ends all of its processes after so many
        iterations."""
        self.screen.print(Text.assemble(("$ ", "bold green"), (command, "bold"), (comment, "dim")))
        here, there = os.openpty()
        process = subprocess.Popen(
            command, shell=True, cwd=self.place, stdout=there, stderr=there, env=_environment()
        )
        os.close(there)
        output = b""
        while chunk := _read(here):
            output += chunk
            if killed_after is not None and self._iterations() >= killed_after:
                _kill(process.pid)
        os.close(here)
        code = process.wait()
        assert code == (0 if killed_after is None else -9), output.decode()
        lines = [_ERASED.sub("", line) for line in output.decode().split("\n")]
        text = "\n".join(lines).strip("\n").replace(str(self.place), "~")
        self.screen.print(Text.from_ansi(text))
        if killed_after is not None:
            self.screen.print("Killed")  # What an interactive shell says.
        self.screen.print()
        return text

    def _iterations(self) -> int:
        records = self.place / "results" / "cartpole" / "trial_00000" / "result.json"
        return len(records.read_text().splitlines()) if records.exists() else 0


def _environment() -> dict[str, str]:
    return {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(WIDTH)}


def _read(descriptor: int) -> bytes:
    """The next output; empty when all processes have closed the terminal."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


def _kill(pid: int) -> None:
    """SIGKILL to a process and all that it has started."""
    process = psutil.Process(pid)
    for victim in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            victim.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    picture: Path = parser.parse_args().picture
    with tempfile.TemporaryDirectory() as scratch:
        terminal = Terminal(Path(scratch).resolve())
        shutil.copy(CONFIG, terminal.place)
        terminal.run(TRAIN, killed_after=KILLED_AFTER, comment="    # SIGKILL to all its processes")
        terminal.run(TRAIN, comment="    # the same command")
        terminal.run(f"{TRAIN} --storage-path undisturbed 2>&1 | grep finished")
        digests = terminal.run(DIGESTS).splitlines()
    if len(digests) != 2 or digests[0] != digests[1]:
        sys.exit(f"the weights differ: {digests}")
    svg = terminal.screen.export_svg(title="raytrain", theme=MONOKAI, unique_id="transcript")
    picture.write_text(_FONTS.sub("", svg))


if __name__ == "__main__":
    main()
