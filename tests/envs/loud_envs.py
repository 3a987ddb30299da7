"""An environment that writes on stdout whenever it can, in every way there is."""

from __future__ import annotations

import atexit
import ctypes
import os
import subprocess
import sys
from typing import Any

import gymnasium as gym

KEPT = sys.stdout
LIBC = ctypes.CDLL(None)


def shout(where: Any) -> None:
    print(f"python {where}")
    KEPT.write(f"kept {where}\n")
    LIBC.printf(f"c {where}\n".encode())
    os.write(1, f"descriptor {where}\n".encode())


shout("import")
subprocess.run(["echo", "process import"], check=True)
atexit.register(shout, "exit")


class Loud(gym.Wrapper):
    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))
        shout("init")

    def reset(self, **kwargs: Any) -> Any:
        shout("reset")
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        shout("step")
        return self.env.step(action)

    def close(self) -> None:
        shout("close")
        super().close()


def make() -> Any:
    return Loud()
