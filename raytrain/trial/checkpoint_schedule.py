"""When a periodic checkpoint is due."""

from __future__ import annotations

from dataclasses import dataclass

from raytrain.ppo.stopping import Progress


@dataclass(frozen=True)
class CheckpointSchedule:
    """Periodic checkpoints. Each part that is set asks for a checkpoint on its own; a part that
    counts (iterations, timesteps, episodes) asks whenever a multiple of it has been passed since the
    last iteration, so that a resumed run saves at the same iterations as an undisturbed one."""

    iterations: int = 0
    timesteps: int | None = None
    episodes: int | None = None
    seconds: float | None = None

    def due(self, now: Progress, previous: Progress, saved_at_s: float) -> bool:
        """Whether to save after the iteration that led from `previous` to `now`. `saved_at_s`:
        training seconds at the last save (or at the start)."""
        if self.iterations and now.iteration % self.iterations == 0:
            return True
        if (
            self.timesteps
            and now.timesteps // self.timesteps > previous.timesteps // self.timesteps
        ):
            return True
        if self.episodes and now.episodes // self.episodes > previous.episodes // self.episodes:
            return True
        return bool(self.seconds) and now.time_s - saved_at_s >= float(self.seconds or 0)
