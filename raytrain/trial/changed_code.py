"""Whether the code and the libraries that a checkpoint was trained with have changed since.

Its manifest says what they were, so a change that was taken back before anything was trained is
none, and one that came after an older checkpoint, from which a run continues again, is one.
"""

from __future__ import annotations

from dataclasses import asdict

from raytrain.checkpoint import Manifest
from raytrain.config.run_code import RunCode
from raytrain.versions import changed_versions, changes_text


def code_of_manifest(manifest: Manifest) -> RunCode:
    """The code that a checkpoint was trained with; empty for one of an earlier version."""
    return RunCode.of(None if manifest.code is None else asdict(manifest.code))


def changes_since(manifest: Manifest, code: RunCode) -> list[str]:
    """The differences, each as half a sentence: `my_env.py changed`, `torch 2.12.0 -> 2.13.0`."""
    versions = changed_versions(manifest.versions)
    changes = code_of_manifest(manifest).changes(code)
    return changes + ([changes_text(versions)] if versions else [])
