"""A cloud's notice that a machine will be taken away, asked for on every node.

Ray hears of a preemption only where something tells it (`ray start --block` on SIGTERM, an autoscaler,
`ray drain-node`). A cloud tells the machine itself, at an address that only the machine can ask. So a
small actor on each node (`Sentry`, no CPU) asks there, by a URL or a command of the config's, and has
Ray drain its node when the answer is yes. From then on it is a draining node like any other.

    notice_url       yes: HTTP 200 and a body in which `notice_match` is found
    notice_command   yes: exit code 0 (run by `sh -c`, at most ten seconds)
"""

from __future__ import annotations

import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain import _ray

_ANSWER_S = 10.0
_LOOK_EVERY_S = 5.0


@dataclass(frozen=True)
class Notice:
    """What to ask, how often, and how many seconds a node has left after a yes."""

    command: str | None
    url: str | None
    headers: Mapping[str, str]
    match: str
    poll_s: float
    grace_s: float

    def given(self) -> bool:
        """Ask once. No answer is no notice."""
        if self.command is not None and self._by_command():
            return True
        return self.url is not None and self._by_url()

    def _by_command(self) -> bool:
        try:
            done = subprocess.run(
                ["sh", "-c", str(self.command)],
                capture_output=True,
                timeout=_ANSWER_S,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def _by_url(self) -> bool:
        request = urllib.request.Request(str(self.url), headers=dict(self.headers))
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
                return bool(re.search(self.match, answer.read().decode(errors="replace")))
        except (urllib.error.URLError, OSError):
            return False


class Sentry:
    """On one node: asks until there is a notice, then has the node drained."""

    def watch(self, notice: Notice) -> None:
        while not notice.given():
            time.sleep(notice.poll_s)
        node = ray.get_runtime_context().get_node_id()
        _ray.cluster.drain_node(node, "The cloud gave notice to this machine.", notice.grace_s)


class Sentries:
    """One on each node of the cluster; `post` again and again, as nodes come and go."""

    def __init__(self, notice: Notice | None) -> None:
        self._notice = notice
        self._posted: dict[str, tuple[Any, Any]] = {}
        self._looked = -_LOOK_EVERY_S

    def post(self) -> None:
        now = time.monotonic()
        if self._notice is None or now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self._posted = {node: each for node, each in self._posted.items() if node in alive}
        for node, (_, watching) in list(self._posted.items()):
            if _failed(watching):  # Killed: another takes its post.
                del self._posted[node]
        draining = _ray.cluster.draining_nodes()
        for node in alive - self._posted.keys() - draining.keys():
            strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
            sentry = ray.remote(Sentry).options(num_cpus=0, scheduling_strategy=strategy).remote()
            self._posted[node] = (sentry, sentry.watch.remote(self._notice))


def _failed(reference: Any) -> bool:
    done, _ = ray.wait([reference], timeout=0)
    if not done:
        return False
    try:
        ray.get(reference)
    except RayError:
        return True
    return False
