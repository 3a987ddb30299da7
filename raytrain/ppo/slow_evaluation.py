"""Reports an evaluation that takes long, after 30 s and whenever it took twice as long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_FIRST_S = 30.0


@contextmanager
def reporting_if_slow(tell: Callable[[str], None], episodes: Callable[[], str]) -> Iterator[None]:
    """Call `tell` from another thread while the body, an evaluation, runs. `episodes` returns what
    is known of its episodes, as the end of a sentence."""
    ended = threading.Event()

    def watch() -> None:
        began, after_s = time.monotonic(), _FIRST_S
        while not ended.wait(began + after_s - time.monotonic()):
            tell(
                f"The evaluation has taken {after_s:.0f} s so far, and training waits for it"
                f"{episodes()}. If the environment does not end its episodes, set "
                "evaluation.max_episode_steps."
            )
            after_s *= 2

    thread = threading.Thread(target=watch, name="slow-evaluation", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
