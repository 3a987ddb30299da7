"""An evaluation that takes long is told of while it goes on: nothing else is heard of a trial meanwhile.

after 30 s, and then each time when it has taken twice as long
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_FIRST_S = 30.0


@contextmanager
def telling_if_slow(tell: Callable[[str], None], seen: Callable[[], str]) -> Iterator[None]:
    """Call `tell` from another thread while the body, an evaluation, goes on. `seen` says what is known
    of its episodes, as the end of a sentence."""
    ended = threading.Event()

    def watch() -> None:
        began, after_s = time.monotonic(), _FIRST_S
        while not ended.wait(began + after_s - time.monotonic()):
            tell(
                f"The evaluation has taken {after_s:.0f} s so far, and training waits for it{seen()}. If "
                "the environment does not end its episodes, evaluation.max_episode_steps does."
            )
            after_s *= 2

    thread = threading.Thread(target=watch, name="slow-evaluation", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
