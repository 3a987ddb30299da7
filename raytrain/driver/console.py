"""What a person sees while a run trains. Everything goes to stderr; stdout stays free for --json.

At a terminal, one live line a trial, and sentences for what happens above it:

    cartpole_00000  84,000 of 200,000 steps (42%)  return 312.4 over 100 episodes  5,210 steps/s
                    22s left  checkpoint 20 (4s ago)  survived 1 failure

Elsewhere (a log file, a CI job) the same line now and then, without control characters.
"""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from raytrain.records.metrics import over_episodes
from raytrain.storage.escapes import printable

_SMOOTHING = 0.3  # weight of the newest iteration in the rate
_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-_])")
_STYLES = {"info": "", "warning": "yellow", "error": "red"}


@dataclass(frozen=True)
class StopTotals:
    """Where the run ends; the first that is reached counts. None: no such criterion."""

    timesteps: float | None = None
    iterations: float | None = None
    seconds: float | None = None
    episode_return_mean: float | None = None


@dataclass(frozen=True)
class _Return:
    """The mean return of `episodes` episodes (None: not known), at most `window` of them."""

    mean: float
    episodes: int | None = None
    window: int | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> _Return | None:
        """As the stop looks at it; that of the iteration in a row that does not say. None if no episode
        has ended."""
        window, count = _value(row, "stop/window"), _value(row, "stop/episodes")
        where = "env_runners" if window is None else "stop"
        mean = _number(row, f"{where}/episode_return_mean", math.nan)
        if math.isnan(mean):
            return None
        return cls(mean, None if count is None else int(count), window)

    def text(self, target: float | None) -> str:
        of = "" if target is None else f" of {target:,.10g}"
        full = self.window is None or self.episodes is None or self.episodes >= self.window
        over = over_episodes(self.episodes)
        if target is not None and not full:
            over = f" over {self.episodes} of {self.window} episodes"
        return f"return {self.mean:,.1f}{of}{over}"


@dataclass(frozen=True)
class _Point:
    """How far a trial is, at a moment of the clock."""

    moment: float
    timesteps: float
    iterations: float
    seconds: float

    def per_second(self, earlier: _Point) -> tuple[float, float]:
        elapsed = max(self.moment - earlier.moment, 1e-9)
        steps, iterations = self.timesteps - earlier.timesteps, self.iterations - earlier.iterations
        return steps / elapsed, iterations / elapsed


@dataclass
class _Trial:
    name: str
    stop: StopTotals
    point: _Point
    measured: (
        bool  # whether `point` is where this attempt was, so that a rate can be counted from it
    )
    rate: tuple[float, float] | None = None  # timesteps and iterations a second, this attempt
    episode_return: _Return | None = None
    stage: str | None = None
    checkpoint: int | None = None
    checkpoint_at: float = 0.0
    failures: int = 0
    survived: str = ""
    printed_at: float = -math.inf
    unprinted: bool = False
    said: set[str] = field(default_factory=set)


class ConsoleReporter:
    """Plain object; whoever knows of the trials' progress calls it, from one thread.

    `clock` gives seconds. It can be pickled: the terminal is opened at the first message.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        interval_s: float = 15.0,
    ) -> None:
        self._given = console
        self._console: Console | None = None
        self._clock = clock
        self._interval_s = interval_s
        self._trials: dict[str, _Trial] = {}
        self._live: Live | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_given": None, "_console": None, "_live": None}

    def started(
        self,
        trial: str,
        *,
        stop: StopTotals,
        iteration: int | None = None,
        timesteps: float | None = None,
        seconds: float | None = None,
        checkpoint: int | None = None,
        failures: int = 0,
        survived: str = "",
    ) -> None:
        """A new attempt of a trial begins, and the rate is measured anew: from the counters given, or,
        if `iteration` and `timesteps` are not, from the attempt's first result. `survived` tells the
        losses so far in words, and is shown instead of `failures`."""
        now = self._clock()
        known = self._trials.get(trial)
        point = _Point(now, timesteps or 0.0, iteration or 0, seconds or 0.0)
        given = iteration is not None and timesteps is not None
        state = _Trial(trial, stop, point, measured=given, failures=failures, survived=survived)
        if known is not None:
            if not given:
                # The line stands still until the first result says where the attempt goes on.
                state.point = known.point
            state.failures = max(failures, known.failures)
            state.survived = survived or known.survived
            state.episode_return, state.stage = known.episode_return, known.stage
            state.checkpoint, state.checkpoint_at = known.checkpoint, known.checkpoint_at
        if checkpoint is not None and checkpoint != state.checkpoint:
            state.checkpoint, state.checkpoint_at = checkpoint, now
        self._trials[trial] = state
        if known is None and iteration:
            self.event(trial, "info", f"continues after iteration {iteration:,}")
        self._draw()

    def result(self, trial: str, row: Mapping[str, Any]) -> None:
        """An iteration's result, nested as RLlib reports it or flat."""
        state = self._state(trial)
        now = _Point(
            self._clock(),
            _number(row, "num_env_steps_sampled_lifetime", state.point.timesteps),
            _number(row, "training_iteration", state.point.iterations),
            _number(row, "time_total_s", state.point.seconds),
        )
        if state.measured:
            fresh = now.per_second(state.point)
            state.rate = fresh if state.rate is None else _smoothed(state.rate, fresh)
        state.point, state.measured = now, True
        state.episode_return = _Return.of(row) or state.episode_return
        stage = _value(row, "stage")
        if isinstance(stage, str):
            index, of = _value(row, "curriculum/stage"), _value(row, "curriculum/stages")
            state.stage = f"{stage} ({index} of {of})" if index is not None else stage
        self._progress(state)

    def checkpointed(self, trial: str, iteration: int) -> None:
        """A checkpoint was committed."""
        state = self._state(trial)
        state.checkpoint, state.checkpoint_at = iteration, self._clock()
        self._draw()

    def event(self, trial: str, level: str, message: str) -> None:
        """Say a sentence, the same one again only after a failure. Level: info, warning, error."""
        state = self._trials.get(trial)
        if state is not None:
            if message in state.said:
                return
            state.said.add(message)
        message = _plain(message)
        self._say(f"{trial}: {message}", _STYLES[level])

    def failed(
        self, trial: str, message: str, *, failures: int, will_retry: bool, survived: str = ""
    ) -> None:
        """The present attempt of a trial ended; `failures` so far, this one included (`survived`: as for
        `started`)."""
        state = self._state(trial)
        state.failures, state.survived, state.rate = failures, survived, None
        state.said.clear()
        message = _plain(message)
        if not will_retry:
            self._say(f"{trial}: failed: {message}", "red")
        elif state.checkpoint is None:
            self._say(f"{trial}: {message}; begins again", "yellow")
        else:
            text = f"{trial}: {message}; continues from checkpoint {state.checkpoint:,}"
            self._say(text, "yellow")
        self._draw()

    def _state(self, trial: str) -> _Trial:
        """A trial whose process could not be started has ended before it began, perhaps with checkpoints
        of an earlier start."""
        return self._trials.setdefault(
            trial, _Trial(trial, StopTotals(), _Point(self._clock(), 0.0, 0, 0.0), measured=False)
        )

    def finished(self, summary: str) -> None:
        """The run has ended: the last line of each trial, then `summary`."""
        self.close()
        if not self._output().is_terminal:
            for state in self._trials.values():
                if state.unprinted:
                    self._print_line(state)
        self._say(summary, "")

    def close(self) -> None:
        """Leave the live line as it stands. May be called at any time, and again."""
        if self._live is not None:
            live, self._live = self._live, None
            with self._if_anybody_reads():
                live.update(self._lines(), refresh=True)
                live.stop()

    def _output(self) -> Console:
        if self._console is None:
            self._console = self._given or Console(stderr=True)
        return self._console

    def _progress(self, state: _Trial) -> None:
        if self._output().is_terminal:
            self._draw()
            return
        state.unprinted = True
        if self._clock() - state.printed_at >= self._interval_s:
            self._print_line(state)

    def _print_line(self, state: _Trial) -> None:
        state.printed_at, state.unprinted = self._clock(), False
        self._say(self._line(state), "")

    @contextmanager
    def _if_anybody_reads(self) -> Iterator[None]:
        """The terminal may have been closed, or the reader of a pipe: the run goes on without them."""
        try:
            yield
        except OSError:
            # Rich keeps what it could not write, and would try it again with each line.
            self._console = Console(file=io.StringIO())
            self._live = None

    def _say(self, text: str, style: str) -> None:
        console = self._output()
        # Text, for a message may hold what looks like markup; a log line is never folded.
        line = Text(printable(text, lines=True), style=style)
        with self._if_anybody_reads():
            console.print(line, soft_wrap=not console.is_terminal, highlight=False)

    def _draw(self) -> None:
        console = self._output()
        if not console.is_terminal:
            return
        with self._if_anybody_reads():
            if self._live is not None:
                self._live.refresh()
                return
            # Only stderr is taken over: what is printed on stdout has to arrive there.
            self._live = Live(
                get_renderable=self._lines,
                console=console,
                refresh_per_second=2,
                redirect_stdout=False,
            )
            self._live.start()

    def _lines(self) -> Group:
        states = list(self._trials.values())
        return Group(
            *(
                Text(printable(self._line(each)), no_wrap=True, overflow="ellipsis")
                for each in states
            )
        )

    def _line(self, state: _Trial) -> str:
        parts = [state.name, _progress_text(state)]
        if state.stage is not None:
            parts.append(f"stage {state.stage}")
        if state.episode_return is not None:
            parts.append(state.episode_return.text(state.stop.episode_return_mean))
        if state.rate is not None:
            parts.append(f"{state.rate[0]:,.0f} steps/s")
        left = _seconds_left(state)
        if left is not None:
            parts.append(f"{duration(left)} left")
        if state.checkpoint is not None:
            age = duration(self._clock() - state.checkpoint_at)
            parts.append(f"checkpoint {state.checkpoint:,} ({age} ago)")
        if state.survived:
            parts.append(f"survived {state.survived}")
        elif state.failures:
            parts.append(f"survived {state.failures} failure{'s' * (state.failures > 1)}")
        return "  ".join(parts)


def _plain(message: str) -> str:
    """On one line and without the colours that errors from Ray's workers carry."""
    return " ".join(_ESCAPE.sub("", message).split())


def _value(row: Mapping[str, Any], key: str) -> Any:
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("/"):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _number(row: Mapping[str, Any], key: str, otherwise: float) -> float:
    value = _value(row, key)
    return otherwise if value is None else float(value)


def _smoothed(old: tuple[float, float], new: tuple[float, float]) -> tuple[float, float]:
    return (
        old[0] + _SMOOTHING * (new[0] - old[0]),
        old[1] + _SMOOTHING * (new[1] - old[1]),
    )


def _progress_text(state: _Trial) -> str:
    steps, stop = state.point.timesteps, state.stop
    if stop.timesteps:
        share = min(steps / stop.timesteps, 1.0)
        return f"{steps:,.0f} of {stop.timesteps:,.0f} steps ({math.floor(share * 100)}%)"
    if stop.iterations:
        done = f"iteration {state.point.iterations:,.0f} of {stop.iterations:,.0f}"
        return f"{done}  {steps:,.0f} steps"
    return f"{steps:,.0f} steps"


def _seconds_left(state: _Trial) -> float | None:
    """Until the first criterion whose end can be foreseen; a return's cannot."""
    if state.rate is None:
        return None
    stop, point, (steps, iterations) = state.stop, state.point, state.rate
    ends = [
        (stop.timesteps, point.timesteps, steps),
        (stop.iterations, point.iterations, iterations),
        (stop.seconds, point.seconds, 1.0),
    ]
    left = [
        max(total - done, 0.0) / rate
        for total, done, rate in ends
        if total is not None and rate > 0
    ]
    return min(left, default=None)


def duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h"
