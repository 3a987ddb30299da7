"""Signatures of what is read back from storage: HMAC-SHA256 with a key that is never stored there.

    RAYTRAIN_SIGNING_KEY        the key itself, at least 16 characters
    RAYTRAIN_SIGNING_KEY_FILE   or a file that holds it (a mounted secret)

With a key, `manifest.json` and `experiment.json` have one more entry,

    "signature": HMAC-SHA256(key, "raytrain WHAT 1\\n" + the document without it, as canonical JSON)

with WHAT `manifest` or `experiment`, so that one cannot pass for the other. Canonical JSON has
sorted keys, no spaces, and ASCII only. A manifest lists the SHA-256 of every other file of its
checkpoint, so its signature covers them all. A process with a key refuses what is not signed with
it; a process without one ignores signatures. The key is read from the environment wherever it is
needed: it is in no config, argument or message.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from typing import Any

from raytrain.errors import BadInput

KEY_VARIABLE = "RAYTRAIN_SIGNING_KEY"
FILE_VARIABLE = "RAYTRAIN_SIGNING_KEY_FILE"
SIGNATURE = "signature"
_SHORTEST = 16


def signing_key() -> bytes | None:
    """The key of this process, or None. Raises `BadInput` for a short key or an unreadable file."""
    text = os.environ.get(KEY_VARIABLE)
    source = KEY_VARIABLE
    if text is None and (path := os.environ.get(FILE_VARIABLE)):
        source = f"the file {path} ({FILE_VARIABLE})"
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{source} cannot be read: {error}") from None
    if text is None:
        return None
    if len(text) < _SHORTEST:
        raise BadInput(
            f"{source} is shorter than {_SHORTEST} characters. Make a key with `openssl rand -hex "
            "32`, or unset the variable to work without signatures."
        )
    return text.encode()


def signed(what: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its signature, if this process has a key."""
    key, plain = signing_key(), _plain(document)
    return plain if key is None else {**plain, SIGNATURE: _signature(key, what, plain)}


def unsigned(what: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """The document without its signature. Raises `ValueError`, saying why, if this process has a
    key and did not sign the document as it is."""
    key, plain = signing_key(), _plain(document)
    if key is None:
        return plain
    signature = document.get(SIGNATURE)
    if not isinstance(signature, str):
        raise ValueError(f"it is not signed, and {KEY_VARIABLE} is set")
    if not hmac.compare_digest(signature.encode(), _signature(key, what, plain).encode()):
        raise ValueError(
            f"its signature does not match {KEY_VARIABLE}: the file was altered, or signed with "
            "another key"
        )
    return plain


def _plain(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != SIGNATURE}


def _signature(key: bytes, what: str, document: Mapping[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, f"raytrain {what} 1\n{text}".encode(), hashlib.sha256).hexdigest()
