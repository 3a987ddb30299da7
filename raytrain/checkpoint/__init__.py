"""Checkpoints on storage: manifest, commit, verification, catalogue, retention. Knows no Ray.

Written: staging directory -> `Committer` (or `commit`) -> storage.
Read: storage -> `Catalogue` -> `choose_for_resume` -> `fetch`.
"""

from raytrain.checkpoint.background_commit import (
    BestPolicy,
    CommitJob,
    CommitOutcome,
    Committer,
    RetentionPolicy,
)
from raytrain.checkpoint.catalogue import Catalogue, Entry
from raytrain.checkpoint.commit import (
    Fence,
    copy_checkpoint,
    read_manifest,
    rewrite_manifest,
)
from raytrain.checkpoint.digest import weights_sha256
from raytrain.checkpoint.experiment_file import (
    EXPERIMENT_FILE,
    ExperimentFile,
    ExperimentFileError,
    require_key,
)
from raytrain.checkpoint.file_names import ATTEMPTS, own_name
from raytrain.checkpoint.lineage import FORKED_FROM, SET_ASIDE, is_of_run, line_of_descent
from raytrain.checkpoint.manifest import (
    MANIFEST_NAME,
    ExactLost,
    Manifest,
    Parent,
)
from raytrain.checkpoint.replacement import replace
from raytrain.checkpoint.resolve import is_trial, resolve, trials
from raytrain.checkpoint.verify import fetch

__all__ = [
    "ATTEMPTS",
    "EXPERIMENT_FILE",
    "FORKED_FROM",
    "MANIFEST_NAME",
    "SET_ASIDE",
    "BestPolicy",
    "Catalogue",
    "CommitJob",
    "CommitOutcome",
    "Committer",
    "Entry",
    "ExactLost",
    "ExperimentFile",
    "ExperimentFileError",
    "Fence",
    "Manifest",
    "Parent",
    "RetentionPolicy",
    "copy_checkpoint",
    "fetch",
    "is_of_run",
    "is_trial",
    "line_of_descent",
    "own_name",
    "read_manifest",
    "replace",
    "require_key",
    "resolve",
    "rewrite_manifest",
    "trials",
    "weights_sha256",
]
