"""Whether the code and the libraries that a checkpoint was trained with have changed since.

Its manifest says what they were, so a change that was taken back before anything was trained is
none, and one that came before an older checkpoint, from which a run continues again, is one.
"""

from __future__ import annotations

from dataclasses import asdict

from raytrain.checkpoint import Manifest
from raytrain.config.run_code import RunCode
from raytrain.versions import changed_versions, changes_text


def changes_since(manifest: Manifest, code: RunCode) -> list[str]:
    """The differences, each as half a sentence: `my_env.py changed`, `torch 2.12.0 -> 2.13.0`."""
    before = RunCode.of(None if manifest.code is None else asdict(manifest.code))
    versions = changed_versions(manifest.versions)
    return before.changes(code) + ([changes_text(versions)] if versions else [])
