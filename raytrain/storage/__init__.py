"""Files on a disk or an object store: locations, retries, locks, signatures. No checkpoints."""

from raytrain.storage.location import (
    Location,
    StorageError,
    in_parallel,
    make_directories,
    storage_errors,
)
from raytrain.storage.lock import (
    LEASE_PATIENCE_S,
    READER_S,
    DirectoryLock,
    Holder,
    Locked,
    holder,
    who_writes,
)
from raytrain.storage.retry import STORE
from raytrain.storage.signing import signing_key

__all__ = [
    "LEASE_PATIENCE_S",
    "READER_S",
    "STORE",
    "DirectoryLock",
    "Holder",
    "Location",
    "Locked",
    "StorageError",
    "holder",
    "in_parallel",
    "make_directories",
    "signing_key",
    "storage_errors",
    "who_writes",
]
