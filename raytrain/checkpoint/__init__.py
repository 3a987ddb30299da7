"""What lies on storage: manifest, commit, verify, choose, keep, prune.

Nothing here knows Ray. Writing goes staging directory -> `Committer` (or `commit`) -> storage;
reading goes storage -> `Catalogue` -> `choose_for_resume` -> `fetch`.
"""

from raytrain.checkpoint.catalogue import Catalogue, Choice, Entry, NoGoodCheckpoint
from raytrain.checkpoint.commit import (
    CheckpointExists,
    DamagedCheckpoint,
    commit,
    read_manifest,
    remove_checkpoint,
)
from raytrain.checkpoint.committer import BestPolicy, CommitJob, CommitOutcome, Committer
from raytrain.checkpoint.digest import file_sha256, weights_sha256
from raytrain.checkpoint.experiment_file import (
    EXPERIMENT_FILE,
    ExperimentFile,
    ExperimentFileError,
)
from raytrain.checkpoint.lock import DirectoryLock, Locked
from raytrain.checkpoint.manifest import (
    FORMAT,
    KINDS,
    MANIFEST_NAME,
    ExactLost,
    FileEntry,
    Manifest,
    ManifestError,
    Parent,
)
from raytrain.checkpoint.parallel import in_parallel, together
from raytrain.checkpoint.resolve import is_trial, resolve, trials
from raytrain.checkpoint.retention import RetentionPolicy, prune, surplus
from raytrain.checkpoint.storage import Location, StorageError, make_directories, storage_errors
from raytrain.checkpoint.swap import commit_replacing, repair_swaps, replace, sweep
from raytrain.checkpoint.verify import check, fetch

__all__ = [
    "EXPERIMENT_FILE",
    "FORMAT",
    "KINDS",
    "MANIFEST_NAME",
    "BestPolicy",
    "Catalogue",
    "CheckpointExists",
    "Choice",
    "CommitJob",
    "CommitOutcome",
    "Committer",
    "DamagedCheckpoint",
    "DirectoryLock",
    "Entry",
    "ExactLost",
    "ExperimentFile",
    "ExperimentFileError",
    "FileEntry",
    "Location",
    "Locked",
    "Manifest",
    "ManifestError",
    "NoGoodCheckpoint",
    "Parent",
    "RetentionPolicy",
    "StorageError",
    "check",
    "commit",
    "commit_replacing",
    "fetch",
    "file_sha256",
    "in_parallel",
    "is_trial",
    "make_directories",
    "prune",
    "read_manifest",
    "remove_checkpoint",
    "repair_swaps",
    "replace",
    "resolve",
    "storage_errors",
    "surplus",
    "sweep",
    "together",
    "trials",
    "weights_sha256",
]
