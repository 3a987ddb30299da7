"""The proof of environments that depend on hash order: the driver has another one than the run."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import awkward_envs as awkward
import pytest
from support.paths import ENVS

from raytrain.rollout.env_snapshots import SnapshotError, prove
from raytrain.rollout.env_snapshots import script as scripts
from raytrain.rollout.env_snapshots.fresh_process import fresh_processes, in_fresh_process
from raytrain.rollout.env_snapshots.script import FirstRun


def python(hash_seed: int, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": f"{hash_seed}"}
    found = subprocess.run(
        [sys.executable, *arguments],
        cwd=ENVS, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return found.stdout


def test_a_fresh_process_has_the_hash_order_that_it_is_given() -> None:
    def hashed(make_env: Any) -> int:
        return hash("left")

    own = [in_fresh_process(hashed, awkward.Walk, hash_seed=7) for _ in range(2)]
    assert own == [int(python(7, "-c", "print(hash('left'))"))] * 2
    assert in_fresh_process(hashed, awkward.Walk, hash_seed=8) != own[0]


def test_fresh_processes_have_their_objects_at_different_addresses() -> None:
    def low_bits(make_env: Any) -> list[int]:
        return [id(bytes(40 + number)) // 16 % 8 for number in range(0, 400, 16)]

    with fresh_processes([7, 7]) as processes:
        for process in processes:
            process.call(low_bits, awkward.Walk)
        one, other = (process.result() for process in processes)
    assert one != other


@pytest.mark.parametrize(
    ("make_env", "strategy"),
    [
        pytest.param(awkward.HashOrder, "pickle", marks=pytest.mark.slow),
        pytest.param(awkward.HashOrderLate, "pickle", marks=pytest.mark.slow),
        (awkward.LockedHashOrder, "replay"),
    ],
)
def test_hash_order_is_found_and_the_proof_is_the_runs(make_env: Any, strategy: str) -> None:
    proof = prove(make_env, steps=60)
    assert (proof.strategy, proof.exact, proof.hash_order) == (strategy, True, True), proof.reason
    (warning,) = proof.warnings
    assert "depends on the hash order of strings" in warning
    assert "PYTHONHASHSEED" in warning
    assert proof.to_dict()["hash_order"] is True


@pytest.mark.slow
def test_the_proof_is_the_same_in_whatever_order_the_driver_has() -> None:
    """The order of two strings differs between these two seeds."""
    order = ("-c", "print(list({'left', 'right'}))")
    assert python(0, *order) != python(1, *order)
    probed = ("-m", "raytrain", "probe", "awkward_envs:HashOrder")
    said = python(0, *probed)
    assert said == python(1, *probed)
    assert said.startswith("awkward_envs:HashOrder: pickle, exact\n")
    assert "warning: What it returns depends on the hash order" in said


def test_others_are_not_warned_of() -> None:
    proof = prove(awkward.Walk, steps=60)
    assert (proof.exact, proof.hash_order, proof.warnings) == (True, False, ())


@pytest.mark.parametrize(
    "make_env", [awkward.HashOrderAndClock, awkward.AddressOrder, awkward.LockedAddressOrder]
)
def test_what_is_fixed_by_no_seed_is_not_exact(make_env: Any) -> None:
    proof = prove(make_env, steps=60)
    assert (proof.strategy, proof.exact, proof.hash_order) == ("reset", False, False)


def test_what_differs_between_processes_with_one_hash_order_is_chance() -> None:
    class OfTheProcess(awkward.Walk):
        def noise(self) -> float:
            return os.getpid() * 1e-9

    proof = prove(OfTheProcess, steps=60)
    assert not proof.exact
    assert "new processes with one seed differ" in proof.reason
    assert "addresses of objects" in proof.reason


@pytest.mark.slow
def test_an_environment_that_fails_in_the_runs_order_is_told() -> None:
    class Fails(awkward.Walk):
        def noise(self) -> float:
            if os.environ.get("PYTHONHASHSEED") == "7":
                raise KeyError("left")
            return super().noise()

    with pytest.raises(SnapshotError, match=r"with PYTHONHASHSEED=7, as in the run: .*KeyError"):
        prove(Fails, steps=60, hash_seed=7)


def test_slow_environments_are_tried_in_many_processes_for_their_first_seconds_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def early() -> tuple[int, int]:
        script = FirstRun(awkward.Walk(), 0, 60, 20).run()
        return len(script.early().operations), len(script.operations)

    number, all_of_it = early()
    assert number == all_of_it
    monkeypatch.setattr(scripts, "_EARLY_S", 0)
    assert early() == (1, all_of_it)
