"""`raytrain audit --on-every-node`: the same stretch on each node of a cluster, at the same time.

An actor without CPUs on each node starts a process there (see `retraining`) with a Ray of its own,
so that the nodes' CPUs stay free for runs. What the nodes computed is compared with the run's
records, and among the nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from raytrain.commands.audit import TrialAudit, audited, planned, require_still_there
from raytrain.commands.retraining import CannotAudit, Stretch, train_again_on_node
from raytrain.config import ExperimentConfig


@dataclass(frozen=True)
class NodeAudit:
    """What a node computed, or why that is not known."""

    node: str
    audit: TrialAudit | None
    problem: str | None = None

    @property
    def equal(self) -> bool:
        return self.audit is not None and self.audit.equal

    def to_dict(self) -> dict[str, Any]:
        found = {} if self.audit is None else self.audit.to_dict()
        return {**found, "node": self.node, "equal": self.equal, "problem": self.problem}


@dataclass(frozen=True)
class TrialOnNodes:
    """One trial, trained again from iteration `start` to `end` on each node."""

    trial: str
    start: int
    end: int
    nodes: tuple[NodeAudit, ...]

    @property
    def equal(self) -> bool:
        return all(node.equal for node in self.nodes)

    @property
    def agreeing(self) -> list[list[str]]:
        """The nodes that differ from the run, by what they computed: those of a list computed the
        same numbers."""
        by_numbers: dict[str, list[str]] = {}
        for node in self.nodes:
            if node.audit is not None and node.audit.difference is not None:
                numbers = repr((dict(node.audit.digests), node.audit.difference))
                by_numbers.setdefault(numbers, []).append(node.node)
        return list(by_numbers.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "trial": self.trial,
            "start": self.start,
            "end": self.end,
            "equal": self.equal,
            "nodes": [node.to_dict() for node in self.nodes],
            "agreeing": self.agreeing,
        }


@dataclass(frozen=True)
class AuditOnNodes:
    """The results of all trials."""

    experiment: str
    trials: tuple[TrialOnNodes, ...]

    @property
    def equal(self) -> bool:
        return all(trial.equal for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, but for numbers that are not finite."""
        return {
            "experiment": self.experiment,
            "equal": self.equal,
            "trials": [trial.to_dict() for trial in self.trials],
        }


def audit_on_every_node(
    experiment_dir: str, *, start: int | None, end: int | None, address: str | None
) -> AuditOnNodes:
    """As `audit`, on each node of the cluster at `address` (or RAY_ADDRESS).

    Raises:
        BadInput: there is no cluster, a node has other versions, or see `audit`.
    """
    from raytrain.cluster.preflight import NodeActors, alive_nodes, nodes_to_ask, same_versions
    from raytrain.driver.ray_session import cluster_address

    cluster = cluster_address(address)
    if cluster is None:
        raise CannotAudit(
            "`--on-every-node` needs a running cluster: give its address (--address HOST:PORT), or "
            "set RAY_ADDRESS. Without `--on-every-node`, this machine alone trains again."
        )
    place, stretches = planned(experiment_dir, start, end)
    with (
        _connected(cluster, stretches[0].config),
        NodeActors(nodes_to_ask(alive_nodes())) as actors,
    ):
        nodes = same_versions(actors)
        trials = [_on_nodes(actors, nodes, stretch) for stretch in stretches]
    return AuditOnNodes(str(place), tuple(trials))


def _on_nodes(actors: Any, nodes: Any, stretch: Stretch) -> TrialOnNodes:
    answers, problems = actors.answers_and_problems(
        nodes, train_again_on_node, lambda node: (stretch,)
    )
    by_node = {node: answer for node, (answer, _) in answers.items()}
    found = compared(
        stretch,
        {
            node.name: by_node.get(node, problems.get(node, "is about to leave the cluster"))
            for node in nodes
        },
    )
    if any(node.problem for node in found.nodes):
        require_still_there(stretch)
    return found


def compared(stretch: Stretch, answers: Mapping[str, Any]) -> TrialOnNodes:
    """`answers`: what a node computed, or why it could not, by the node's name."""
    nodes = [
        NodeAudit(name, None, answer)
        if isinstance(answer, str)
        else NodeAudit(name, audited(stretch, answer))
        for name, answer in answers.items()
    ]
    return TrialOnNodes(stretch.name, stretch.start, stretch.end, tuple(nodes))


@contextmanager
def _connected(address: str, config: ExperimentConfig) -> Iterator[None]:
    import ray

    from raytrain import _ray
    from raytrain._ray.cluster import in_a_job
    from raytrain.cluster.package import needs_files, pack
    from raytrain.driver.ray_session import cannot_connect, require_reachable
    from raytrain.driver.signals import sigterm_kept

    # Actors without GPUs would see none, and so would what they start.
    variables = {**_ray.local.worker_variables(), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    environment: dict[str, Any] = {"env_vars": variables}
    with ExitStack() as stack:
        stack.enter_context(_ray.local.no_instance_by_itself())
        if needs_files(config) and not in_a_job():
            archive = Path(stack.enter_context(TemporaryDirectory()), "run.zip")
            pack(config, archive)
            environment["working_dir"] = str(archive)
        require_reachable(address)
        try:
            with _ray.local.quiet_start(), sigterm_kept():
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env=environment,
                )
        except Exception as error:  # Ray raises bare Exceptions here.
            raise cannot_connect(address, error) from None
        stack.callback(ray.shutdown)
        yield
