"""`RunnerPool` with actors that are none and a clock that moves when it is asked to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError
from support.fake_ray import FakeActor, FakeRay

from raytrain.rollout.runner_pool import PendingCall, RunnerActor, RunnerPool, RunnerRules, spread


class Pool(RunnerPool):
    """A pool of so many reserved and further actors; `messages` is what it told."""

    def __init__(self, ray: FakeRay, reserved: int, further: int = 0, **options: Any) -> None:
        self.messages: list[str] = []
        self.made: list[int] = []
        actors = {index: ray.actor(index) for index in range(reserved + further)}
        super().__init__(
            {index: actors[index] for index in range(reserved)},
            {index: actors[index] for index in range(reserved, reserved + further)},
            most=reserved + further,
            make=self._made(ray) if further else None,
            tell=self.messages.append,
            runtime=ray.runtime,
            **options,
        )
        self.actors = actors

    def _made(self, ray: FakeRay) -> Callable[[int], FakeActor]:
        def make(index: int) -> FakeActor:
            self.made.append(index)
            self.actors[index] = ray.actor(index, starts_after_s=1.0)
            return self.actors[index]

        return make

    def fail(self, index: int) -> RunnerActor:
        """The actor's process dies, and this is noticed."""
        runner = self.runner(index)
        self.actors[index].die()
        self.mark_lost(runner, "died (killed)", confirmed=True)
        return runner

    def runner(self, index: int) -> RunnerActor:
        return next(runner for runner in self.up if runner.index == index)


def indices(pool: RunnerPool) -> list[int]:
    return [runner.index for runner in pool.up]


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay()


# -- which of them compute as the run does ---------------------------------------------------------

AGREEING, OTHER = ("1:a", {"cpu": "A"}), ("1:b", {"cpu": "B"})


def test_an_actor_that_computes_differently_is_idle_and_told_once(ray: FakeRay) -> None:
    pool = Pool(ray, 3)
    pool.actors[1].arithmetic = OTHER
    pool.refresh()
    pool.expect(*AGREEING)
    assert indices(pool) == [0, 2]
    assert pool.assign([0, 1, 2]) == []
    assert pool.assigned[1] in (0, 2)
    for _ in range(30):
        ray.runtime.sleep(5.0)
        pool.refresh()
    assert indices(pool) == [0, 2]
    assert [process.pid for process in pool.differing] == [200]
    (told,) = [message for message in pool.messages if "computes differently" in message]
    assert "group 1 (pid 200 on node) gets no work" in told
    assert told.endswith("(B; the run began on A).")


def test_an_actor_that_starts_later_is_compared_too(ray: FakeRay) -> None:
    pool = Pool(ray, 1, further=1)
    pool.actors[1].restart_s = 2.0
    pool.refresh()
    pool.expect(*AGREEING)
    pool.actors[1].arithmetic = OTHER
    pool.fail(1)
    ray.runtime.sleep(3.0)
    pool.refresh()
    assert indices(pool) == [0]
    assert not pool.only_differing


def test_an_idle_actor_that_ray_restarts_on_another_node_works_again(ray: FakeRay) -> None:
    pool = Pool(ray, 2)
    pool.actors[1].arithmetic = OTHER
    pool.refresh()
    pool.expect(*AGREEING)
    pool.actors[1].arithmetic = AGREEING
    ray.runtime.sleep(11.0)
    pool.refresh()
    assert indices(pool) == [0, 1]
    assert pool.differing == []


def test_differing_actors_work_once_they_are_accepted(ray: FakeRay) -> None:
    pool = Pool(ray, 2)
    for actor in pool.actors.values():
        actor.arithmetic = OTHER
    pool.refresh()
    pool.expect(*AGREEING)
    assert pool.up == []
    assert pool.only_differing
    pool.accept_differing()
    assert indices(pool) == [0, 1]
    assert not pool.only_differing


def test_the_run_begins_with_what_most_actors_compute(ray: FakeRay) -> None:
    pool = Pool(ray, 3)
    assert pool.most_frequent() is None
    pool.actors[0].arithmetic = OTHER
    pool.refresh()
    assert pool.most_frequent() == AGREEING


def test_of_as_many_the_first_actor_s_counts(ray: FakeRay) -> None:
    pool = Pool(ray, 2)
    pool.actors[0].arithmetic = OTHER
    pool.refresh()
    assert pool.most_frequent() == OTHER


# -- which actors are there ------------------------------------------------------------------------


def test_actors_are_there_once_their_processes_have_answered(ray: FakeRay) -> None:
    pool = Pool(ray, 2)
    assert pool.up == []
    pool.refresh()
    assert indices(pool) == [0, 1]
    assert str(pool.up[1]) == "The env runner of group 1 (pid 200 on node)"
    assert pool.messages == []


def test_refresh_waits_for_the_first_actor_and_no_longer(ray: FakeRay) -> None:
    pool = Pool(ray, 3)
    pool.refresh()
    for index, seconds in enumerate((5.0, 2.0, 7.0)):
        pool.actors[index].restart_s = seconds
        pool.fail(index)
    began = ray.now
    pool.refresh(1.0)
    assert indices(pool) == [] and ray.now == began + 1
    pool.refresh(60.0)
    assert indices(pool) == [1] and ray.now == began + 2


def test_refresh_waits_for_nothing_if_all_actors_are_there(ray: FakeRay) -> None:
    pool = Pool(ray, 1)
    pool.refresh()
    began = ray.now
    pool.refresh(60.0)
    assert ray.now - began == pytest.approx(0.1)


def test_an_absent_actor_has_one_ping_at_a_time(ray: FakeRay) -> None:
    pool = Pool(ray, 1)
    pool.refresh()
    pool.actors[0].restart_s = 60.0
    pool.fail(0)
    before = pool.actors[0].pings
    for _ in range(20):
        pool.refresh()
        ray.sleep(0.2)
    assert pool.actors[0].pings == before + 1


def test_an_actor_whose_ping_fails_is_not_pinged_again_at_once(ray: FakeRay) -> None:
    pool = Pool(ray, 1)
    pool.refresh()
    actor = pool.actors[0]
    actor.restart_s = 1000.0
    pool.fail(0)
    before = actor.pings
    for _ in range(10):
        pool.refresh()
        # Ray answers with an error while it has not noticed the death.
        for ping in actor._pings:
            ping.set(error=ActorUnavailableError("not there yet", None))
        ray.sleep(0.03)
    assert 3 <= actor.pings - before <= 4
    assert pool.up == [] and pool.messages == [] and pool.why_empty is None


def test_wait_for_ends_with_the_last_expected_actor(ray: FakeRay) -> None:
    pool = Pool(ray, 2)
    pool.refresh()
    pool.fail(0)
    pool.fail(1)
    began = ray.now
    pool.wait_for(2)
    assert indices(pool) == [0, 1]
    assert ray.now - began == pytest.approx(1, abs=0.2)


def test_wait_for_gives_up_after_five_seconds(ray: FakeRay) -> None:
    pool = Pool(ray, 2)
    pool.refresh()
    pool.actors[1].restart_s = 60.0
    pool.fail(1)
    began = ray.now
    pool.wait_for(2)
    assert indices(pool) == [0]
    assert ray.now - began == pytest.approx(5, abs=0.2)


# -- losses ----------------------------------------------------------------------------------------


def test_a_lost_process_takes_its_groups_and_calls_with_it(ray: FakeRay) -> None:
    pool = Pool(ray, 2)
    pool.refresh()
    pool.assign_to_own(range(2))
    runner = pool.runner(1)
    runner.loaded, runner.has_answered = {1}, True
    runner.calls.append(PendingCall(1, False, None, None))
    pool.fail(1)
    assert indices(pool) == [0]
    assert (runner.loaded, runner.calls, runner.has_answered) == (set(), [], False)
    assert pool.runner_of(1) is None
    assert pool.failures == 1
    ray.sleep(1.0)
    pool.refresh()
    assert pool.runner_of(1) is runner
    assert str(runner) == "The env runner of group 1 (pid 201 on node)"
    assert pool.recreated == [2]
    assert pool.messages == []


def test_an_unconfirmed_loss_is_none_if_the_process_is_the_same(ray: FakeRay) -> None:
    pool = Pool(ray, 1)
    pool.refresh()
    pool.mark_lost(pool.runner(0), "died (late news)", confirmed=False)
    pool.refresh()
    assert indices(pool) == [0]
    assert (pool.failures, pool.messages) == (0, [])


def test_an_unconfirmed_loss_counts_once_another_process_has_come(ray: FakeRay) -> None:
    pool = Pool(ray, 1)
    pool.refresh()
    runner = pool.runner(0)
    pool.actors[0].die()
    pool.mark_lost(runner, "died (it was killed)", confirmed=False)
    assert pool.failures == 0
    pool.refresh(2.0)
    assert pool.failures == 1
    assert pool.messages == [
        "The env runner of group 0 (pid 100 on node) died (it was killed) before it did any work, "
        "so "
        "nothing is lost; a new process has started."
    ]
    pool.fail(0)
    pool.refresh(2.0)
    assert len(pool.messages) == 1


def test_an_actor_that_ray_gives_up_leaves_the_pool(ray: FakeRay) -> None:
    pool = Pool(ray, 2)
    pool.refresh()
    for index in (0, 1):
        runner = pool.runner(index)
        pool.actors[index].die_for_good("max_restarts of the actor")
        pool.mark_lost(runner, "died", confirmed=True)
        assert pool.why_empty is None
        pool.refresh()
    assert pool.up == []
    assert pool.why_empty == "max_restarts of the actor"
    assert pool.messages == [
        f"The env runner of group {index} (pid {100 + 100 * index} on node) is not restarted: "
        "max_restarts of the actor."
        for index in (0, 1)
    ]


# -- which actor hosts what ------------------------------------------------------------------------


def test_groups_are_assigned_to_the_actors_that_are_there_and_go_home(ray: FakeRay) -> None:
    pool = Pool(ray, 2)
    assert pool.assign(range(4)) == []
    assert pool.assigned == {0: 0, 1: 1, 2: 0, 3: 1}
    pool.runner(0).loaded = {0, 2}
    pool.runner(1).loaded = {1, 3}
    pool.fail(1)
    assert pool.assign(range(4)) == []
    assert pool.assigned == dict.fromkeys(range(4), 0)
    pool.runner(0).loaded = {0, 1, 2, 3}
    pool.refresh(2.0)
    moved = pool.assign(range(4))
    assert [(runner.index, group) for runner, group in moved] == [(0, 1), (0, 3)]
    assert pool.assigned == {0: 0, 1: 1, 2: 0, 3: 1}
    assert pool.runner(0).loaded == {0, 2}


def test_a_group_that_an_actor_never_held_is_not_released_there(ray: FakeRay) -> None:
    pool = Pool(ray, 2)
    pool.refresh()
    pool.assigned = {0: 0, 1: 0}
    assert pool.assign(range(2)) == []


def test_an_actor_that_joins_is_announced(ray: FakeRay) -> None:
    pool = Pool(ray, 1, 1)
    pool.actors[1].restart_s = 10.0
    pool.refresh()
    pool.fail(1)
    pool.assign(range(2))
    assert pool.messages == []
    pool.refresh(60.0)
    pool.assign(range(2))
    assert pool.messages == [
        "2 env group(s) are hosted by 2 env runner(s) from now on (pid 100 on node, pid 201 on "
        "node)."
    ]
    pool.fail(1)
    pool.refresh(60.0)
    pool.assign(range(2))
    assert len(pool.messages) == 1  # Another process of the same actor is no news.
    pool.fail(1)
    pool.assign(range(2))
    assert len(pool.messages) == 1  # Nor is an actor less: its failure has a message of its own.
    pool.refresh(60.0)
    pool.assign(range(2))
    assert len(pool.messages) == 2


def test_without_actors_the_assignment_stays(ray: FakeRay) -> None:
    pool = Pool(ray, 2)
    pool.assign(range(2))
    pool.fail(0)
    pool.fail(1)
    assert pool.assign(range(2)) == []
    assert pool.assigned == {0: 0, 1: 1}


def test_assign_to_own_asks_not_whether_the_actor_is_there(ray: FakeRay) -> None:
    pool = Pool(ray, 2)
    pool.refresh()
    pool.fail(1)
    pool.assign_to_own(range(2))
    assert pool.assigned == {0: 0, 1: 1}
    assert pool.runner_of(0) is pool.runner(0) and pool.runner_of(1) is None
    assert pool.runner_of(7) is None


# -- further actors --------------------------------------------------------------------------------


def test_further_actors_are_given_up_to_another_trial_and_asked_for_again(ray: FakeRay) -> None:
    pool = Pool(ray, 1, 2)
    pool.refresh()
    pool.fail(2)
    ray.another_group_waits = True
    ray.sleep(1.9)
    pool.scale()
    assert ray.killed == []  # It looks every two seconds.
    ray.sleep(0.1)
    pool.scale()
    assert ray.killed == [(1, True), (2, True)]
    assert indices(pool) == [0] and pool.failures == 1
    # The one of group 2 was not there.
    (message,) = pool.messages
    assert message.startswith("Gave up 1 env runner(s) beyond env_runners.min_actors")
    ray.sleep(2.0)
    pool.scale()
    assert len(pool.messages) == 1 and pool.made == []
    ray.another_group_waits = False
    ray.sleep(1.9)
    pool.scale()
    assert pool.made == []
    ray.sleep(0.1)
    pool.scale()
    assert pool.made == [1, 2]
    pool.wait_for(3)
    assert indices(pool) == [0, 1, 2]
    ray.sleep(2.0)
    pool.scale()
    assert pool.made == [1, 2]  # None of them is missing.


def test_a_further_actor_that_cannot_start_is_asked_for_again_after_a_minute(ray: FakeRay) -> None:
    pool = Pool(ray, 1, 1)
    pool.refresh()
    runner = pool.runner(1)
    pool.actors[1].die_for_good()
    pool.mark_lost(runner, "died", confirmed=True)
    pool.refresh()
    for _ in range(29):
        ray.sleep(2.0)
        pool.scale()
    assert pool.made == []
    ray.sleep(4.0)
    pool.scale()
    assert pool.made == [1]


def test_reserved_actors_alone_are_never_scaled(ray: FakeRay) -> None:
    pool = Pool(ray, 2)
    pool.refresh()
    ray.another_group_waits = True
    ray.sleep(10.0)
    pool.scale()
    assert (ray.killed, pool.messages) == ([], [])


def test_stop_ends_what_rllib_does_not_know_and_what_is_absent(ray: FakeRay) -> None:
    pool = Pool(ray, 2, 1)
    pool.refresh()
    pool.fail(1)
    pool.stop()
    assert ray.killed == [(1, True), (2, True)]


def test_groups_stay_at_their_own_actors_or_spread_over_the_present_ones() -> None:
    groups = range(4)
    assert spread(groups, [0, 1, 2, 3], {}) == {0: 0, 1: 1, 2: 2, 3: 3}
    assert spread(groups, [2], {0: 0, 1: 1, 2: 2, 3: 3}) == dict.fromkeys(groups, 2)
    assert spread(groups, [0, 2], dict.fromkeys(groups, 2)) == {0: 0, 1: 2, 2: 2, 3: 0}
    # Who may stay stays.
    assert spread(groups, [0, 2, 3], {0: 0, 1: 2, 2: 2, 3: 0}) == {0: 0, 1: 2, 2: 2, 3: 3}


def test_every_spread_is_even() -> None:
    for groups in range(1, 9):
        for pattern in range(1, 2**groups):
            pool = [index for index in range(groups) if pattern >> index & 1]
            loads = list(spread(range(groups), pool, dict.fromkeys(range(groups), 0)).values())
            counts = [loads.count(host) for host in pool]
            assert sum(counts) == groups and max(counts) - min(counts) <= 1


def test_the_number_of_actors_is_bounded_by_that_of_groups() -> None:
    assert RunnerRules().actors(4) == (1, 4)
    assert RunnerRules(min_actors=2, max_actors=3).actors(4) == (2, 3)
    assert RunnerRules(min_actors=2, max_actors=3).actors(1) == (1, 1)
    assert RunnerRules().actors(0) == (0, 0)
