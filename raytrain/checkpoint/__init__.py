"""Checkpoints on storage: manifest, commit, verification, catalogue, retention. Knows no Ray.

Written: staging directory -> `background_commit.Committer` (or `commit`) -> storage.
Read: storage -> `Catalogue` -> `choose_for_resume` -> `fetch`.
"""

from raytrain.checkpoint.background_commit import BestPolicy, RetentionPolicy
from raytrain.checkpoint.catalogue import Catalogue, Entry
from raytrain.checkpoint.commit import read_manifest
from raytrain.checkpoint.digest import weights_sha256
from raytrain.checkpoint.experiment_file import ExperimentFile, ExperimentFileError
from raytrain.checkpoint.lineage import is_of_run
from raytrain.checkpoint.manifest import MANIFEST_NAME, Code, ExactLost, Manifest, Parent
from raytrain.checkpoint.replacement import replace
from raytrain.checkpoint.resolve import resolve, trials
from raytrain.checkpoint.verify import fetch

__all__ = [
    "MANIFEST_NAME",
    "BestPolicy",
    "Catalogue",
    "Code",
    "Entry",
    "ExactLost",
    "ExperimentFile",
    "ExperimentFileError",
    "Manifest",
    "Parent",
    "RetentionPolicy",
    "fetch",
    "is_of_run",
    "read_manifest",
    "replace",
    "resolve",
    "trials",
    "weights_sha256",
]
