"""Preemption notices of a cloud, polled on every node.

Ray learns of a preemption from `ray start --block` on SIGTERM, an autoscaler or `ray drain-node`. A
cloud announces it to the machine alone, at an address that only the machine can reach. So an actor
without CPUs on each node polls a URL or a command of the config, and drains its node in Ray when a
notice is there. From then on it is a draining node like any other.

    notice_url       notice: HTTP 200 and a body in which `notice_match` is found
    notice_command   notice: exit code 0 (run by `sh -c`, at most ten seconds)
"""

from __future__ import annotations

import re
import subprocess
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from raytrain import _ray
from raytrain.cluster.nodes import actor_on, address_of, nodes_alive

if TYPE_CHECKING:
    from raytrain.config.schema import Preemption

_ANSWER_S = 10.0
_LOOK_EVERY_S = 5.0


def notice_given(settings: Preemption) -> bool:
    """Poll once. No answer is no notice."""
    return (settings.notice_command is not None and _by_command(settings.notice_command)) or (
        settings.notice_url is not None and _by_url(settings.notice_url, settings)
    )


def _by_command(command: str) -> bool:
    try:
        done = subprocess.run(
            ["sh", "-c", command],
            capture_output=True,
            timeout=_ANSWER_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _by_url(url: str, settings: Preemption) -> bool:
    request = urllib.request.Request(url, headers=settings.notice_headers)
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
            body = answer.read().decode(errors="replace")
            return bool(re.search(settings.notice_match, body))
    except (urllib.error.URLError, OSError):
        return False


def drain_at_notice(settings: Preemption) -> None:
    """Poll until there is a notice, then drain this node."""
    while not notice_given(settings):
        time.sleep(settings.notice_every_s)
    node = ray.get_runtime_context().get_node_id()
    reason = "The cloud announced a preemption."
    _ray.cluster.drain_node(node, reason, settings.notice_grace_s)


class NoticePollers:
    """An actor on each node that polls; `update` starts those of new nodes."""

    def __init__(self, settings: Preemption) -> None:
        self._settings = settings
        self._pollers: dict[str, tuple[Any, Any]] = {}
        self._last_look = -_LOOK_EVERY_S

    def update(self) -> None:
        now = time.monotonic()
        polls = self._settings.notice_command or self._settings.notice_url
        if not polls or now - self._last_look < _LOOK_EVERY_S:
            return
        self._last_look = now
        alive = nodes_alive()
        self._pollers = {
            node: poller
            for node, poller in self._pollers.items()
            if node in alive and not _failed(poller[1])
        }
        for node in alive - self._pollers.keys() - _ray.cluster.draining_nodes().keys():
            actor = actor_on(node)
            self._pollers[node] = (actor, actor.call.remote(drain_at_notice, self._settings))


class DrainedNodes:
    """Nodes that are about to end, on a cloud's notice or at another's request."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def new(self) -> list[tuple[str, float | None]]:
        """Address and end (seconds since 1970; None if open) of those that an earlier call did not
        return. None while the head does not answer."""
        try:
            draining = _ray.cluster.draining_nodes()
            new = sorted(draining.keys() - self._known)
            found = [(address_of(node), draining[node]) for node in new]
        except RayError:
            return []
        self._known |= draining.keys()
        return found


def _failed(reference: Any) -> bool:
    done, _ = ray.wait([reference], timeout=0)
    try:
        ray.get(done)
    except RayError:
        return True
    return False
