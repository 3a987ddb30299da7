"""The trial: `ExactPPO` as Tune runs it, with its directory on storage.

Tune calls `train()` again and again in this actor, and `save()` when a result asks for it. Here

    start        find the newest good checkpoint on storage, whatever Tune remembers, and restore it
    train()      one iteration; its row and episodes are recorded; if a checkpoint is due, it is
                 staged, and committed in the background of the next iteration; a finished commit is
                 reported to Tune
    save()       returns the newest committed checkpoint to Tune (Tune never copies anything)
    interrupt()  called by the driver on Ctrl-C and SIGTERM: commit this very iteration

A thread watches for nodes that are about to end and for parts of the work that hang (`watchdog`).
When a node with a part of the trial is about to end, the trial commits its present iteration and
reports that it leaves; Tune then starts it again on the remaining nodes.

An error of the start is kept and raised by the first `train()`, where Tune keeps its type.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import ray
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.utils.annotations import override
from ray.tune import PlacementGroupFactory
from ray.tune.result import SHOULD_CHECKPOINT, TRIAL_INFO

from raytrain import _ray
from raytrain._ray import actors as _ray_actors
from raytrain._ray.actor_signals import spare_this_actor
from raytrain.arithmetic.settings import use_threads
from raytrain.checkpoint import (
    Code,
    Entry,
    ExactLost,
    ExperimentFile,
    Manifest,
    Parent,
    RetentionPolicy,
    is_of_run,
    read_manifest,
)
from raytrain.checkpoint.experiment_file import require_key
from raytrain.checkpoint.lineage import FORKED_FROM
from raytrain.cluster.adaptive_timeout import AdaptiveTimeout
from raytrain.cluster.failures import able_to_travel
from raytrain.cluster.nodes import nodes_alive
from raytrain.config import (
    ALGORITHM_SECTIONS,
    ExperimentConfig,
    config_digest,
    config_from_dict,
    has_digest,
    to_algorithm_config,
    with_trial_values,
)
from raytrain.config.run_code import ProcessCode, RunCode, code_here, named
from raytrain.ppo.algorithm import ExactPPO, NonFinite, algorithm_arguments, prepare
from raytrain.ppo.stopping import Progress, StopRule
from raytrain.records.metrics import EVALUATION, Averaged, averaged
from raytrain.rollout.runner_pool import RunnerRules
from raytrain.storage import Location
from raytrain.storage.clocks import MachineSleep
from raytrain.trial.arithmetic import TrialArithmetic, settings_of
from raytrain.trial.changed_code import changes_since
from raytrain.trial.directory import TrialDirectory
from raytrain.trial.fencing import Superseded
from raytrain.trial.last_failure import TRACEBACK_FILE, write_traceback
from raytrain.trial.missing_metrics import MissingMetrics, named_metrics
from raytrain.trial.repeated_iterations import EXACT, RepeatedIterations
from raytrain.trial.saving import REPORT, CheckpointSaver
from raytrain.trial.score import best_policy, labelled, report_score
from raytrain.trial.watchdog import Watchdog
from raytrain.versions import versions

PARAMS_FILE = "params.json"
"""Tune's name for the file with the trial's own values of the algorithm's sections."""

_INTERRUPT_PAUSE_S = 0.2

_ALMOST_NOTHING = {"memory": 1}
"""Reserved for a process that asks for nothing: Ray has no bundle without resources."""


def stay_key(trial_id: str) -> str:
    """The key of the message that a trial may stay on a node that computes differently."""
    return f"stay/{trial_id}"


def stall_key(trial_id: str) -> str:
    """The key under which a trial publishes a message that the driver shows at once."""
    return f"tell/{trial_id}"


class TrialPPO(ExactPPO):
    """See the module's docstring. `config` is one point of the param space: algorithm sections."""

    def __init__(self, config: dict[str, Any] | None = None, **kwargs: Any) -> None:
        spare_this_actor()
        given = dict(config or {})
        storage = kwargs["storage"]
        self._given = {key: value for key, value in given.items() if not key.startswith("__")}
        self._tune_info = given.get(TRIAL_INFO)
        fs = storage.storage_filesystem
        experiment_place = Location(fs, storage.experiment_fs_path)
        self._experiment = ExperimentFile.existing(experiment_place)
        require_key(self._experiment, experiment_place)
        self._config = with_trial_values(self._experiment.config, self._given)
        # Before the environments are made, which imports it.
        self._code = _present_code(self._experiment, self._config)
        self._place = Location(fs, storage.trial_fs_path)
        self._failed_start: Exception | None = None
        self._interrupted = False
        self._broken: str | None = None
        self._done_with: str | None = None
        self._settings = settings_of(self._experiment, self._config)
        threads = None if self._settings is None else self._settings.threads
        if threads is not None:
            use_threads(threads["trial"])
        super().__init__(
            **algorithm_arguments(self._config, self._experiment.snapshot, threads),
            rules=RunnerRules.of(self._config),
            code=ProcessCode(self._code, self._config.import_path),
            **kwargs,
        )

    @classmethod
    @override(PPO)
    def default_resource_request(cls, config: Any) -> Any:
        sections = {key: value for key, value in dict(config).items() if not key.startswith("__")}
        # Tune's parameters have no `stop`, and schedules may be relative to its timesteps.
        frame = {"name": "resources", "stop": {"timesteps": 1}}
        return cls.resources_of(config_from_dict({**frame, **sections}))

    @classmethod
    def resources_of(cls, config: ExperimentConfig) -> PlacementGroupFactory:
        """The resources of a trial. Raises what RLlib does not accept in the config."""
        algorithm = prepare(to_algorithm_config(config))
        algorithm.copy(copy_frozen=False).validate()
        # Reserved are the resources that the trial needs; further env runners take free ones.
        reserved, _ = RunnerRules.of(config).actors(algorithm.num_env_runners)
        algorithm.env_runners(num_env_runners=reserved, rollout_fragment_length="auto")
        main = config.resources
        if not (main.num_cpus_for_main_process or main.custom_resources_for_main_process):
            algorithm.resources(custom_resources_for_main_process=_ALMOST_NOTHING)
        request = PPO.default_resource_request(algorithm.to_dict())
        # RLlib counts bundles, so an actor that asks for nothing needs one as well.
        bundles = [bundle or _ALMOST_NOTHING for bundle in request.bundles]
        return PlacementGroupFactory(bundles, request.strategy)

    # -- start -----------------------------------------------------------------------------------

    @override(ExactPPO)
    def setup(self, config: AlgorithmConfig) -> None:
        self._trial_info = self._tune_info
        settings = self._config.checkpoint
        self._directory = TrialDirectory(
            self._place,
            retention=RetentionPolicy(settings.num_to_keep),
            best=best_policy(self._config),
            max_failed_saves=settings.max_failed_saves,
            node=ray.get_runtime_context().get_node_id(),
            node_is_gone=lambda node: node not in nodes_alive(),
            is_own=lambda manifest: is_of_run(manifest, self._experiment.run_id, self._place),
        )
        tolerance = self._config.fault_tolerance
        self._saver = CheckpointSaver(
            self, self._directory, settings, describe=self._manifest, measure=self._saving
        )
        self._watchdog = Watchdog(
            self._place,
            partial(AdaptiveTimeout, tolerance.hang_factor, tolerance.hang_floor_s),
            actors=partial(remote_actors, self),
            save_kept=self._saver.commit_kept,
        )
        self._stop_rule = StopRule.of(self._config.stop)
        self._missing_metrics = MissingMetrics()
        self._exact_lost = self._inexact_from_the_start()
        self._arithmetic = TrialArithmetic(self._config, self._settings, self)
        self._started, self._lost_in_start = False, list[str]()
        self._returned_at: float | None = None
        self._machine_sleep = MachineSleep()
        try:
            entry = self._directory.open()
            self._watchdog.attempt = self._directory.attempt
            self._watchdog.start()
            values = self._config.to_dict()
            own = {key: values[key] for key in ("seed", *ALGORITHM_SECTIONS) if key in values}
            self._place.write_atomic(PARAMS_FILE, json.dumps(own, indent=1).encode())
            with self.phase("start"):
                super().setup(config)
                self._begin() if entry is None else self._continue_from(entry)
                for message in self._arithmetic.unknown_kernels():
                    self.tell(message)
                self._started = True
                for why in self._lost_in_start:
                    self._lose_exactness(why, self.iteration)
        except Exception as error:  # Of any kind: see the module's docstring.
            self._failed_start = self._watchdog.explain(error)

    def _continue_from(self, entry: Entry) -> None:
        manifest = entry.good_manifest
        if manifest.exact_lost is not None:
            self._exact_lost = manifest.exact_lost
        elif self._exact_lost is not None:
            self.tell(f"This run is not exact: {self._exact_lost.why}.")
        if changes := changes_since(manifest, self._code):
            self._lose_exactness(named(changes), manifest.iteration)
        is_exact = self._exact_lost is None
        other = self._arithmetic.compare(manifest.arithmetic, self._told_to_stay, exact=is_exact)
        if other is not None:
            self._lose_exactness(other, manifest.iteration)
        restored = self.load_exact(self._directory.fetch(entry.location))
        self._time_total = self._saver.saved_at_s = manifest.time_s
        self._directory.last_saved = manifest
        self._directory.last_saved_name = entry.path
        self._directory.open_records(
            resume_from=manifest.iteration,
            next_episode=manifest.episodes,
            starts_after=int((self._experiment.fork or {}).get("iteration", 0)),
        )
        if not has_digest(self._config, manifest.config_digest):
            self._directory.repeated = RepeatedIterations()  # A later stage is another one now.
        if restored.exact_lost is not None:
            self._lose_exactness(restored.exact_lost, manifest.iteration)
        self.tell(f"Continued from {entry.path} (iteration {manifest.iteration}, {entry.kind}).")
        self._saver.metrics = dict(manifest.metrics)
        self._done_with = self._reached(self._saver.metrics)
        if self._done_with is None and manifest.kind == "final":
            # Without the recent episodes, the final result itself says whether the run had ended.
            self._done_with = self._stop_rule.reached(self._progress(), self._saver.metrics)

    def _told_to_stay(self) -> bool:
        """Whether the driver has found no other node for the trial."""
        return _ray_actors.take_message(stay_key(str(self.trial_id))) is not None

    def _begin(self) -> None:
        """Begin at iteration 0, or at the iteration of a fork's parent."""
        self._arithmetic.begin()
        fork = self._experiment.fork
        if fork is None:
            self._directory.open_records(resume_from=0, next_episode=0)
            return
        source = self._directory.fetch(self._place.parent / FORKED_FROM)
        if fork["weights_only"]:
            self.load_policy_state(source)
        else:
            self.load_exact(source, fork=True)
            manifest = read_manifest(Location.of(source))
            self._time_total = self._saver.saved_at_s = manifest.time_s
        at, episodes = int(fork["iteration"]), int(fork["episodes"])
        self._directory.open_records(resume_from=at, next_episode=episodes, starts_after=at)
        parent = "{experiment}, {trial}, {checkpoint}".format(**(self._experiment.parent or {}))
        what = "the weights and filters" if fork["weights_only"] else f"iteration {at}"
        self.tell(f"Forked: begins with {what} of {parent}.")

    def _inexact_from_the_start(self) -> ExactLost | None:
        if not self._experiment.snapshot["exact"]:
            return ExactLost(str(self._experiment.snapshot["reason"]), 0)
        if self._experiment.snapshot.get("hash_order") and not self._has_hash_order():
            return ExactLost(
                "the environment depends on the hash order of strings, and Ray was started without "
                "the run's PYTHONHASHSEED",
                0,
            )
        if torch.cuda.is_available() and not self._config.debugging.deterministic:
            return ExactLost("debugging.deterministic is off on a CUDA machine", 0)
        return None

    def _has_hash_order(self) -> bool:
        """Whether this process has the run's. Not if another program has started Ray."""
        expected = None if self._settings is None else str(self._settings.hash_seed)
        return os.environ.get("PYTHONHASHSEED") == expected

    def _lose_exactness(self, why: str, iteration: int) -> None:
        if self._exact_lost is None:
            self._exact_lost = ExactLost(why, iteration)
            self.tell(f"From iteration {iteration} on this run is not exact any more: {why}.")

    # -- an iteration ----------------------------------------------------------------------------

    @override(PPO)
    def train(self) -> dict[str, Any]:
        if self._interrupted:
            # The driver is about to end this process, so an iteration now would be lost.
            time.sleep(_INTERRUPT_PAUSE_S)
            known = self._last_result or self._saver.metrics
            return {**self.get_auto_filled_metrics(time_this_iter=0.0), **known}
        iteration = self.iteration + 1
        try:
            if self._failed_start is not None:
                raise self._failed_start
            if self._done_with is not None:
                return self._end_without_training()
            return self._train_once()
        except Exception as error:  # Of any kind: kept, and always raised again.
            raised = self._to_be_raised(iteration, error)
            self._broken = str(raised)
            raise raised from error.__cause__

    def _to_be_raised(self, iteration: int, error: Exception) -> Exception:
        raised = self._watchdog.explain(error)
        if getattr(raised, "may_retry", True) and not hasattr(raised, "loss"):
            raised = self._directory.note_failure(iteration, raised) or able_to_travel(raised)
        if not isinstance(raised, Superseded) and write_traceback(self._place, iteration, error):
            raised.traceback_in = TRACEBACK_FILE  # type: ignore[attr-defined]
        return raised

    def _train_once(self) -> dict[str, Any]:
        if self._returned_at is not None:
            self.stopwatch.add("tune", time.perf_counter() - self._returned_at)
        before = self._progress()
        result: dict[str, Any] = super().train()
        result["config"] = self._given
        try:
            self.raise_if_not_finite(result)
        except NonFinite as error:
            saved = self._saver.save_broken(f"error_{self.iteration:06d}", result)
            raise NonFinite(f"{error} {saved}") from None
        slept = self._machine_sleep.seconds()
        if slept:
            self.tell(
                f"The machine slept for {slept:.0f} s. This time does not count as training time, "
                "nor for stop.time_s and checkpoint.every_seconds."
            )
        now = self._progress()
        self._stop_rule.report(result, self.recent)
        report_score(result, self._averaged_score(result))
        named = named_metrics(self._config, self.curriculum.stage)
        for message in self._missing_metrics.messages(named, result, self.recent):
            self.tell(message)
        self._compare_with_before()
        row = {key: value for key, value in result.items() if key != "config"}
        row[EXACT] = self._exact_lost is None
        stage = self.curriculum.stage.name or None
        self._directory.record(row, self.take_finished_episodes(), now.timesteps, stage)
        ended = self._reached(result)
        stage_ended = self.curriculum.ended
        if stage_ended is not None:
            self._saver.save_surely("stage", result)
            name = self.curriculum.stage.name
            self.tell(f"Stage {name} ended ({stage_ended}); it is kept in stages/{name}.")
        if ended is not None:
            self._saver.save_surely("final", result)
            result["done"] = True
        elif stage_ended is not None:
            self._saver.saved_at_s = now.time_s
        elif self._saver.is_due(now, before) or self._evaluated_best(result):
            self._saver.saved_at_s = now.time_s
            self._saver.save("periodic", result)
        report = self._report(result, ended)
        if self._watchdog.leaving is not None and ended is None:
            report[REPORT]["leaving"] = {
                "address": self._watchdog.leaving.address,
                "saved": self.interrupt()[1],
            }
        else:
            self._saver.keep(result)
        self._returned_at = time.perf_counter()
        return report

    def _compare_with_before(self) -> None:
        different = self._directory.repeated.difference(self.iteration, self.weights_digest)
        if different is not None:
            self._lose_exactness(different, self.iteration - 1)

    def _end_without_training(self) -> dict[str, Any]:
        """End a restored run that is past its end, with the result that it had."""
        # Tune adds up the times of iterations, so each result needs one.
        lasted = float(self._saver.metrics.get("time_this_iter_s") or 0.0)
        filled = self.get_auto_filled_metrics(time_this_iter=lasted)
        result = {**self._saver.metrics, **filled, "done": True}
        result.update(config=self._given, training_iteration=self.iteration)
        saved = self._directory.last_saved
        if saved is None or saved.kind != "final":
            self._saver.save_surely("final", result)
        return self._report(result, self._done_with)

    def _report(self, result: dict[str, Any], ended: str | None) -> dict[str, Any]:
        outcomes = self._directory.poll()
        saved = self._directory.last_saved
        result[REPORT] = {
            "messages": self._directory.take_messages(),
            "attempt": self._directory.attempt,
            "checkpoint_iteration": saved.iteration if saved else None,
            "exact": self._exact_lost is None,
            "arithmetic": self._arithmetic.entry,
            "deleted": [name for outcome in outcomes for name in outcome.deleted],
            "ended": ended,
            "timesteps": self.env_steps_sampled,
        }
        if result.get("done") or any(outcome.ok for outcome in outcomes):
            result[SHOULD_CHECKPOINT] = True
        return result

    @override(PPO)
    def save(self, checkpoint_dir: str | None = None) -> Any:
        """The newest committed checkpoint, in the form that Tune expects."""
        saved = self._directory.last_saved
        assert saved is not None, "a result asks for a save only when there is a checkpoint"
        place = self._place / self._directory.last_saved_name
        metrics = {**saved.metrics, "training_iteration": saved.iteration}
        return _ray.tune.training_result(place.path, place.fs, metrics)

    @override(PPO)
    def restore(self, checkpoint_path: Any) -> None:
        """Do nothing: the start has found and restored the newest good checkpoint itself."""

    def interrupt(self) -> tuple[bool, str]:
        """Commit this iteration's state and train no further.

        Returns whether nothing is lost, and what was saved or why it was not.
        """
        self._interrupted = True
        if self._failed_start is not None or self.iteration == 0:
            return True, "nothing was trained yet"
        if self._broken is not None:
            # The state is half way through an iteration and must not be saved.
            return False, f"its iteration failed: {self._broken}"
        return self._saver.save_interrupted(
            self.iteration, self._last_result or self._saver.metrics
        )

    @override(ExactPPO)
    def phase(self, name: str) -> AbstractContextManager[None]:
        return self._watchdog.phase(name)

    @override(ExactPPO)
    def tell(self, message: str) -> None:
        self._directory.tell("trial", message, iteration=self.iteration)

    @override(ExactPPO)
    def tell_now(self, message: str) -> None:
        self._directory.note("trial", message, iteration=self.iteration)
        _ray_actors.leave_message(stall_key(str(self.trial_id)), message)

    @override(ExactPPO)
    def lost_exactness(self, why: str) -> None:
        if self._started:
            self._lose_exactness(why, self.iteration + 1)
        else:
            self._lost_in_start.append(why)

    @override(ExactPPO)
    def cleanup(self) -> None:
        self._watchdog.close()
        super().cleanup()
        self._directory.close()

    # -- inside ----------------------------------------------------------------------------------

    def _progress(self) -> Progress:
        return Progress(
            self.iteration, self.env_steps_sampled, self.episodes_finished, self._time_total
        )

    def _reached(self, result: Mapping[str, Any]) -> str | None:
        """The criterion that ends the run with this result, if any."""
        if self.curriculum.over:
            return f"the curriculum's last stage ({self.curriculum.ended})"
        return self._stop_rule.reached(self._progress(), result, self.recent)

    def _score(self, result: Mapping[str, Any]) -> float | None:
        score = self._averaged_score(result)
        return None if score is None else score.value

    def _averaged_score(self, result: Mapping[str, Any]) -> Averaged | None:
        settings = self._config.checkpoint
        return averaged(result, settings.score, self.recent, settings.score_window)

    def _evaluated_best(self, result: Mapping[str, Any]) -> bool:
        """Whether this very iteration was evaluated, and better than the checkpoint `best`.

        Other checkpoints have no such score, and the next iteration changes the weights.
        """
        if not self._config.checkpoint.score.startswith(EVALUATION):
            return False
        return self._directory.would_be_best(self._score(result), self.curriculum.stage.name)

    @contextmanager
    def _saving(self) -> Iterator[None]:
        with self.phase("save"), self.stopwatch.measure("checkpoint"):
            yield

    def _manifest(self, kind: str, metrics: Mapping[str, Any]) -> Manifest:
        parent = self._experiment.parent
        return Manifest(
            kind=kind,
            experiment=self._experiment.name,
            trial_id=str(self.trial_id),
            run_id=self._experiment.run_id,
            attempt=self._directory.attempt,
            iteration=self.iteration,
            timesteps=self.env_steps_sampled,
            episodes=self.episodes_finished,
            stage=self.curriculum.stage.name or None,
            score=self._score(metrics),
            metrics=labelled(metrics, self._config.checkpoint),
            config_digest=config_digest(self._config),
            weights_sha256=self.weights_digest,
            parent=Parent(**parent) if parent else None,
            exact=self._exact_lost is None,
            exact_lost=self._exact_lost,
            snapshot_strategy=self.strategy,
            versions=versions(),
            code=Code(**self._code.to_dict()),
            created_at=datetime.now(UTC).isoformat(),
            arithmetic=self._arithmetic.entry,
        )


def _present_code(experiment: ExperimentFile, config: ExperimentConfig) -> RunCode:
    """The run's code as this process sees it; what it does not see is as the driver saw it."""
    code = RunCode.of(experiment.code)
    return code.seen_by(code_here(*code.keys(), config.import_path))


def remote_actors(algorithm: Any) -> dict[str, Any]:
    """Actors of an `ExactPPO`: `learner 0`, `env runner 0`, `evaluation runner 0`.

    May be called in any thread, also while the algorithm is still being built.
    """
    remote = {}
    learners = getattr(algorithm, "learner_group", None)
    for rank, actor in enumerate(_ray.cluster.learner_actors(learners) if learners else []):
        remote[f"learner {rank}"] = actor
    for role, name in (("env runner", "env_groups"), ("evaluation runner", "eval_env_groups")):
        groups = getattr(algorithm, name, None)
        for index, actor in groups.actors.items() if groups else ():
            remote[f"{role} {index}"] = actor
    return remote
