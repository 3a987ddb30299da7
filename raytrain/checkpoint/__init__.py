"""What lies on storage: manifest, commit, verify, choose, keep, prune.

Nothing here knows Ray. Writing goes staging directory -> `Committer` (or `commit`) -> storage;
reading goes storage -> `Catalogue` -> `choose_for_resume` -> `fetch`.
"""

from raytrain.checkpoint.catalogue import Catalogue, Choice, Entry, NoGoodCheckpoint
from raytrain.checkpoint.commit import (
    CheckpointExists,
    DamagedCheckpoint,
    Fence,
    commit,
    copy_checkpoint,
    move_checkpoint,
    read_manifest,
    remove_checkpoint,
    rewrite_manifest,
)
from raytrain.checkpoint.committer import BestPolicy, CommitJob, CommitOutcome, Committer
from raytrain.checkpoint.digest import file_sha256, weights_sha256
from raytrain.checkpoint.experiment_file import (
    EXPERIMENT_FILE,
    ExperimentFile,
    ExperimentFileError,
    require_key,
)
from raytrain.checkpoint.layout import ATTEMPTS, own_name
from raytrain.checkpoint.lineage import FORKED_FROM, SET_ASIDE, is_of_run, line_of_descent
from raytrain.checkpoint.lock import LEASE_PATIENCE_S, DirectoryLock, Locked, who_writes
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
from raytrain.checkpoint.patience import STORE
from raytrain.checkpoint.resolve import is_trial, resolve, trials
from raytrain.checkpoint.retention import RetentionPolicy, prune, surplus
from raytrain.checkpoint.signing import signing_key
from raytrain.checkpoint.storage import Location, StorageError, make_directories, storage_errors
from raytrain.checkpoint.swap import commit_replacing, replace, sweep
from raytrain.checkpoint.verify import check, fetch

__all__ = [
    "ATTEMPTS",
    "EXPERIMENT_FILE",
    "FORKED_FROM",
    "FORMAT",
    "KINDS",
    "LEASE_PATIENCE_S",
    "MANIFEST_NAME",
    "SET_ASIDE",
    "STORE",
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
    "Fence",
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
    "copy_checkpoint",
    "fetch",
    "file_sha256",
    "in_parallel",
    "is_of_run",
    "is_trial",
    "line_of_descent",
    "make_directories",
    "move_checkpoint",
    "own_name",
    "prune",
    "read_manifest",
    "remove_checkpoint",
    "replace",
    "require_key",
    "resolve",
    "rewrite_manifest",
    "signing_key",
    "storage_errors",
    "surplus",
    "sweep",
    "together",
    "trials",
    "weights_sha256",
    "who_writes",
]
