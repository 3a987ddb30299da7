"""CartPole whose factory arms the process that calls it: at a given call of a given function of
raytrain it kills what the test wants to see killed.

STRUCK_CARTPOLE names a directory with `strikes.json`: a list of strikes, each of which strikes once
in the life of the directory. The driver makes the environment when it looks how it can be saved, a
trial when it starts, so both are armed before they do anything that counts."""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import psutil

PLACE = "STRUCK_CARTPOLE"
_armed = False


@dataclass(frozen=True)
class Strike:
    """Strike in a `process` ("driver" or "trial") at call number `call` of the function `at`
    ("module:name" or "module:Class.name"), counted in each process, `after` it or before; only
    calls with `argument` among their positional ones count. `victim`: "driver", "trial"
    (SIGKILL), "all" (SIGKILL to the driver and all of its processes), or "interrupt" (SIGTERM
    to the driver)."""

    process: str
    at: str
    victim: str
    call: int = 1
    after: bool = False
    argument: str | None = None


def lay(place: Path, strikes: list[Strike]) -> None:
    """Write down what is to strike."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "strikes.json").write_text(json.dumps([asdict(strike) for strike in strikes]))


def struck(place: Path) -> int:
    return len(list(place.glob("*.struck")))


def make() -> gym.Env[Any, Any]:
    global _armed  # noqa: PLW0603 (a process is armed once)
    place = os.environ.get(PLACE)
    if place and not _armed:
        _armed = True
        _arm(Path(place))
    return gym.make("CartPole-v1")


def _arm(place: Path) -> None:
    process = _this_process()
    if process == "driver":
        (place / "driver.pid").write_text(str(os.getpid()))
    for number, values in enumerate(json.loads((place / "strikes.json").read_text())):
        strike = Strike(**values)
        if strike.process == process:
            _wrap(strike, place / f"{number}.struck")


def _this_process() -> str | None:
    import ray

    if ray.is_initialized():
        return "trial" if ray.get_runtime_context().get_actor_id() else None
    return "driver" if sys.argv[1:2] == ["train"] else None


def _wrap(strike: Strike, marker: Path) -> None:
    module, _, path = strike.at.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0
    # Ray makes a class of its own for an actor, with copies of all methods.
    owners = [owner, *(each for each in _subclasses(owner) if name in vars(each))]

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if strike.argument is None or strike.argument in args:
            calls += 1
        due = calls == strike.call and not marker.exists()
        if due and not strike.after:
            _strike(strike.victim, marker)
        result = function(*args, **kwargs)
        if due and strike.after:
            _strike(strike.victim, marker)
        return result

    for each in owners:
        setattr(each, name, wrapped)


def _subclasses(owner: Any) -> list[type]:
    found: list[type] = list(owner.__subclasses__()) if isinstance(owner, type) else []
    return [*found, *(below for each in found for below in _subclasses(each))]


def _strike(victim: str, marker: Path) -> None:
    marker.touch()
    driver = int((marker.parent / "driver.pid").read_text())
    if victim == "interrupt":
        os.kill(driver, signal.SIGTERM)
    elif victim == "trial":
        os.kill(os.getpid(), signal.SIGKILL)
    elif victim == "driver":
        os.kill(driver, signal.SIGKILL)
        if driver != os.getpid():
            signal.pause()  # This process ends when its node does.
    else:
        everything = psutil.Process(driver).children(recursive=True)
        for process in [psutil.Process(driver), *everything]:
            if process.pid != os.getpid():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        os.kill(os.getpid(), signal.SIGKILL)
