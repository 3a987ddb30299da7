"""The command line and the Python API, on a real experiment that is trained once."""

from __future__ import annotations

import ast
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from ray._private import worker
from support.commands import Ended, here
from support.paths import ENVS
from support.running import experiment_of, train, trial_of, write_config

import raytrain
from raytrain.errors import BadInput

ROWS = {"path", "kind", "iteration", "timesteps", "score", "weights_sha256", "good", "problem"}

# What a command leaves behind in its process is looked at before that ends.
PROGRAM = """
import sys
from raytrain.cli import main
try:
    main()
finally:
    ray = sys.modules.get("ray")
    started = ray is not None and ray.is_initialized()
    with open(sys.argv_left, "w") as file:
        file.write(f"{'torch' in sys.modules} {ray is not None} {started}")
"""


@dataclass(frozen=True)
class Finished:
    """A finished run: its YAML file, its directory and its only trial."""

    config: Path
    experiment: Path
    trial: Path


def finished_run(config: Path) -> Finished:
    return Finished(config, experiment_of(config), trial_of(config))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Checkpoints of the iterations 2, 4 (`final`) and of the better one (`best`). Started by
    somebody whose group may write what they write."""
    config = tiny_config(tmp_path_factory.mktemp("cli"))
    before = os.umask(0o002)
    try:
        train(config)
    finally:
        os.umask(before)
    return finished_run(config)


@pytest.fixture
def copied(run: Finished, tmp_path: Path) -> Finished:
    """A copy of the experiment, to be damaged or trained on."""
    config = tiny_config(tmp_path)
    shutil.copytree(run.experiment, experiment_of(config))
    return finished_run(config)


@pytest.fixture(autouse=True)
def loud_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands that run in this process keep Ray quiet; the next module's tests may
    listen to it."""
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    loggers = [logging.getLogger(name) for name in ("ray", "ray.rllib", "ray.tune")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def tiny_config(directory: Path) -> Path:
    return write_config(
        directory / "tiny.yaml",
        env_runners={"num_env_runners": 0},
        training={"train_batch_size_per_learner": 256, "num_epochs": 1},
        stop={"iterations": 4},
    )


def command(*arguments: object, cwd: Path | None = None) -> Ended:
    """`raytrain ARGUMENTS...` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "raytrain", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def left_behind(tmp_path: Path, *arguments: object) -> tuple[Ended, dict[str, bool]]:
    """The command, and which libraries it imported: torch, ray, and whether Ray was started."""
    told = tmp_path / "left_behind"
    program = PROGRAM.replace("sys.argv_left", repr(str(told)))
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    names = ("torch", "ray", "ray started")
    found = [word == "True" for word in told.read_text().split()]
    return Ended(done.returncode, done.stdout, done.stderr), dict(zip(names, found, strict=True))


def files_of(directory: Path) -> dict[str, bytes]:
    """Every file but the lock, which says who looked last."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".raytrain.lock"
    }


# Looking at checkpoints


def test_checkpoints_as_json(run: Finished) -> None:
    ended = command("checkpoints", run.experiment, "--json")
    assert (ended.code, ended.err) == (0, "")
    rows = ended.document
    assert all(set(row) == ROWS for row in rows)
    found = {row["path"]: (row["kind"], row["iteration"]) for row in rows}
    best = found.pop(f"{run.trial.name}/best")
    assert best[0] == "best"
    assert found == {
        f"{run.trial.name}/checkpoint_000002": ("periodic", 2),
        f"{run.trial.name}/final": ("final", 4),
    }
    for row in rows:
        manifest = json.loads((run.experiment / row["path"] / "manifest.json").read_text())
        assert (row["good"], row["problem"]) == (True, None)
        for key in ("iteration", "timesteps", "score", "weights_sha256"):
            assert row[key] == manifest[key]


def test_another_of_the_group_can_continue_the_run(run: Finished) -> None:
    """Each file and directory may be written by whom the umask lets write."""
    modes = {each: each.lstat().st_mode & 0o777 for each in run.experiment.rglob("*")}
    wanted = {each: 0o775 if each.is_dir() else 0o664 for each in modes}
    assert {str(each): oct(m) for each, m in modes.items() if m != wanted[each]} == {}


def test_each_option_has_its_name_written_out() -> None:
    """Typer 0.27 forgets an option that has a metavar alone."""
    calls = [
        node
        for file in Path(raytrain.__file__).parent.joinpath("cli").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Option"
    ]
    assert len(calls) > 20
    first = [call.args[0] if call.args else None for call in calls]
    names = [argument.value if isinstance(argument, ast.Constant) else None for argument in first]
    assert [name for name in names if not str(name).startswith("-")] == []


def test_checkpoints_as_a_table(run: Finished) -> None:
    ended = here("checkpoints", run.trial)
    assert (ended.code, ended.err) == (0, "")
    title, *lines = ended.out.splitlines()
    assert title.split()[:5] == ["path", "kind", "iteration", "timesteps", "score"]
    digest = json.loads((run.trial / "final" / "manifest.json").read_text())["weights_sha256"]
    (final,) = [line.split() for line in lines if line.startswith("final")]
    assert final[1:3] == ["final", "4"]
    assert final[-2:] == [digest[:12], "good"]


@pytest.mark.parametrize("name", ["checkpoint_000002", "final"])
def test_inspect_as_json_is_the_manifest(run: Finished, name: str) -> None:
    ended = here("inspect", run.trial / name, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.document == json.loads((run.trial / name / "manifest.json").read_text())


def test_inspect_of_an_experiment_is_its_newest_checkpoint(run: Finished) -> None:
    assert here("inspect", run.experiment, "--json").document["iteration"] == 4
    text = here("inspect", f"{run.experiment}:best").out
    best = json.loads((run.trial / "best" / "manifest.json").read_text())
    assert text.splitlines()[0] == str(run.trial / "best")
    assert f"weights_sha256: {best['weights_sha256']}\n" in text


def test_verify_names_the_damaged_file(copied: Finished) -> None:
    good = here("verify", copied.experiment)
    assert (good.code, good.err) == (0, "")
    assert len(good.out.splitlines()) == 3

    victim = copied.trial / "checkpoint_000002" / "policy.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    bad = here("verify", copied.experiment)
    assert bad.code == 1
    (line,) = [line for line in bad.out.splitlines() if "DAMAGED" in line]
    assert line.startswith(f"{copied.trial.name}/checkpoint_000002: DAMAGED")
    assert "policy.safetensors" in line

    alone = here("verify", victim.parent)
    assert alone.code == 1 and "policy.safetensors" in alone.out
    assert here("verify", copied.trial / "final").code == 0
    document = here("verify", copied.experiment, "--json").document
    assert document["good"] is False
    assert [row["good"] for row in document["checkpoints"]].count(False) == 1

    (row,) = [r for r in here("checkpoints", copied.experiment, "--json").document if not r["good"]]
    assert "policy.safetensors" in row["problem"]
    refused = here("evaluate", victim.parent)
    assert refused.code == 1 and "policy.safetensors" in refused.err


# Playing


def test_evaluate_is_reproducible_and_starts_no_ray(run: Finished, tmp_path: Path) -> None:
    first, left = left_behind(
        tmp_path, "evaluate", run.experiment, "--episodes", 3, "--seed", 5, "--json"
    )
    assert (first.code, first.err) == (0, ""), first
    assert left == {"torch": True, "ray": True, "ray started": False}
    found = first.document
    statistics = {
        f"episode_{what}_{part}"
        for what in ("return", "len")
        for part in ("mean", "std", "min", "max")
    }
    settings = {"episodes", "seed", "deterministic", "max_steps"}
    assert set(found) == {*settings, "episodes_cut", "returns", "lengths", *statistics}
    assert (found["episodes"], found["seed"], found["deterministic"]) == (3, 5, True)
    assert here("evaluate", run.experiment, "--episodes", 3, "--seed", 5, "--json") == first

    other = command("evaluate", f"{run.experiment}:final", "--episodes", 3, "--seed", 100)
    assert (other.code, other.err) == (0, "")
    numbers = here("evaluate", run.experiment, "--episodes", 3, "--seed", 100, "--json").document
    assert numbers["returns"] != found["returns"]
    assert other.out.startswith(f"return: mean {numbers['episode_return_mean']:.6g}, ")


def test_evaluate_outside_of_an_experiment_says_what_to_do(run: Finished, tmp_path: Path) -> None:
    alone = shutil.copytree(run.trial / "final", tmp_path / "alone")
    ended = here("evaluate", alone)
    assert ended.code == 2
    assert "no experiment.json above it" in ended.err and "load_policy" in ended.err


def test_probe_proves_a_way(tmp_path: Path) -> None:
    ended = command("probe", "CartPole-v1", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("CartPole-v1: pickle, exact\n")
    document = here("probe", "CartPole-v1", "--json").document
    assert (document["strategy"], document["exact"]) == ("pickle", True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["CartPol-v1"], "ENV: \"CartPol-v1\": no environment with this id"),
        (["CartPol-v1"], "did you mean 'CartPole-v1'?"),
        (["no_module:make"], "no module no_module"),
        (["CartPole-v1", "--env-config", "{sutton_bartow_reward: 1}"], "'sutton_barto_reward'"),
        (["CartPole-v1", "--env-config", "[1]"], "must be a mapping"),
        (["CartPole-v1", "--env-config", "{a"], "not valid YAML"),
    ],
)  # fmt: skip
def test_probe_refuses_what_is_no_environment(arguments: Any, said: str) -> None:
    ended = here("probe", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err


@pytest.mark.parametrize("where", ["info", "legal"])
def test_probe_takes_allowed_actions_only(where: str, tmp_path: Path) -> None:
    env = ("masked_envs:Masked", "--env-config", f"{{where: {where}}}")
    assert here("probe", *env, "--action-mask", where).code == 0
    # A mask under its usual name is followed anyhow: the user's own network may do so.
    assert ("is not allowed" in here("probe", *env).err) == (where == "legal")
    no_key = here("probe", *env, "--action-mask", "none")
    assert (no_key.code, "environment.action_mask" in no_key.err) == (2, True), no_key
    config = {
        "name": "masked",
        "environment": {
            "env": env[0],
            "env_config": {"where": where},
            "action_mask": where,
        },
        "stop": {"iterations": 1},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    assert here("probe", str(path)).code == 0


# An environment that prints


def heard(text: str) -> set[tuple[str, ...]]:
    """How, and where, `loud_envs` wrote something."""
    return {tuple(line.split()) for line in text.splitlines() if len(line.split()) == 2}


EVERYWHERE = {
    *((way, where) for way in ("python", "kept", "c", "descriptor")
      for where in ("import", "init", "reset", "step", "close", "exit")),
    ("process", "import"),
}  # fmt: skip


@pytest.mark.slow
def test_with_json_stdout_holds_the_document_alone_whatever_an_environment_prints(
    copied: Finished,
) -> None:
    shutil.copy(ENVS / "loud_envs.py", copied.experiment.parent)
    file = copied.experiment / "experiment.json"
    document = json.loads(file.read_text())
    document["config"]["environment"]["env"] = "loud_envs:make"
    document["config"]["import_path"] = str(copied.experiment.parent)
    file.write_text(json.dumps(document))
    played = command("evaluate", f"{copied.experiment}:final", "--episodes", "2", "--json")
    assert played.document["episodes"] == 2
    assert heard(played.err) >= EVERYWHERE
    tried = command("probe", "loud_envs:make", "--json", cwd=copied.experiment.parent)
    assert tried.document["strategy"] == "pickle"
    assert heard(tried.err) >= EVERYWHERE
    # Without --json it is the person's stdout.
    assert ("python", "step") in heard(
        command("evaluate", f"{copied.experiment}:final", "--episodes", "1").out
    )


def test_probe_reads_values_as_a_config_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "measured_envs.py").write_text(
        "import gymnasium as gym\n"
        "def make(x):\n"
        "    assert repr(x) == '10.0'\n"
        "    return gym.make('CartPole-v1')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert here("probe", "measured_envs:make", "--env-config", "{x: 1e1}").code == 0
    ended = here("probe", "measured_envs:make", "--env-config", "{x: 010}")
    assert ended.code == 2
    assert "x: 010 has different meanings in YAML 1.1" in ended.err


# Wrong arguments


@pytest.mark.parametrize("name", ["checkpoints", "inspect", "verify", "evaluate", "audit"])
def test_a_path_that_is_none_of_ours(name: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("nothing")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing", file, tmp_path / "empty", tmp_path):
        ended = here(name, path)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith("error: ") and str(path) in ended.err
        assert here(name, path, "--json").out == ""


def test_resume_needs_an_experiment(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        ended = here("resume", path)
        assert (ended.code, ended.out) == (2, "")
        assert "no experiment.json" in ended.err and "raytrain train CONFIG" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_train_needs_a_file(run: Finished, tmp_path: Path) -> None:
    missing = here("train", run.config.with_name("tinny.yaml"))
    assert missing.code == 2
    assert "no such file" in missing.err and str(run.config) in missing.err
    directory = here("train", tmp_path)
    assert directory.code == 2 and "is a directory" in directory.err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("nonsense", "must be KEY=VALUE"),
        ("training.lrr=1", "unknown key (did you mean 'lr'?)"),
        ("training.lr=[1", "not valid YAML"),
        ("stop.iterations=soon", "must be a whole number"),
    ],
)
def test_nonsense_in_a_setting(run: Finished, setting: str, said: str) -> None:
    ended = here("train", run.config, "--set", setting)
    assert (ended.code, ended.out) == (2, "")
    assert f"--set {setting}" in ended.err and said in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["train", "a.yaml", "--sett", "a=b"],
        ["evaluate", "a", "--episodes", "0"],
        ["evaluate", "a", "--seed", "-1"],
        ["checkpoints", "a", "b"],
        ["trian", "a.yaml"],
    ],
)
def test_an_unknown_option_or_argument(arguments: Any) -> None:
    ended = here(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Error" in ended.err


def test_help_and_version() -> None:
    text = here("--help").out
    for code in ("0 ", "1 ", "2 ", "130/143 "):
        assert f"\n    {code}" in text
    # A sentence that is cut off tells nothing.
    assert "..." not in text.split("Commands:")[1]
    assert "--set training.lr=1e-4" in here("train", "--help").out
    version = here("--version")
    assert version.code == 0
    assert version.out.startswith("raytrain ") and "ray 2." in version.out


# The same command again


def test_a_finished_run_says_so_without_ray(run: Finished, tmp_path: Path) -> None:
    before = files_of(run.experiment)
    for arguments in (["train", run.config], ["resume", run.experiment]):
        ended, left = left_behind(tmp_path, *arguments)
        assert (ended.code, ended.out) == (0, "")
        assert ended.err.startswith("run is finished: trial_00000 at iteration 4")
        assert not left["ray"] and not left["torch"]
    assert files_of(run.experiment) == before


def test_a_changed_config_is_refused_with_both_ways_on(run: Finished) -> None:
    before = files_of(run.experiment)
    ended = here("train", run.config, "--set", "training.lr=0.5", "--set", "seed=9")
    assert (ended.code, ended.out) == (2, "")
    assert "training.lr: was 0.001, is now 0.5" in ended.err
    assert "seed: was 3, is now 9" in ended.err
    assert "--fresh" in ended.err and "--name" in ended.err
    assert files_of(run.experiment) == before


@pytest.mark.slow
def test_fresh_sets_the_old_directory_aside(copied: Finished) -> None:
    old = files_of(copied.experiment)
    ended = command("train", copied.config, "--fresh", "--set", "stop.iterations=1")
    assert (ended.code, ended.out) == (0, "")
    (aside,) = [d for d in copied.experiment.parent.iterdir() if d != copied.experiment]
    assert f"the old directory is now {aside}" in ended.err
    assert files_of(aside) == old
    stored = [json.loads((d / "experiment.json").read_text()) for d in (aside, copied.experiment)]
    assert stored[0]["run_id"] != stored[1]["run_id"]
    assert here("inspect", copied.experiment, "--json").document["iteration"] == 1


def test_another_name_is_another_run(run: Finished, tmp_path: Path) -> None:
    """It is refused for its environment, and the run of the file's own name is left alone."""
    before = files_of(run.experiment)
    ended = here("train", run.config, "--name", "other", "--set", "environment.env=CartPol-v1")
    assert ended.code == 2 and "did you mean 'CartPole-v1'" in ended.err
    assert files_of(run.experiment) == before
    assert not (run.experiment.parent / "other").exists()


# The Python API


def test_importing_raytrain_imports_neither_ray_nor_torch() -> None:
    code = "import sys, raytrain; assert not {'ray', 'torch', 'gymnasium'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_list_checkpoints(run: Finished) -> None:
    listed = raytrain.list_checkpoints(run.experiment)
    assert [entry.kind for entry in listed if entry.path != "best"] == ["periodic", "final"]
    assert all(entry.good for entry in listed)
    with pytest.raises(BadInput, match="There is no directory"):
        raytrain.list_checkpoints(run.experiment / "missing")


def test_load_policy_acts_on_one_and_on_a_batch(run: Finished) -> None:
    best = json.loads((run.trial / "best" / "manifest.json").read_text())["iteration"]
    observations = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    actions = {}
    for path in (f"{run.experiment}:best", f"{run.trial}:final", run.trial / "checkpoint_000002"):
        policy = raytrain.load_policy(path)
        actions[str(path)] = policy.act(observations)
        assert actions[str(path)].shape == (6,)
        one = policy.act(observations[0])
        assert type(one) is int and one == actions[str(path)][0]
    final = raytrain.load_policy(run.experiment).act(observations)
    np.testing.assert_array_equal(final, actions[f"{run.trial}:final"])
    if best == 4:
        np.testing.assert_array_equal(final, actions[f"{run.experiment}:best"])


def test_sampled_actions_follow_the_seed(run: Finished) -> None:
    observation = np.zeros(4, np.float32)

    def sampled(seed: int) -> list[int]:
        policy = raytrain.load_policy(run.experiment, seed=seed)
        return [policy.act(observation, deterministic=False) for _ in range(40)]

    assert sampled(1) == sampled(1) != sampled(2)


def test_load_policy_says_nothing(run: Finished) -> None:
    """Ray 2.60 logs a deprecation of its own making for the first module of a process."""
    code = f"import raytrain; raytrain.load_policy({str(run.experiment)!r})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_mapping_is_a_config(run: Finished) -> None:
    values = {**yaml.safe_load(run.config.read_text())}
    outcome = raytrain.train({**values, "import_path": str(run.config.parent)})
    assert outcome.exit_code == 0 and "is finished" in outcome.message
    assert raytrain.resume(outcome.path).exit_code == 0


def test_a_closed_stdout_is_no_error(tmp_path: Path) -> None:
    program = f"exec {sys.executable} -m raytrain list {tmp_path} --json >&-"
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# Storage that is not there


def test_a_storage_path_that_is_none_and_one_that_nobody_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = here("checkpoints", "a\0b")
    assert ended.code == 2 and "a\\x00b' is not a path: it holds a NUL character." in ended.err
    ended = here("checkpoints", "s3://")
    assert ended.code == 2 and "names no bucket. Write s3://BUCKET/DIRECTORY" in ended.err

    def unreachable(uri: str) -> None:
        raise OSError("When resolving region for bucket 'b': could not resolve host")

    monkeypatch.setattr(
        "raytrain.storage.location.pafs.FileSystem", SimpleNamespace(from_uri=unreachable)
    )
    ended = here("checkpoints", "s3://b/runs")
    assert ended.code == 1
    assert "Opening the storage s3://b/runs failed: When resolving region" in ended.err


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("name", ["show", "checkpoints"])
def test_a_full_disk_below_stdout_is_told_in_one_sentence(
    run: Finished, name: str, options: Any
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "raytrain", name, run.experiment, *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: the output could not be written: No space left on device.\n"
