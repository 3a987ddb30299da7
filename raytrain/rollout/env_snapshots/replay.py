"""Strategy "replay": how the running episode began, and every action since.

For environments whose state is out of reach (MuJoCo, Box2D) but determined by their generator's
state and the actions. A recorder, the outermost wrapper, keeps the state of all layers BEFORE each
reset (wrappers whole; of the base environment its generators and plain attributes), the reset's
seed and options, and each action. Restoring brings a fresh environment to the state before the
reset, repeats the reset and the steps, compares the last observation bit for bit, and sets the
layers to their state at the snapshot.

An environment that draws from the process's generators, or that carries other state from one
episode to the next, does not come out the same; the comparison reports it.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np

from raytrain.rollout.env_snapshots.base import SnapshotError, Snapshotter
from raytrain.rollout.env_snapshots.fingerprint import difference, frame_of
from raytrain.rollout.env_snapshots.wrapper_state import Layers


class ReplaySnapshots(Snapshotter):
    strategy = "replay"

    def __init__(self) -> None:
        self._before_reset = Layers("plain")
        # Without the base environment's plain attributes: the replay has brought them up to
        # date, and one that names something of the process (an index, a file descriptor) must
        # stay the copy's own.
        self._present = Layers("generators")

    def wrap(self, env: Any) -> Any:
        return Recorder(env, self._before_reset)

    def _take(self, env: Any) -> dict[str, Any]:
        recorder = _recorder(env)
        snapshot: dict[str, Any] = {
            "present": self._present.capture(recorder.env),
            "episode": None,
        }
        if recorder.before_reset is not None:
            snapshot["episode"] = {
                "before_reset": recorder.before_reset,
                "reset_arguments": copy.deepcopy(recorder.reset_arguments),
                "actions": recorder.actions.copied(),
                "last": frame_of(*recorder.last),
            }
        return snapshot

    def _restore(self, env: Any, snapshot: dict[str, Any]) -> Any:
        recorder = _recorder(env)
        episode = snapshot["episode"]
        if episode is not None:
            self._before_reset.restore(recorder.env, episode["before_reset"])
            recorder.reset(**copy.deepcopy(episode["reset_arguments"]))
            for action in episode["actions"]:
                recorder.step(copy.deepcopy(action))
            different = difference(episode["last"], frame_of(*recorder.last))
            if different:
                raise SnapshotError(
                    f"after its {len(episode['actions'])} steps were replayed, the episode's last "
                    f"{different}: the environment depends on something other than its own "
                    "generator and the actions (the process's global generators, the time, state "
                    "that outlives an episode)"
                )
        self._present.restore(recorder.env, snapshot["present"])
        return recorder


class Recorder(gym.Wrapper):  # untyped base
    """Records what a replay needs; changes nothing."""

    def __init__(self, env: Any, layers: Layers) -> None:
        super().__init__(env)
        self._layers = layers
        self.before_reset: bytes | None = None
        self.reset_arguments: dict[str, Any] = {}
        self.actions = ActionLog()
        # Observation, reward, terminated, truncated as returned last. Not copied: nobody steps the
        # environment between a step and the snapshot that reads this.
        self.last: tuple[Any, Any, Any, Any] = (None, None, None, None)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        # An environment creates its generator, from the system's entropy, when it is first used. It
        # is created here, so that its state can be captured.
        getattr(self.unwrapped, "np_random", None)
        self.before_reset = self._layers.capture(self.env)
        self.reset_arguments = copy.deepcopy(arguments)
        self.actions = ActionLog()
        observation, info = self.env.reset(**arguments)
        self.last = (observation, None, None, None)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.last = (observation, reward, terminated, truncated)
        return observation, reward, terminated, truncated, info


class ActionLog:
    """Actions of one episode: a growing array while all are arrays or NumPy scalars of one dtype
    and shape, and a list of copies otherwise. `copied` costs one small array copy."""

    def __init__(self) -> None:
        self._array: np.ndarray[Any, Any] | None = None
        self._list: list[Any] | None = None
        self._kind: Any = None
        self._count = 0

    def append(self, action: Any) -> None:
        if self._list is None and not self._fits(action):
            self._list = [] if self._array is None else list(self._array[: self._count].copy())
            self._array = None
        if self._list is not None:
            self._list.append(copy.deepcopy(action))
            return
        assert self._array is not None
        if self._count == len(self._array):
            self._array = np.concatenate([self._array, np.empty_like(self._array)])
        self._array[self._count] = action
        self._count += 1

    def copied(self) -> Any:
        """The actions so far, an array or a list; iterated, they are as they were appended."""
        if self._list is not None:
            return list(self._list)
        return [] if self._array is None else self._array[: self._count].copy()

    def _fits(self, action: Any) -> bool:
        # A 0-d array would come out of the array as a scalar; object arrays hold references.
        is_array = type(action) is np.ndarray and action.ndim > 0
        if not (is_array or isinstance(action, np.generic)) or action.dtype.hasobject:
            return False
        if self._array is None:
            self._kind = type(action)
            self._array = np.empty((64, *action.shape), dtype=action.dtype)
        return (
            type(action) is self._kind
            and action.dtype == self._array.dtype
            and action.shape == self._array.shape[1:]
        )


def _recorder(env: Any) -> Recorder:
    if not isinstance(env, Recorder):
        raise SnapshotError(
            "replay needs its recorder as the outermost wrapper: pass the environment through "
            "Snapshotter.wrap before its first reset"
        )
    return env
