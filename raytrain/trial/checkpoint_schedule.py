"""When a periodic checkpoint is due."""

from __future__ import annotations

from raytrain.config.schema import Checkpoint
from raytrain.ppo.stopping import Progress


def is_due(settings: Checkpoint, now: Progress, before: Progress, saved_at_s: float) -> bool:
    """Whether to save after the iteration that led from `before` to `now`.

    Each part that is set asks for a checkpoint on its own. A part that counts (iterations,
    timesteps, episodes) asks whenever it has passed a multiple, so a resumed run saves at the same
    iterations as an undisturbed one. `saved_at_s`: training seconds at the last save.
    """
    counts = (
        (settings.checkpoint_frequency, now.iteration, before.iteration),
        (settings.every_timesteps, now.timesteps, before.timesteps),
        (settings.every_episodes, now.episodes, before.episodes),
    )
    if any(every and count // every > last // every for every, count, last in counts):
        return True
    seconds = settings.every_seconds
    return seconds is not None and now.time_s - saved_at_s >= seconds
