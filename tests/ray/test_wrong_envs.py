"""What a user's environment can do wrong before Ray starts: exit code 2, and what, where and
what to do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wrong_envs
import yaml
from support.commands import Ended, here

from raytrain.config import config_from_dict
from raytrain.config.user_code import by_the_code_itself
from raytrain.driver.spaces import observation_problem, require_observations
from raytrain.policy.env_contract import Contract
from raytrain.rollout import timeout
from raytrain.rollout.env_snapshots import prove

HERE = str(Path(wrong_envs.__file__).name)


def line_of(text: str) -> int:
    """The line of wrong_envs.py that holds `text`, once."""
    lines = Path(wrong_envs.__file__).read_text().splitlines()
    (found,) = [number for number, line in enumerate(lines, 1) if text in line]
    return found


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Ended]:
    """`raytrain train` with a module of this text as its environment's, imported for
    the first time."""
    name = f"module_{re.sub('[^a-z0-9]', '_', tmp_path.name.lower())}"
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(text: str, *command: str) -> Ended:
        (tmp_path / f"{name}.py").write_text(text)
        config = {"environment": {"env": f"{name}:make"}, "stop": {"iterations": 1}}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        monkeypatch.chdir(tmp_path)
        return here(*(command or ("train", "run.yaml", "--storage-path", tmp_path / "results")))

    return run


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("import gymnasium\nx = undefined\n", "NameError: name 'undefined' is not defined", 2),
        ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax", 2),
        ("x = 1\nimport no_such_package\n", "No module named 'no_such_package'", 2),
        ("\n\nopen('prices.csv')\n", "FileNotFoundError", 3),
        ("import sys\nsys.exit(4)\n", "SystemExit: 4", 2),
        ("import argparse\np = argparse.ArgumentParser()\np.add_argument('x')\np.parse_args([])\n",
         "SystemExit: 2", 4),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt", 1),
        ("def f():\n    raise KeyError(7)\nf()\n", "KeyError: 7", 2),
        ("class Odd(BaseException): pass\nraise Odd('x')\n", "Odd: x", 2),
        ("import os\nos._exit(0)\n", "RuntimeError: os._exit(0) ends the whole program", 2),
        ("x = 1\ndef __getattr__(name):\n    raise KeyError(name)\n", "KeyError: 'make'", 3),
    ],
)  # fmt: skip
def test_a_module_that_fails_to_import(
    beside: Callable[[str], Ended], tmp_path: Path, text: str, said: str, line: int
) -> None:
    ended = beside(text)
    assert ended.code == 2
    (module,) = tmp_path.glob("module_*.py")
    doing = "reading" if "__getattr__" in text else "importing"
    assert f'error: run.yaml:2: environment.env: "{module.stem}:make": {doing}' in ended.err
    assert said in ended.err
    assert f"({module}, line {line})" in ended.err
    if said.startswith("SystemExit"):
        assert '`if __name__ == "__main__":`' in ended.err
    if said == "FileNotFoundError":
        assert f"looked for in the working directory, {tmp_path}" in ended.err
    assert not (tmp_path / "results").exists()


def test_probe_says_the_same_of_a_module(beside: Any, tmp_path: Path) -> None:
    (tmp_path / "asked.py").write_text("import sys\nsys.exit('not here')\n")
    ended = beside("", "probe", "asked:make")
    assert ended.code == 2
    assert "importing asked fails: SystemExit: not here" in ended.err
    assert f"({tmp_path / 'asked.py'}, line 2)" in ended.err


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("./my_envs:make", "./my_envs is not the name of a module; for a file my_envs.py beside"),
        ("my_envs.py/:make", "is not the name of a module"),
        (".my_envs:make", "is not the name of a module"),
        ("sys:path", "path in sys (a part of Python) is a list and not callable"),
        ("sys:nothing", "the module sys (a part of Python) has no nothing"),
    ],
)
def test_what_cannot_be_a_factory_is_said_to_be_none(spec: str, said: str) -> None:
    ended = here("probe", spec)
    assert ended.code == 2
    assert said in ended.err


@pytest.mark.parametrize("name", ["ray.py", "torch/__init__.py"])
def test_a_file_with_the_name_of_a_package_that_is_needed_is_refused(
    beside: Callable[[str], Ended], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    ended = beside("import wrong_envs\nmake = wrong_envs.Right\n")
    assert ended.code == 2
    assert f"{tmp_path / name} would be imported instead of the package" in ended.err


def test_another_default_dtype_of_torch_is_refused(beside: Callable[[str], Ended]) -> None:
    try:
        ended = beside("import torch\ntorch.set_default_dtype(torch.float64)\n")
    finally:
        torch.set_default_dtype(torch.float32)
    assert ended.code == 2
    assert "sets Torch's default dtype to torch.float64, and the networks need" in ended.err


def probe(module: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raytrain", "probe", f"{module.stem}:make"],
        cwd=module.parent,
        env={**os.environ, "PYTHONPATH": str(Path(wrong_envs.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_a_fault_in_an_environment_that_is_tried_says_where(tmp_path: Path) -> None:
    module = tmp_path / "faulty.py"
    module.write_text(
        "import ctypes\nimport wrong_envs\n"
        "class make(wrong_envs.Right):\n"
        "    def reset(self, **options):\n"
        "        ctypes.string_at(0)\n"
    )
    probed = probe(module)
    assert probed.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in probed.stderr
    assert f'File "{module}", line 5 in reset' in probed.stderr


@pytest.mark.slow
def test_a_thread_that_a_module_leaves_behind_keeps_no_command_alive(tmp_path: Path) -> None:
    module = tmp_path / "listening.py"
    module.write_text(
        "import threading\nimport wrong_envs\n"
        "threading.Thread(target=threading.Event().wait, name='receiver').start()\n"
        "make = wrong_envs.Right\n"
    )
    probed = probe(module)
    assert probed.returncode == 0, probed.stderr
    assert "pickle" in probed.stdout
    assert "the environment's code started have not ended: receiver." in probed.stderr


def test_ctrl_c_is_no_mistake_of_the_code() -> None:
    def interrupted() -> BaseException:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            return error
        finally:
            signal.signal(signal.SIGINT, before)
        raise AssertionError

    def raised(kind: type[BaseException]) -> BaseException:
        try:
            raise kind
        except BaseException as error:
            return error

    assert not by_the_code_itself(interrupted())
    assert by_the_code_itself(raised(KeyboardInterrupt))
    assert by_the_code_itself(raised(SystemExit))


BOX = "Box(-1.0, 1.0, (2,), float32)"
STEP = "step() must return five values: observation, reward, terminated, truncated, info"


@pytest.mark.parametrize(
    ("name", "rule", "returned"),
    [
        ("Shape", f"the observation must fit its space {BOX}", "its shape is (1, 2), not (2,)"),
        ("Text", "the observation must fit its space", "'here' (a str): its shape is (), not (2,)"),
        ("ObservationNan", "the observation must fit its space", "it contains NaN or infinity"),
        ("RewardArray", "the reward must be one finite number", "an array of shape (2,)"),
        ("RewardNone", "the reward must be one finite number", "returned None"),
        (
            "RewardHuge",
            "the reward must be one finite number, and is stored with 32 bits",
            "returned 1e+300 (a float)",
        ),
        (
            "RewardWord",
            "the reward must be one finite number",
            "an array of shape () and dtype <U1",
        ),
        (
            "ObservationHuge",
            "the observation must fit its space",
            "a number in it is beyond 3.4e38",
        ),
        ("RewardNan", "the reward must be one finite number", "returned nan (a float)"),
        ("FlagText", "terminated must be True or False", "returned 'no' (a str)"),
        ("InfoNone", "info must be a dict", "returned None"),
        ("FourValues", STEP, "a tuple of 4 (ndarray, float, bool, dict). Before version 0.26"),
        ("Nothing", STEP, "returned None"),
    ],
)
def test_what_step_returns(name: str, rule: str, returned: str) -> None:
    ended = here("probe", f"wrong_envs:{name}")
    assert ended.code == 2
    assert f"The environment wrong_envs:{name} cannot be trained on: {rule}" in ended.err
    assert returned in ended.err
    place = f"{name}.step ({HERE}, line {line_of('def step(self, action: Any) -> Any:  # here')})"
    assert f". {place} returned" in ended.err


@pytest.mark.parametrize(
    ("name", "said", "place"),
    [
        ("Bug", "step() raised KeyError: 3", ("Bug.wrong", "return empty[3]")),
        ("Exits", "step() raised SystemExit: no licence", ("Exits.wrong",
         'sys.exit("no licence")')),
        ("Interrupts", "step() raised KeyboardInterrupt", ("Interrupts.wrong",
         "KeyboardInterrupt")),
        ("needs_a_display", "raised RuntimeError: no display here", ("needs_a_display",
         "display here")),
        ("ends_the_program", "raised SystemExit: 3", ("ends_the_program", "sys.exit(3)")),
        ("Leaves", "step() raised RuntimeError: os._exit(0) ends the whole program",
         ("Leaves.wrong", "os._exit(0)")),
    ],
)  # fmt: skip
def test_what_the_code_raises(name: str, said: str, place: tuple[str, str]) -> None:
    ended = here("probe", f"wrong_envs:{name}")
    assert ended.code == 2
    assert f"{said}, in {place[0]} ({HERE}, line {line_of(place[1])})" in ended.err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("NoInfo", "reset() must return two values: observation, info. NoInfo.reset"),
        ("NoSeed", "reset() raised TypeError: NoSeed.reset() got an unexpected keyword argument "
                   "'seed'"),
        ("NoSpace", "observation_space must be a space of gymnasium.spaces; that of NoSpace is "
                    "None"),
        ("Changing", "the action space must stay Discrete(2); after reset() it is Discrete(3)"),
        ("NoReset", "NoReset does not define reset()"),
        ("nothing", "returned None: does it end with `return env`?"),
        ("a_class", "returned the class Right: return an object of it, Right(...)"),
        ("vectorised", "returned a SyncVectorEnv: return one environment; "
         "env_runners.num_envs_per_env_runner makes copies"),
        ("Wrapped", f"the reward must be one finite number. Wrapped.step ({HERE}, line "),
    ],
)  # fmt: skip
def test_what_else_is_wrong(name: str, said: str) -> None:
    ended = here("probe", f"wrong_envs:{name}")
    assert (ended.code, said in ended.err) == (2, True), ended.err


def test_train_refuses_before_ray_starts(tmp_path: Path) -> None:
    ended = with_config(tmp_path, environment={"env": "wrong_envs:Shape"})
    assert ended.code == 2
    assert "its shape is (1, 2), not (2,)" in ended.err
    assert "Traceback" not in ended.err
    assert not list((tmp_path / "results").glob("*/experiment.json"))


def test_outside_of_the_space_is_a_warning() -> None:
    outside = prove(lambda: wrong_envs.Outside(after=20))
    (said,) = outside.warnings
    assert re.match(r"\d+ of \d+ observations of the trial were outside", said)
    assert "at [0] it is 50.0, and the bounds are -1.0 and 1.0" in said
    assert outside.strategy == "pickle"
    assert outside.exact
    contract = Contract(wrong_envs.Right())
    contract.observation("step", np.full(2, 1 + 1e-9))  # 1 in the space's own dtype
    assert contract.warnings() == ()


def test_a_close_that_raises_is_a_warning() -> None:
    proof = prove(wrong_envs.BrokenClose)
    assert proof.exact
    assert "close() raised OSError: still open, in BrokenClose.close" in proof.warnings[0]


REFUSED = {
    "empty": "its observation space is Box([], [], (0,), float32), which holds no numbers",
    "text": "leave the text out",
    "sequence": "return a Box of the greatest length",
    "graph": "return the nodes in a Box",
    "text within": "its observation space['at'][1] is Text",
    "numbered": "its observation space has the key 1",
    "nothing within": "its observation space['at'] is Tuple(), which holds nothing",
    "a large number": "the network would need 100,000,000 inputs",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_space_without_a_network_is_refused_with_a_remedy(tmp_path: Path, kind: str) -> None:
    environment = {"env": "wrong_envs:Sampled", "env_config": {"kind": kind}}
    ended = with_config(tmp_path, environment=environment)
    assert ended.code == 2
    said = " ".join(ended.err.split())
    assert 'environment.env: "wrong_envs:Sampled": its observation space' in said
    assert REFUSED[kind] in said


@pytest.mark.parametrize("kind", [kind for kind in wrong_envs.SPACES if kind not in REFUSED])
def test_every_other_space_has_a_network(kind: str) -> None:
    assert observation_problem(wrong_envs.SPACES[kind]) is None


def with_config(tmp_path: Path, **sections: Any) -> Ended:
    config = {"stop": {"iterations": 1}, "storage_path": str(tmp_path / "results"), **sections}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return here("train", tmp_path / "run.yaml")


def test_arguments_of_evaluation_alone_are_looked_at(tmp_path: Path) -> None:
    evaluation = {"evaluation_interval": 1, "evaluation_config": {"env_config": {"aftr": 3}}}
    ended = with_config(tmp_path, environment={"env": "wrong_envs:Right"}, evaluation=evaluation)
    assert ended.code == 2
    assert f"{tmp_path}/run.yaml:6: evaluation.evaluation_config.env_config.aftr: 3" in ended.err
    assert "(did you mean 'after'?)" in ended.err


@pytest.mark.parametrize(
    ("after", "said"), [(7, "step() raised KeyError: 3, in Bug.wrong"), ("x", "TypeError")]
)
def test_an_environment_that_fails_in_evaluation_is_refused_before_ray_starts(
    tmp_path: Path, after: Any, said: str
) -> None:
    environment = {"env": "wrong_envs:Bug", "env_config": {"after": 10**9}}
    evaluation = {"evaluation_interval": 1, "evaluation_config": {"env_config": {"after": after}}}
    ended = with_config(tmp_path, environment=environment, evaluation=evaluation)
    assert ended.code == 2
    assert "The environment of evaluation (evaluation.evaluation_config.env_config)" in ended.err
    assert said in ended.err
    assert not list((tmp_path / "results").glob("*/experiment.json"))


def test_evaluation_with_other_spaces_is_refused(tmp_path: Path) -> None:
    evaluation = {"evaluation_interval": 1, "evaluation_config": {"env_config": {"kind": "image"}}}
    environment = {"env": "wrong_envs:Sampled", "env_config": {"kind": "float32"}}
    ended = with_config(tmp_path, environment=environment, evaluation=evaluation)
    assert ended.code == 2
    said = (
        "evaluation.evaluation_config.env_config changes the observation space from "
        "Box(-1.0, 1.0, (3,)"
    )
    assert said in ended.err


def test_an_environment_that_hangs_in_its_trial_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(frame: Any) -> str:
        found = position(frame)
        if "Slow" in found:
            wrong_envs.SEEN.set()
        return found

    position = timeout.position
    monkeypatch.setattr(timeout, "position", seen)
    monkeypatch.setattr("raytrain.driver.stages.SLOW_TRIAL_S", 1.0)
    ended = with_config(tmp_path, environment={"env": "wrong_envs:Slow"})
    said = f"is still in Slow.__init__ ({HERE}, line {line_of('SEEN.wait(60)')}), there in wait"
    assert said in ended.err.replace("\n", " ")
    assert "raised RuntimeError: at last, in Slow.__init__" in ended.err


def test_a_filter_that_has_nothing_to_normalize_is_said_to_do_nothing() -> None:
    said: list[str] = []
    config = config_from_dict(
        {
            "name": "lake",
            "environment": {"env": "FrozenLake-v1"},
            "env_runners": {"observation_filter": "MeanStdFilter"},
            "stop": {"iterations": 1},
        }
    )
    for kind in ("discrete", "multibinary", "dict", "int64"):
        require_observations(wrong_envs.SPACES[kind], config, said.append)
    assert len(said) == 2 and all("it does nothing" in each for each in said)
