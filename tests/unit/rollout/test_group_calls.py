"""`RetryingCall` over actors that die, hang, come late and answer in any order, on a clock
of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError
from support.fake_ray import FakeActor, FakeRay

from raytrain.rollout.group_calls import RetryingCall, RunnerLost
from raytrain.rollout.runner_pool import PendingCall, RunnerPool
from raytrain.rollout.timeout import RolloutTimeout, stall_key

Plan = Callable[[FakeActor, int], dict[str, Any]]


@dataclass
class Trial:
    """A pool of actors, and a call to all groups. `plan`: how an actor answers for a group, as
    arguments of `FakeActor.call`; each answer takes a second unless it says something else."""

    actors_count: int = 2
    groups: Iterable[int] = (0, 1)
    ray: FakeRay = field(default_factory=FakeRay)
    plan: Plan = lambda actor, group: {}
    loading_s: float = 0.5
    messages: list[str] = field(default_factory=list)
    loads: list[tuple[int, int]] = field(default_factory=list)
    asked: list[tuple[int, int, float | None]] = field(default_factory=list)
    checked: list[tuple[int, Any]] = field(default_factory=list)
    check: Callable[[int, Any], None] | None = None

    def __post_init__(self) -> None:
        self.actors = {index: self.ray.actor(index) for index in range(self.actors_count)}
        self.pool = RunnerPool(
            self.actors,
            {},
            most=self.actors_count,
            make=None,
            tell=self.messages.append,
            runtime=self.ray.runtime,
        )
        self.pool.assign(list(self.groups))
        for group, index in self.pool.assigned.items():
            self.pool.up[index].loaded.add(group)

    def _load(self, actor: FakeActor, group: int) -> Any:
        self.loads.append((actor.index, group))
        return actor.call(f"digest {group}", seconds=self.loading_s)

    def _check(self, group: int, answer: Any) -> None:
        self.checked.append((group, answer))

    def _ask(self, actor: FakeActor, group: int, limit_s: float | None) -> Any:
        self.asked.append((actor.index, group, limit_s))
        answer = f"{group} by {actor.index}"
        return actor.call(**{"answer": answer, "seconds": 1.0, **self.plan(actor, group)})

    def call(
        self,
        *,
        sampling: bool = True,
        load_only: bool = False,
        timeout_s: float | str | None = "auto",
        elastic: bool = True,
        tell_after_s: float | None = None,
        **options: Any,
    ) -> RetryingCall:
        return RetryingCall(
            self.pool,
            list(self.groups),
            load=self._load,
            check_loaded=self.check or self._check,
            ask=None if load_only else self._ask,
            about="iteration 7" if sampling else "",
            sampling=sampling,
            timeout=RolloutTimeout(timeout_s),
            tell=self.messages.append,
            tell_after_s=tell_after_s,
            elastic=elastic,
            **options,
        )

    def die_after(self, seconds: float, index: int, **options: Any) -> None:
        self.ray.after(seconds, lambda: self.actors[index].die(**options))


def hanging(index: int, group: int, *, times: int = 1000) -> Plan:
    """This actor hangs in this group, so many times."""
    left = iter(range(times))

    def plan(actor: FakeActor, asked: int) -> dict[str, Any]:
        hangs = (actor.index, asked) == (index, group) and next(left, None) is not None
        return {"seconds": None} if hangs else {}

    return plan


# -- answers ---------------------------------------------------------------------------------------


def test_answers_are_put_together_in_the_order_of_the_groups() -> None:
    trial = Trial(3, range(3), plan=lambda actor, group: {"seconds": 9.0 - group})
    answers = trial.call().run()
    assert list(answers.items()) == [(0, "0 by 0"), (1, "1 by 1"), (2, "2 by 2")]
    assert trial.messages == [] and trial.loads == []


def test_an_actor_gets_the_calls_for_all_its_groups_at_once() -> None:
    trial = Trial(2, range(5))
    began = trial.ray.now
    assert list(trial.call().run().values()) == [f"{group} by {group % 2}" for group in range(5)]
    assert [asked[:2] for asked in trial.asked] == [(group % 2, group) for group in range(5)]
    assert trial.ray.now == began + 3


def test_a_group_is_set_up_before_it_is_asked_and_its_answer_is_checked() -> None:
    trial = Trial()
    trial.pool.up[1].loaded.clear()
    assert list(trial.call().run()) == [0, 1]
    assert trial.loads == [(1, 1)]
    assert trial.checked == [(1, "digest 1")]
    assert trial.pool.up[1].loaded == {1}


def test_a_call_without_a_question_sets_every_group_up() -> None:
    trial = Trial()
    assert trial.call(sampling=False, load_only=True).run() == {0: "digest 0", 1: "digest 1"}
    assert trial.loads == [(0, 0), (1, 1)] and trial.asked == []
    assert trial.checked == [(0, "digest 0"), (1, "digest 1")]


def test_an_answer_that_is_refused_ends_the_call() -> None:
    trial = Trial()
    trial.pool.up[0].loaded.clear()

    def refuse(group: int, answer: str) -> None:
        raise RunnerLost(f"{answer} is not that of the weights")

    trial.check = refuse
    with pytest.raises(RunnerLost, match="digest 0 is not that of the weights"):
        trial.call().run()


def test_what_a_call_raised_is_raised_and_not_what_ray_makes_of_it() -> None:
    error = ValueError("negative speed")
    raised = RayTaskError("rollout", "a traceback", error, proctitle="p", pid=1, ip="1")
    trial = Trial(plan=lambda actor, group: {"error": raised} if group else {})
    with pytest.raises(ValueError, match=r"^negative speed$") as caught:
        trial.call().run()
    assert caught.value is error
    assert trial.pool.failures == 0 and trial.messages == []


def test_calls_that_an_interrupted_one_left_behind_are_forgotten() -> None:
    trial = Trial()
    trial.pool.up[0].calls.append(PendingCall(0, False, object(), None))
    assert trial.call().run() == {0: "0 by 0", 1: "1 by 1"}


# -- deaths ----------------------------------------------------------------------------------------


def test_a_group_whose_actor_dies_is_answered_by_one_that_has_nothing_to_do() -> None:
    trial = Trial(plan=lambda actor, group: {"seconds": 4.0 if group else 1.0})
    trial.actors[1].restart_s = 100.0
    trial.die_after(2.0, 1)
    answers = trial.call().run()
    assert answers == {0: "0 by 0", 1: "1 by 0"}
    assert trial.loads == [(0, 1)]
    assert trial.pool.assigned == {0: 0, 1: 0}
    assert trial.pool.failures == 1
    (message,) = trial.messages
    assert message.startswith("The env runner of group 1 (pid 200 on node) died (")
    assert message.endswith(
        "Iteration 7 of group 1 is sampled again from its last state by the env runner of group 0; "
        "nothing is lost (4.5 s)."
    )


def test_a_group_whose_actor_dies_waits_for_no_busy_actor_if_its_own_comes_back() -> None:
    trial = Trial(plan=lambda actor, group: {"seconds": 1.0 if group else 60.0})
    trial.die_after(0.5, 1)
    assert trial.call().run() == {0: "0 by 0", 1: "1 by 1"}
    assert trial.loads == [(1, 1)]
    (message,) = trial.messages
    assert "sampled again from its last state by a new process; nothing is lost (2." in message


def test_without_elasticity_a_group_waits_for_its_own_actor() -> None:
    trial = Trial()
    trial.actors[1].restart_s = 200.0
    trial.die_after(0.5, 1)
    assert trial.call(elastic=False).run() == {0: "0 by 0", 1: "1 by 1"}
    assert "by a new process" in trial.messages[-1]


def test_groups_of_one_actor_are_told_of_together_once_the_last_has_answered() -> None:
    trial = Trial(3, range(6))
    trial.actors[2].restart_s = 1000.0
    trial.die_after(0.5, 2)
    answers = trial.call().run()
    assert list(answers) == list(range(6))
    assert {answers[2], answers[5]} == {"2 by 0", "5 by 1"}
    (message,) = trial.messages
    assert (
        "Iteration 7 of groups 2, 5 is sampled again from their last state by the env runner of "
        "group 0 "
        "and the env runner of group 1; nothing is lost (" in message
    )


def test_an_answer_that_came_before_the_death_counts() -> None:
    trial = Trial(1, range(3))
    trial.die_after(2.5, 0)
    assert list(trial.call().run().values()) == ["0 by 0", "1 by 0", "2 by 0"]
    assert [group for _, group, _ in trial.asked] == [0, 1, 2, 2]
    assert "Iteration 7 of group 2 is sampled again" in trial.messages[0]


def test_the_idle_actor_with_the_fewest_groups_takes_over() -> None:
    trial = Trial(3, range(3), plan=lambda actor, group: {"seconds": 9.0 if group == 2 else 1.0})
    trial.pool.up[0].loaded.add(7)
    trial.actors[2].restart_s = 1000.0
    trial.die_after(5.0, 2)
    assert trial.call().run()[2] == "2 by 1"


def test_an_actor_that_dies_in_a_call_that_samples_nothing() -> None:
    trial = Trial()
    trial.actors[1].restart_s = 1000.0
    trial.die_after(0.5, 1)
    trial.call(sampling=False).run()
    (message,) = trial.messages
    assert "Group 1 is set up again from its last state by the env runner of group 0;" in message


def test_the_fifth_death_in_a_row_is_given_up() -> None:
    trial = Trial()
    for number in range(5):
        trial.die_after(0.5 + 3 * number, 1)
    trial.plan = lambda actor, group: {"seconds": None} if group else {"seconds": 1000.0}
    with pytest.raises(
        RunnerLost, match="env runner of group 1 was lost 5 times in a row in itera"
    ):
        trial.call(timeout_s=None).run()
    assert trial.pool.failures == 5


def test_four_deaths_in_a_row_are_allowed() -> None:
    trial = Trial()
    for number in range(4):
        trial.die_after(0.5 + 3 * number, 1)
    trial.plan = lambda actor, group: {"seconds": 2.6 if group else 1000.0}
    assert trial.call(timeout_s=None).run() == {0: "0 by 0", 1: "1 by 1"}
    assert trial.pool.failures == 4
    assert len(trial.messages) == 4


# -- late news -------------------------------------------------------------------------------------


def test_late_news_of_a_restart_is_no_loss() -> None:
    trial = Trial()
    trial.ray.after(0.5, trial.actors[1].forget_calls)
    assert trial.call(elastic=False).run() == {0: "0 by 0", 1: "1 by 1"}
    assert (trial.pool.failures, trial.messages) == (0, [])
    assert [asked[:2] for asked in trial.asked] == [(0, 0), (1, 1), (1, 1)]
    assert trial.loads == [(1, 1)]


def test_late_news_that_comes_again_and_again_is_given_up() -> None:
    trial = Trial(1, [0], plan=lambda actor, group: {"seconds": None}, loading_s=100.0)
    for number in range(5):
        trial.ray.after(0.4 + number, trial.actors[0].forget_calls)
    with pytest.raises(RunnerLost, match="was lost 5 times in a row"):
        trial.call(timeout_s=None).run()
    assert (trial.pool.failures, trial.messages) == (0, [])


def test_the_same_words_about_a_process_that_has_answered_are_a_loss() -> None:
    trial = Trial(1, range(2))
    trial.ray.after(1.5, trial.actors[0].forget_calls)
    assert list(trial.call().run()) == [0, 1]
    assert trial.pool.failures == 1
    assert len(trial.messages) == 1


# -- hangs -----------------------------------------------------------------------------------------


def test_an_actor_that_hangs_is_killed_named_and_replaced() -> None:
    trial = Trial(plan=hanging(1, 1))
    trial.ray.stall_reports[stall_key("actor1", 1)] = "in Env.step (env.py, line 3)"
    assert trial.call(timeout_s=20).run() == {0: "0 by 0", 1: "1 by 0"}
    assert trial.ray.killed == [(1, False)]
    (message,) = trial.messages
    assert message.startswith(
        "The env runner of group 1 (pid 200 on node) hung for 20 s in group 1 (in Env.step "
        "(env.py, "
        "line 3)) and was killed. Iteration 7 of group 1 is sampled again from its last state by "
        "the env "
        "runner of group 0; nothing is lost ("
    )
    assert trial.ray.stall_reports == {}


def test_an_actor_that_hangs_without_a_report_is_killed_as_well() -> None:
    trial = Trial(plan=hanging(1, 1))
    trial.call(timeout_s=20).run()
    assert "(position unknown: it is stopped, cut off, or in native code)" in trial.messages[0]


def test_the_third_hang_in_a_row_is_given_up_in_words_that_stay_the_same() -> None:
    texts = []
    for timeout_s in (20, 30):
        trial = Trial(1, [0], plan=hanging(0, 0))
        with pytest.raises(RunnerLost) as caught:
            trial.call(timeout_s=timeout_s).run()
        assert trial.ray.killed == [(0, False)] * 3
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert (
        "was lost 3 times in a row in iteration 7 and is given up: the last one hung (" in texts[0]
    )


def test_two_hangs_are_allowed() -> None:
    trial = Trial(1, [0], plan=hanging(0, 0, times=2))
    assert trial.call(timeout_s=20).run() == {0: "0 by 0"}


def test_the_clock_of_a_call_starts_when_the_one_before_it_has_answered() -> None:
    trial = Trial(1, range(4), plan=lambda actor, group: {"seconds": 15.0})
    assert len(trial.call(timeout_s=20).run()) == 4
    assert trial.ray.killed == []


@pytest.mark.parametrize(
    ("sampling", "timeout_s", "expected"),
    [
        (True, "auto", 600.0),
        (True, 20.0, 20.0),
        (True, None, None),
        (False, 20.0, 300.0),
        (False, None, None),
    ],
)
def test_a_call_is_told_how_long_it_may_take(
    sampling: bool, timeout_s: float | str | None, expected: float | None
) -> None:
    trial = Trial()
    trial.call(sampling=sampling, timeout_s=timeout_s).run()
    assert [limit_s for _, _, limit_s in trial.asked] == [expected, expected]


def test_setting_up_may_take_five_minutes_whatever_a_fragment_may() -> None:
    trial = Trial(1, [0], loading_s=290.0)
    trial.pool.up[0].loaded.clear()
    assert trial.call(timeout_s=5).run() == {0: "0 by 0"}
    trial = Trial(1, [0], loading_s=310.0)
    trial.pool.up[0].loaded.clear()
    with pytest.raises(RunnerLost, match="was lost 3 times in a row"):
        trial.call(timeout_s=5).run()


def test_without_a_limit_a_call_is_waited_for() -> None:
    trial = Trial(plan=lambda actor, group: {"seconds": 1e4})
    assert len(trial.call(timeout_s=None).run()) == 2
    assert (trial.ray.killed, trial.messages) == ([], [])


def test_a_slow_call_is_told_of_again_and_again() -> None:
    trial = Trial(1, [0], plan=lambda actor, group: {"seconds": 35.0})
    trial.call(tell_after_s=10.0).run()
    assert [message.split(" for ")[1].split(". ")[0] for message in trial.messages] == [
        "10 s",
        "20 s",
        "30 s",
    ]
    assert trial.messages[0].startswith(
        "The env runner of group 0 (pid 100 on node) has been busy with group 0 for 10 s."
    )


# -- nobody is there -------------------------------------------------------------------------------


def test_with_all_actors_dead_a_message_is_logged_and_the_next_one_answers() -> None:
    trial = Trial()
    for index, actor in trial.actors.items():
        actor.restart_s = 100.0 + index
        trial.die_after(0.5, index)
    answers = trial.call().run()
    assert answers == {0: "0 by 0", 1: "1 by 1"}
    assert trial.messages[0].startswith(
        "No env runner is alive for groups 0, 1: the last one died ("
    )
    assert sum("No env runner is alive" in message for message in trial.messages) == 1
    assert len(trial.messages) == 3


def test_with_all_actors_dead_for_seconds_nothing_is_logged_but_their_loss() -> None:
    trial = Trial(1, [0])
    trial.actors[0].restart_s = 4.0
    trial.die_after(0.5, 0)
    trial.call().run()
    (message,) = trial.messages
    assert "is sampled again" in message


def test_with_all_actors_dead_for_five_minutes_the_call_fails() -> None:
    trial = Trial()
    for index, actor in trial.actors.items():
        actor.restart_s = 1e6
        trial.die_after(0.5, index)
    began = trial.ray.now
    with pytest.raises(
        RunnerLost, match=r"No env runner started for groups 0, 1 within 300 s; the l"
    ):
        trial.call().run()
    assert trial.ray.now - began == pytest.approx(300, abs=2)


def test_actors_that_never_came_are_no_dead_ones() -> None:
    trial = Trial(1, [0])
    trial.actors[0].restart_s = 1e6
    trial.actors[0].die()
    trial.pool.mark_lost(trial.pool.up[0], "died", confirmed=True)
    with pytest.raises(RunnerLost, match="the last one did not start"):
        trial.call().run()


def test_an_actor_that_comes_and_goes_starts_the_five_minutes_anew() -> None:
    trial = Trial(1, [0], plan=hanging(0, 0, times=1))
    actor = trial.actors[0]
    actor.restart_s = 200.0
    trial.die_after(0.5, 0)
    trial.die_after(201.0, 0)
    assert trial.call(timeout_s=None).run() == {0: "0 by 0"}
    assert sum("No env runner is alive" in message for message in trial.messages) == 2


def test_if_ray_restarts_none_the_call_fails_at_once() -> None:
    trial = Trial()
    for index in (0, 1):
        trial.ray.after(0.5, trial.actors[index].die_for_good)
    began = trial.ray.now
    with pytest.raises(
        RunnerLost, match="No env runner is left, and Ray restarts none: max_restarts"
    ):
        trial.call().run()
    assert trial.ray.now - began < 2


def test_the_group_of_an_actor_that_ray_gives_up_moves_to_another() -> None:
    trial = Trial()
    trial.ray.after(0.5, trial.actors[1].die_for_good)
    assert trial.call().run() == {0: "0 by 0", 1: "1 by 0"}
    assert any("is not restarted: max_restarts" in message for message in trial.messages)


# -- fewer answers ---------------------------------------------------------------------------------


def test_a_group_that_may_be_missing_is_dropped_with_a_message() -> None:
    trial = Trial(3, range(3))
    asked: list[int] = []

    def may_drop(count: int) -> bool:
        asked.append(count)
        return count <= 1

    trial.actors[2].restart_s = 1000.0
    trial.die_after(0.3, 1)
    trial.die_after(0.6, 2)
    call = trial.call(may_drop=may_drop)
    assert call.run() == {0: "0 by 0", 2: "2 by 0"}
    assert call.dropped == {1}
    assert asked == [1, 2]
    dropped, again = trial.messages
    assert dropped.endswith(
        ". Iteration 7 continues without group 1 (fault_tolerance.on_env_runner_loss is continue)."
    )
    assert "Iteration 7 of group 2 is sampled again" in again


def test_a_death_that_is_late_news_drops_nothing() -> None:
    trial = Trial()
    trial.ray.after(0.5, trial.actors[1].forget_calls)
    call = trial.call(may_drop=lambda count: True)
    assert list(call.run()) == [0, 1]
    assert call.dropped == set()


def test_a_node_that_dies_is_a_death_like_any_other() -> None:
    trial = Trial()
    trial.actors[1].restart_s = 1000.0
    trial.die_after(0.5, 1, error=RayActorError(error_msg="its node has died"))
    assert trial.call().run() == {0: "0 by 0", 1: "1 by 0"}
