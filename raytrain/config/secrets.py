"""Secrets stay out of the config, which is written to storage and pickles, and shown.

A secret that an environment needs (a licence key, a database password) is given by reference:

    environment:
      env_config:
        licence_key: {from_environment: SIM_LICENCE}

Only the process that makes the environment replaces the mapping by the variable's value
(`with_secrets`). The value is a `SecretText`, which is pickled as the name of its variable, since
environments are pickled into checkpoints. Text under a key that names a secret, and text that looks
like a known kind of credential, is refused when the config is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from raytrain.config.errors import NOTHING, ConfigError, KeyPath, Problem

REFERENCE = "from_environment"

_SECRET_NAME = re.compile(
    r"(^|_)(secret|secrets|password|passwd|passphrase|token|credential|credentials|api_?key|apikey|"
    r"access_?key|private_?key|secret_?key|auth_?key|licen[cs]e_?key|connection_?string)(_|$)"
)
_SECRET_TEXT = re.compile(
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bhf_\w{20,}"
    r"|\bsk-[\w-]{20,}|\bxox[abprs]-[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]+:[^/\s@]+@"
)


def secrets_in(values: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """The keys of secrets in plain text, each with the reason why it counts as a secret."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            here = (*path, key)
            if isinstance(value, str) and value and _SECRET_NAME.search(_snake(str(key))):
                yield here, "the key is the name of a secret"
            else:
                yield from secrets_in(value, here)
    elif isinstance(values, list | tuple):
        for index, value in enumerate(values):
            yield from secrets_in(value, (*path, index))
    elif isinstance(values, str) and _SECRET_TEXT.search(values):
        yield path, "the value looks like a credential"


class PlainSecret(ConfigError):
    """The config contains a secret. Other problems, which might repeat it, are not reported."""


def problem(why: str) -> Problem:
    """The problem, without the value."""
    return Problem(
        f"the config is written to storage and to logs, so it must not contain a secret ({why}); "
        f"write {{{REFERENCE}: NAME_OF_A_VARIABLE}} and set the variable wherever the environment "
        "is made",
        value=NOTHING,
    )


def with_secrets(values: Any, field: str) -> Any:
    """`values` with each reference replaced by the variable's value. Raises ConfigError with the
    variable's name if it is not set in this process."""
    if isinstance(values, Mapping):
        if set(values) == {REFERENCE}:
            return SecretText(str(values[REFERENCE]), field)
        return {key: with_secrets(value, f"{field}.{key}") for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [with_secrets(value, f"{field}[{i}]") for i, value in enumerate(values)]
    return values


class SecretText(str):
    """The value of an environment variable. Pickles and `repr` show the variable's name instead;
    text that is derived from it (`strip`, an f-string) is ordinary text again."""

    variable: str

    def __new__(cls, variable: str, field: str = "") -> SecretText:
        """Raises ConfigError if the variable is not set in this process."""
        if variable not in os.environ:
            raise ConfigError(
                Problem(
                    "the environment variable is not set in this process; set it where the command "
                    "is given and on every node, in the environment in which Ray is started",
                    field=field,
                    value=variable,
                )
            )
        text = super().__new__(cls, os.environ[variable])
        text.variable = variable
        return text

    def __reduce__(self) -> tuple[type[SecretText], tuple[str]]:
        return SecretText, (self.variable,)

    def __repr__(self) -> str:
        return f"<the value of {self.variable}>"


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]", "_", name).lower()
