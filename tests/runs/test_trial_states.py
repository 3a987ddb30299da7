"""Whatever state a trial is in when something dies, the same command brings the experiment
to its end."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import struck_cartpole
from support import s3_store
from support.chaos.damage import checkpoints, damage, read, read_json
from support.clusters import NO_TOKEN, Cluster
from support.paths import ROOT
from support.running import Run, write_config
from support.trial_states import FIRST_STOP, LAST_STOP, Case, table

SEED = int(os.environ.get("STATES_SEED", "0"))
RATES = (1e-3, 3e-4, 3e-3, 1e-4)
QUICK = ("final committed, all killed",)
"""States of which one row, with as few trials as any, is part of the quick tests."""


def sections(trials: int) -> dict[str, Any]:
    return {
        "environment": {"env": "struck_cartpole:make"},
        "env_runners": {"num_env_runners": 0},
        "training": {
            "lr": {"grid_search": list(RATES[:trials])},
            "train_batch_size_per_learner": 256,
            "num_epochs": 1,
        },
        "curriculum": [{"name": "short", "until": {"timesteps": 500}}, {"name": "long"}],
        "checkpoint": {"checkpoint_frequency": 1, "num_to_keep": 3},
    }


def config_file(directory: Path, **changes: Any) -> Path:
    shutil.copy(struck_cartpole.__file__, directory)
    return write_config(directory / "run.yaml", **changes)


def _cases() -> list[Any]:
    cases = table(SEED)
    quick = [
        min((each for each in cases if each.state.name == name), key=lambda each: each.trials)
        for name in QUICK
    ]
    return [
        pytest.param(case, id=str(case), marks=() if case in quick else (pytest.mark.slow,))
        for case in cases
    ]


@pytest.fixture(scope="module")
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[list[str]]:
    """Digests of the weights after each iteration, of each trial of the largest grid
    that is tested."""
    directory = tmp_path_factory.mktemp("undisturbed")
    mine = [each for each in request.session.items if each.path == request.path]
    cases = [each.callspec.params["case"] for each in mine if hasattr(each, "callspec")]
    trials = max(each.trials for each in cases) if len(cases) == len(mine) else len(RATES)
    config = config_file(directory, **sections(trials), stop={"iterations": LAST_STOP})
    run = Run("train", str(config), log=directory / "log.txt")
    assert run.wait(600) == 0, run.output()
    files = pafs.LocalFileSystem()
    found = [digests(files, path) for path in trial_paths(files, f"{directory}/results/run")]
    assert len({each[-1] for each in found}) == trials
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", _cases())
def test_whatever_state_a_trial_is_in_the_same_command_goes_on(
    case: Case, undisturbed: list[list[str]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    env = {struck_cartpole.PLACE: str(tmp_path / "strikes")}
    files: pafs.FileSystem = pafs.LocalFileSystem()
    storage = root = str(tmp_path / "results")
    if case.store == "s3":
        port = request.getfixturevalue("s3_port")
        env |= s3_store.environment(port)
        root = f"bucket/states/{tmp_path.name}"
        files, storage = s3_store.file_system(port), f"s3://{root}"
    if case.signed:
        env["RAYTRAIN_SIGNING_KEY"] = "of 32 bytes or more, as it should be"
    experiment = f"{root}/run"

    def give_the_command(number: int, strikes: tuple[Any, ...], *, last: bool) -> tuple[int, str]:
        higher = last or number > 0 or not case.state.raised
        config = config_file(
            tmp_path,
            **sections(case.trials),
            storage_path=storage,
            stop={"iterations": LAST_STOP if higher else FIRST_STOP},
            failure={"max_failures": case.state.failures},
            tune={"max_concurrent_trials": None if case.side_by_side else 1},
        )
        struck_cartpole.lay(tmp_path / "strikes" / str(number), list(strikes))
        place = {struck_cartpole.PLACE: str(tmp_path / "strikes" / str(number))}
        run = Run("train", str(config), log=tmp_path / f"log{number}.txt", env={**env, **place})
        return run.wait(600), run.output()

    outputs = []
    for number, strikes in enumerate(case.state.runs):
        code, output = give_the_command(number, strikes, last=False)
        outputs.append(output)
        assert code in case.state.codes, f"exit code {code}\n{output}"
        assert struck_cartpole.struck(tmp_path / "strikes" / str(number)) >= min(1, len(strikes))
    done = spoil(case.damage, files, experiment, random.Random(str(case)))
    code, output = give_the_command(len(case.state.runs), (), last=True)
    outputs.append(output)
    history = "\n".join([*outputs, f"damage: {done}"])
    assert code == 0, history
    assert "Traceback" not in history
    trials = trial_paths(files, experiment)
    assert len(trials) == case.trials, history
    for path, expected in zip(trials, undisturbed, strict=False):
        assert digests(files, path) == expected, history
        final = read_json(files, f"{path}/final/manifest.json")
        assert (final["iteration"], final["weights_sha256"]) == (LAST_STOP, expected[-1])
        assert final["exact"] is True
    # Everything is finished now: no Ray is started any more.
    code, output = give_the_command(len(outputs), (), last=True)
    assert code == 0
    assert "run is finished: " in output


def trial_paths(files: pafs.FileSystem, experiment: str) -> list[str]:
    found = files.get_file_info(pafs.FileSelector(experiment))
    return sorted(info.path for info in found if info.base_name.startswith("trial_"))


def digests(files: pafs.FileSystem, trial: str) -> list[str]:
    """Of each iteration; each must be there once."""
    rows = [json.loads(line) for line in read(files, f"{trial}/result.json").splitlines()]
    assert [row["training_iteration"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["weights_sha256"] for row in rows]


def spoil(what: str, files: pafs.FileSystem, experiment: str, drawn: random.Random) -> str:
    """Do the damage if there is something to be damaged; returns what was done."""
    listed = files.get_file_info(pafs.FileSelector(experiment, allow_not_found=True))
    names = {info.base_name for info in listed}
    of_tune = {
        "tuner.pkl": ("tuner.pkl",),
        "Tune's state": ("experiment_state-",),
        "the search's state": ("basic-variant-state-",),
        "experiment.json": ("experiment.json",),
    }
    for start, prefixes in of_tune.items():
        if what.startswith(start):
            found = sorted(name for name in names if name.startswith(prefixes))
            for name in found:
                path = f"{experiment}/{name}"
                if what.endswith("gone"):
                    files.delete_file(path)
                    continue
                content = read(files, path)
                with files.open_output_stream(path) as stream:
                    stream.write(content[: len(content) // 2])
            return f"{what}: {found}"
    if what == "none" or not any(name.startswith("trial_") for name in names):
        return "nothing"
    path = drawn.choice(trial_paths(files, experiment))
    periodic = list(checkpoints(files, path).values())
    if len(periodic) < 2:
        return "nothing: there is nothing to fall back to"
    newest = {"a last": "final", "a best": "best"}.get(what.partition(" checkpoint")[0])
    target = f"{path}/{newest or periodic[-1]}"
    if not read_json(files, f"{target}/manifest.json"):
        return f"nothing: there is no {target}"
    return damage(files, target, drawn.random())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_waits_for_nodes_is_killed_and_goes_on_when_one_joins(
    undisturbed: list[list[str]], tmp_path: Path
) -> None:
    config = config_file(
        tmp_path,
        **sections(3),
        stop={"iterations": LAST_STOP},
        resources={"custom_resources_for_main_process": {"slot": 1}},
    )
    struck_cartpole.lay(tmp_path / "strikes", [])
    env = {**NO_TOKEN, struck_cartpole.PLACE: str(tmp_path / "strikes")}
    with Cluster(tmp_path, dashboard=False, env={"PYTHONPATH": str(ROOT)}) as cluster:
        arguments = ("train", str(config), "--address", cluster.address)
        run = Run(*arguments, log=tmp_path / "first.txt", env=env)
        run.until(lambda: "No node has the resources" in run.output(), 300)
        run.signal(signal.SIGKILL)
        run.wait()
        run = Run(*arguments, log=tmp_path / "second.txt", env=env)
        run.until(lambda: "No node has the resources" in run.output(), 300)
        cluster.add('--resources={"slot": 3}', cpus=3)
        assert run.wait(600) == 0, run.output()
    assert "Traceback" not in run.output()
    files = pafs.LocalFileSystem()
    trials = trial_paths(files, str(tmp_path / "results" / "run"))
    assert [digests(files, path) for path in trials] == undisturbed[:3]
