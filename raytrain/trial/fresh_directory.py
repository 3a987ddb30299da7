"""`--fresh`: an experiment's directory is set aside, and no process of the old run writes into the
new one. Nothing is deleted that was not copied."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from raytrain.checkpoint import Catalogue, trials
from raytrain.checkpoint.manifest import INCOMPLETE_NAME
from raytrain.storage import READER_S, DirectoryLock, Location, in_parallel, storage_errors
from raytrain.storage.lock import LOCK_NAME
from raytrain.trial.fencing import FencingToken


def set_directory_aside(place: Location, say: Callable[[str], None]) -> None:
    """Rename the experiment's directory (on a store: copy it, then delete the original)."""
    with storage_errors("Setting the old directory aside", place):
        if not place.exists():
            return
        with DirectoryLock(place, wait=READER_S, tell=say):
            moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
            aside = place.parent / f"{place.name}.{moment}"
            attempts = {trial: FencingToken.last_of(trial) for trial in trials(place)}
            if place.is_local:
                place.move_tree(aside)
            else:
                checkpoints = [entry for trial in attempts for entry in Catalogue(trial).entries()]
                names = place.files()
            # Now a process of the old run that is still alive somewhere finds that it was replaced.
            for trial, last in attempts.items():
                FencingToken.count_on(trial, last)
            if not place.is_local:  # Whatever is left of the original after a kill is whole.
                place.copy_tree(aside)
                (aside / LOCK_NAME).delete_file()
                for entry in checkpoints:
                    entry.remove()
                _clear(place, names)
    say(f"--fresh: the old directory is now {aside}.")


def _clear(place: Location, names: Iterable[str]) -> None:
    """Delete these files of a store, except the markers of checkpoints that were never complete: a
    file of one may still arrive. What has arrived since the files were listed stays."""
    doomed = [name for name in names if not name.endswith(f"/{INCOMPLETE_NAME}")]
    in_parallel(lambda name: (place / name).delete_file(), doomed)
