"""Progress of a run on stderr; stdout stays free for --json.

At a terminal: one live line per trial, and messages above it.

    cartpole_00000  84,000 of 200,000 steps (42%)  return 312.4 over 100 episodes  5,210 steps/s
                    22s left  checkpoint 20 (4s ago)  survived 1 failure

Elsewhere (a log file, a CI job): the same line every 15 s, without control characters.
"""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from raytrain.records.metrics import number_at, over_episodes
from raytrain.storage.escapes import printable

_KEYS = ("num_env_steps_sampled_lifetime", "training_iteration", "time_total_s")
_SMOOTHING = 0.3  # weight of the newest iteration in the rate
_LOG_EVERY_S = 15.0
_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-_])")
_STYLES = {"info": "", "warning": "yellow", "error": "red"}


@dataclass(frozen=True)
class StopTotals:
    """Where the run ends; the first criterion that is reached counts. None: no such criterion."""

    timesteps: float | None = None
    iterations: float | None = None
    seconds: float | None = None
    episode_return_mean: float | None = None


class _Counts(NamedTuple):
    """The counters of a trial, or how much they grow in a second."""

    timesteps: float = 0.0
    iterations: float = 0.0
    seconds: float = 0.0


@dataclass
class _Trial:
    name: str
    counts: _Counts = field(default_factory=_Counts)
    stop: StopTotals = field(default_factory=StopTotals)
    measured_at: float | None = None  # when `counts` were reported, if in this attempt
    rates: _Counts | None = None  # in this attempt
    episode_return: str = ""
    stage: str | None = None
    checkpoint: int | None = None
    checkpoint_at: float = 0.0
    survived: str = ""
    printed_at: float = -math.inf
    unprinted: bool = False
    messages: set[str] = field(default_factory=set)


class ConsoleReporter:
    """Shows the progress of trials; called from one thread. `clock` gives seconds."""

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._clock = clock
        self._trials: dict[str, _Trial] = {}
        self._live: Live | None = None

    def started(self, trial: str, *, stop: StopTotals, survived: str = "") -> None:
        """An attempt of a trial begins; its first result is where the rate is measured from.
        `survived`: the failures so far, in words."""
        state = self._state(trial)
        state.stop, state.measured_at, state.rates = stop, None, None
        state.survived = survived or state.survived
        state.printed_at, state.unprinted = -math.inf, False
        state.messages.clear()
        self._draw()

    def result(self, trial: str, row: Mapping[str, Any]) -> None:
        """An iteration's result, nested as RLlib reports it."""
        state = self._state(trial)
        now, before = self._clock(), state.counts
        state.counts = _Counts(
            *(float(row.get(key, count)) for key, count in zip(_KEYS, before, strict=True))
        )
        if state.measured_at is not None:
            elapsed = max(now - state.measured_at, 1e-9)
            rates = [(new - old) / elapsed for new, old in zip(state.counts, before, strict=True)]
            smoothed = zip(state.rates or rates, rates, strict=True)
            state.rates = _Counts(*(old + _SMOOTHING * (new - old) for old, new in smoothed))
        state.measured_at = now
        target = state.stop.episode_return_mean
        state.episode_return = _return_text(row, target) or state.episode_return
        stage = row.get("stage")
        if isinstance(stage, str):
            curriculum = row.get("curriculum")
            place = f" ({curriculum['stage']} of {curriculum['stages']})" if curriculum else ""
            state.stage = stage + place
        self._progress(state)

    def checkpointed(self, trial: str, iteration: int) -> None:
        """A checkpoint was committed."""
        state = self._state(trial)
        state.checkpoint, state.checkpoint_at = iteration, self._clock()
        self._draw()

    def event(self, trial: str, level: str, message: str) -> None:
        """Print a message, the same one again only after a failure. Level: info, warning, error."""
        state = self._trials.get(trial)
        if state is not None:
            if message in state.messages:
                return
            state.messages.add(message)
        self._print(f"{trial}: {_plain(message)}", _STYLES[level])

    def note(self, message: str, level: str = "info") -> None:
        """Print a message about the run as a whole."""
        self.event("raytrain", level, message)

    def failed(self, trial: str, message: str, *, will_retry: bool, survived: str = "") -> None:
        """The attempt of a trial ended. `survived`: the failures so far, this one included."""
        state = self._state(trial)
        state.survived, state.rates = survived, None
        state.messages.clear()
        message = _plain(message)
        saved = state.checkpoint
        what = "begins again" if saved is None else f"continues from checkpoint {saved:,}"
        text = f"{message}; {what}" if will_retry else f"failed: {message}"
        self._print(f"{trial}: {text}", "yellow" if will_retry else "red")
        self._draw()

    def finished(self, summary: str) -> None:
        """The run has ended: the last line of each trial, then `summary`."""
        self.close()
        if not self._output().is_terminal:
            for state in self._trials.values():
                if state.unprinted:
                    self._print_line(state)
        self._print(summary, "")

    def close(self) -> None:
        """Leave the live line as it stands. May be called at any time, and again."""
        if self._live is not None:
            live, self._live = self._live, None
            with self._ignoring_closed_output():
                live.update(self._lines(), refresh=True)
                live.stop()

    def _state(self, trial: str) -> _Trial:
        """Also of a trial that was never started here: its process may have failed to start."""
        return self._trials.setdefault(trial, _Trial(trial))

    def _output(self) -> Console:
        if self._console is None:
            self._console = Console(stderr=True)
        return self._console

    def _progress(self, state: _Trial) -> None:
        if self._output().is_terminal:
            self._draw()
            return
        state.unprinted = True
        if self._clock() - state.printed_at >= _LOG_EVERY_S:
            self._print_line(state)

    def _print_line(self, state: _Trial) -> None:
        state.printed_at, state.unprinted = self._clock(), False
        self._print(self._line(state), "")

    @contextmanager
    def _ignoring_closed_output(self) -> Iterator[None]:
        """If the terminal, or the reader of a pipe, is gone, the run continues without output."""
        try:
            yield
        except OSError:
            # Rich keeps what it could not write, and would try again with each line.
            self._console = Console(file=io.StringIO())
            self._live = None

    def _print(self, text: str, style: str) -> None:
        console = self._output()
        # Text: a message may contain what looks like markup. A line in a log is never folded.
        line = Text(printable(text, lines=True), style=style)
        with self._ignoring_closed_output():
            console.print(line, soft_wrap=not console.is_terminal, highlight=False)

    def _draw(self) -> None:
        console = self._output()
        if not console.is_terminal:
            return
        with self._ignoring_closed_output():
            if self._live is not None:
                self._live.refresh()
                return
            # Only stderr is redirected: what is printed on stdout has to arrive there.
            self._live = Live(
                get_renderable=self._lines,
                console=console,
                refresh_per_second=2,
                redirect_stdout=False,
            )
            self._live.start()

    def _lines(self) -> Group:
        lines = [printable(self._line(state)) for state in list(self._trials.values())]
        return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))

    def _line(self, state: _Trial) -> str:
        parts = [state.name, _progress_text(state)]
        if state.stage is not None:
            parts.append(f"stage {state.stage}")
        if state.episode_return:
            parts.append(state.episode_return)
        if state.rates is not None:
            parts.append(f"{state.rates.timesteps:,.0f} steps/s")
        left = _seconds_left(state)
        if left is not None:
            parts.append(f"{duration(left)} left")
        if state.checkpoint is not None:
            age = duration(self._clock() - state.checkpoint_at)
            parts.append(f"checkpoint {state.checkpoint:,} ({age} ago)")
        if state.survived:
            parts.append(f"survived {state.survived}")
        return "  ".join(parts)


def _plain(message: str) -> str:
    """On one line and without the colours that errors from Ray's workers carry."""
    return " ".join(_ESCAPE.sub("", message).split())


def _progress_text(state: _Trial) -> str:
    steps, stop = state.counts.timesteps, state.stop
    if stop.timesteps:
        share = min(steps / stop.timesteps, 1.0)
        return f"{steps:,.0f} of {stop.timesteps:,.0f} steps ({math.floor(share * 100)}%)"
    if stop.iterations:
        done = f"iteration {state.counts.iterations:,.0f} of {stop.iterations:,.0f}"
        return f"{done}  {steps:,.0f} steps"
    return f"{steps:,.0f} steps"


def _return_text(row: Mapping[str, Any], target: float | None) -> str:
    """The mean return over `stop.window`, or the iteration's if there is no window; empty if no
    episode has ended."""
    stop = row.get("stop", {})
    window, episodes = stop.get("window"), stop.get("episodes")
    where = "env_runners" if window is None else "stop"
    mean = number_at(row, f"{where}/episode_return_mean")
    if mean is None:
        return ""
    over = over_episodes(episodes)
    of = "" if target is None else f" of {target:,.10g}"
    if of and window is not None and episodes is not None and episodes < window:
        over = f" over {episodes} of {window} episodes"
    return f"return {mean:,.1f}{of}{over}"


def _seconds_left(state: _Trial) -> float | None:
    """Until the first criterion whose end can be predicted; that of a return cannot."""
    if state.rates is None:
        return None
    totals = (state.stop.timesteps, state.stop.iterations, state.stop.seconds)
    rates = state.rates._replace(seconds=1.0)
    left = [
        max(total - done, 0.0) / rate
        for total, done, rate in zip(totals, state.counts, rates, strict=True)
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
