"""What lies on storage: manifest, commit, verify, choose, keep, prune.

Nothing here knows Ray. Writing goes staging directory -> `Committer` (or `commit`) -> storage;
reading goes storage -> `Catalogue` -> `choose_for_resume` -> `fetch`.
"""

from raytrain.checkpoint.background_commit import (
    BestPolicy,
    CommitJob,
    CommitOutcome,
    Committer,
    RetentionPolicy,
    prune,
    surplus,
)
from raytrain.checkpoint.catalogue import Catalogue, Entry, NoGoodCheckpoint
from raytrain.checkpoint.commit import (
    CheckpointExists,
    DamagedCheckpoint,
    Fence,
    commit,
    copy_checkpoint,
    read_manifest,
    remove_checkpoint,
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
    FileEntry,
    Manifest,
    ManifestError,
    Parent,
)
from raytrain.checkpoint.replacement import replace
from raytrain.checkpoint.resolve import is_trial, resolve, trials
from raytrain.checkpoint.verify import check, fetch

__all__ = [
    "ATTEMPTS",
    "EXPERIMENT_FILE",
    "FORKED_FROM",
    "MANIFEST_NAME",
    "SET_ASIDE",
    "BestPolicy",
    "Catalogue",
    "CheckpointExists",
    "CommitJob",
    "CommitOutcome",
    "Committer",
    "DamagedCheckpoint",
    "Entry",
    "ExactLost",
    "ExperimentFile",
    "ExperimentFileError",
    "Fence",
    "FileEntry",
    "Manifest",
    "ManifestError",
    "NoGoodCheckpoint",
    "Parent",
    "RetentionPolicy",
    "check",
    "commit",
    "copy_checkpoint",
    "fetch",
    "is_of_run",
    "is_trial",
    "line_of_descent",
    "own_name",
    "prune",
    "read_manifest",
    "remove_checkpoint",
    "replace",
    "require_key",
    "resolve",
    "rewrite_manifest",
    "surplus",
    "trials",
    "weights_sha256",
]
