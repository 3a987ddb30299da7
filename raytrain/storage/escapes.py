"""Escapes for text that is shown: what comes from storage may hold terminal commands.

File names and values in manifests are not trusted. An escape sequence can clear the screen or
overwrite text, a line break can fake a line, and a character that changes the direction of writing
can hide one. Whatever is printed, drawn, logged or written into a model card goes through
`printable`: the commands' `say` and `write`, the console of a run, tables, plots.
"""

from __future__ import annotations


def printable(text: str, *, lines: bool = False) -> str:
    """`text` with each character that cannot be printed (`str.isprintable`) escaped as in a Python
    string: `\\x1b`, `\\n`, `\\udcff`. With `lines`, line breaks and tabs are kept."""
    if text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        character
        if character.isprintable() or character in kept
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
