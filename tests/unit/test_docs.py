"""The documents against the product: links, commands, options, config keys,
formats, Python blocks."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import typer
from support.paths import ROOT

from raytrain.checkpoint import ExperimentFile, Manifest
from raytrain.cli import app
from raytrain.config import load_config
from raytrain.config.validation import yaml_fields
from raytrain.records import read_episodes
from raytrain.storage.signing import SIGNATURE

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")  # and pictures
_HEADING = re.compile(r"^#+ (.+)$", re.M)
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# Programs whose options are not ours.
_OTHERS = {
    "tensorboard",
    "pip",
    "pre-commit",
    "pytest",
    "git",
    "make",
    "python",
    "ray",
    "srun",
    "sbatch",
    "scancel",
    "systemctl",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: the document, the line it begins at, its language and its text."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    matching = []
    for document in DOCUMENTS:
        text = document.read_text()
        for match in _FENCE.finditer(text):
            if match[1] in languages:
                line = text.count("\n", 0, match.start()) + 2
                matching.append(Block(document, line, match[1], match[2]))
    return matching


def commands() -> dict[str, Any]:
    """The commands of `raytrain`, as click sees them, by name."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def options_of(command: Any) -> set[str]:
    """Those of a group are the options of all its commands."""
    names = {name for param in command.params for name in param.opts if name.startswith("--")}
    below = getattr(command, "commands", {}).values()
    return {"--help"} | names.union(*map(options_of, below))


def named_commands(text: str) -> list[list[str]]:
    """Every line of a shell block and every inline code span, split into words, without prompts."""
    lines = [
        line
        for match in _FENCE.finditer(text)
        if match[1] == "console"
        for line in match[2].splitlines()
        if line.startswith("$ ")
    ]
    lines += [
        line
        for match in _FENCE.finditer(text)
        if match[1] == "sh"
        for line in match[2].splitlines()
    ]
    lines += _SPAN.findall(_FENCE.sub("", text))
    split = []
    for line in lines:
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError:  # An apostrophe in a span that is no command.
            continue
        if words:
            split.append(words)
    return split


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document: Any) -> None:
    for target in _LINK.findall(_FENCE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (document.parent / path).resolve() if path else document
        assert place.exists(), f"{document.name}: the link {target} is broken"
        if anchor:
            headings = _HEADING.findall(_FENCE.sub("", place.read_text()))
            slugs = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
            assert anchor in slugs, f"{document.name}: {place.name} has no heading #{anchor}"


def test_every_document_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for document in DOCUMENTS:
        path = document.relative_to(ROOT)
        assert document.name == "README.md" or f"({path})" in readme, (
            f"README.md does not link {path}"
        )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_options_exist(document: Any) -> None:
    known = commands()
    every_option = set().union(*(options_of(command) for command in known.values()))
    for words in named_commands(document.read_text()):
        program = Path(words[0]).name
        if program == "raytrain":
            if len(words) == 1:
                continue
            assert words[1] in known, f"{document.name}: there is no `raytrain {words[1]}`"
            allowed = options_of(known[words[1]])
        elif program in _OTHERS:
            continue
        else:
            allowed = every_option
        for option in _OPTION.findall(" ".join(words)):
            assert option in allowed, f"{document.name}: no {option} in `{' '.join(words)}`"


def test_every_command_is_documented() -> None:
    text = "".join(path.read_text() for path in DOCUMENTS)
    for name, command in commands().items():
        assert f"raytrain {name}" in text, f"`raytrain {name}` is not documented"
        for option in options_of(command) - {"--help"}:
            assert option in text, f"{option} of `raytrain {name}` is not documented"


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_blocks_are_valid_configs(block: Any, tmp_path: Path) -> None:
    """A part of a config is completed with the two keys that are required."""
    text = block.text
    for key, line in (
        ("environment", "environment: {env: CartPole-v1}"),
        ("stop", "stop: {iterations: 1}"),
    ):
        if not re.search(rf"^{key}:", text, re.M):
            text += f"{line}\n"
    path = tmp_path / "documented.yaml"
    path.write_text(text)
    load_config(path, check_env=False)  # The modules that documents name do not exist.


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_config_keys_in_prose_exist(document: Any) -> None:
    """`section.key` in a code span, and the KEY of `--set KEY=VALUE`."""
    known = {".".join(path) for path in yaml_fields()}
    sections = {name.partition(".")[0] for name in known if "." in name}
    text = document.read_text()
    named = set(re.findall(r"--set '?([a-z_.]+)=", text))
    for span in _SPAN.findall(_FENCE.sub("", text)):
        match = re.fullmatch(r"([a-z_]+)\.([a-z_.]+)", span)
        if match and match[1] in sections:
            named.add(span)
    unknown = {key for key in named - known if not key.startswith("environment.env_config.")}
    assert not unknown, f"{document.name}: there are no config keys {sorted(unknown)}"


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_blocks_compile(block: Any) -> None:
    compile(block.text, str(block), "exec")


def test_manifest_keys_are_those_documented() -> None:
    assert _first_column("concepts/storage.md", "manifest.json") == [
        *(field.name for field in fields(Manifest)),
        SIGNATURE,
    ]


def test_experiment_keys_are_those_documented() -> None:
    names = {field.name for field in fields(ExperimentFile)} - {"was_signed"}
    expected = {"format", SIGNATURE, *names}
    assert set(_first_column("concepts/storage.md", "experiment.json")) == expected


def test_episode_columns_are_those_documented(tmp_path: Path) -> None:
    (tmp_path / "episodes").mkdir()
    documented = _first_column("concepts/storage.md", "Episode history")
    assert documented == [*read_episodes(tmp_path).column_names, "custom/*"]


def _first_column(document: str, heading: str) -> list[str]:
    """The names in the first column of the table under a heading."""
    text = (ROOT / "docs" / document).read_text()
    section = re.split(r"^#+ ", text.split(f" {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    cells = re.findall(r"^\| (`[^|]+`) \|", section, re.M)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
