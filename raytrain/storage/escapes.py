"""Text for a person's eyes: what came from storage may hold what a terminal takes for a command.

Names of files and values in manifests are anybody's. An escape sequence in one can clear the screen or
overwrite what stands there, a line break can make up a line, and a character that turns the direction of
writing can hide one. Whatever is printed, drawn, logged or written into a model card goes through `printable`:
the commands' `say` and `write`, the console of a run, tables, plots.
"""

from __future__ import annotations


def printable(text: str, *, lines: bool = False) -> str:
    """`text` with each character that is not for reading (`str.isprintable`) as Python writes it in a
    string: `\\x1b`, `\\n`, `\\udcff`. With `lines` it may have several lines, and tabs."""
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(each if each.isprintable() or each in kept else _escape(each) for each in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
