"""`raytrain export` and `raytrain evaluate --video`, on a real run; progress bars."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from rich.console import Console
from support.commands import here
from support.running import experiment_of, trial_of

import raytrain
from raytrain.commands.progress_bar import busy, track
from raytrain.storage import Location

WITHOUT_RAY = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Refuse())

import pickle
def refuse(event, args):
    if event == "pickle.find_class":
        raise AssertionError("unpickled")
sys.addaudithook(refuse)

import json
import numpy as np
import raytrain

policy = raytrain.load_policy(sys.argv[1], seed=5)
given = np.load(sys.argv[2], allow_pickle=False)
acted = {
    "batch": policy.act(given).tolist(),
    "single": [policy.act(each) for each in given],
    "sampled": policy.act(given, deterministic=False).tolist(),
    "metadata": policy.metadata,
}
assert not [name for name in sys.modules if name.split(".")[0] == "ray"]
print(json.dumps(acted))
"""


@pytest.fixture(scope="module")
def exported(survivor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best policy with everything that can be asked for."""
    directory = tmp_path_factory.mktemp("exported") / "policy"
    found = here("export", f"{experiment_of(survivor)}:best", directory, "--onnx", "--torchscript")
    assert (found.code, found.err) == (0, ""), found
    assert found.out.startswith(f"{directory}: README.md, policy.json, policy.onnx, policy.pt, ")
    return directory


@pytest.fixture(scope="module")
def observations() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (64, 4)).astype(np.float32)


def test_an_exported_policy_needs_no_ray_and_acts_as_the_checkpoint(
    survivor: Path, exported: Path, observations: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "given.npy", observations)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, str(exported), str(tmp_path / "given.npy")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    acted = json.loads(done.stdout)
    policy = raytrain.load_policy(f"{experiment_of(survivor)}:best", seed=5)
    assert acted["batch"] == policy.act(observations).tolist()
    assert acted["single"] == [policy.act(each) for each in observations]
    assert acted["sampled"] == policy.act(observations, deterministic=False).tolist()
    assert len(set(acted["batch"])) == 2
    manifest = json.loads((trial_of(survivor) / "best" / "manifest.json").read_text())
    for key in ("experiment", "run_id", "iteration", "timesteps", "score", "config_digest"):
        assert acted["metadata"][key] == manifest[key]


def test_onnx_and_torchscript_take_raw_observations(
    exported: Path, observations: np.ndarray
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    expected = raytrain.load_policy(exported).act(observations)
    (scripted,) = torch.jit.load(str(exported / "policy.pt"))(torch.from_numpy(observations))
    assert scripted.tolist() == expected.tolist()
    session = onnxruntime.InferenceSession(
        str(exported / "policy.onnx"), providers=["CPUExecutionProvider"]
    )
    for given in (observations, observations[:1]):
        (actions,) = session.run(["action"], {"observation": given})
        assert actions.tolist() == expected[: len(given)].tolist()


def test_the_model_card(survivor: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    manifest = json.loads((trial_of(survivor) / "best" / "manifest.json").read_text())
    assert card.startswith("# run: a PPO policy for stumbling_cartpole:make\n")
    for line in (
        f"| run | {manifest['run_id']} |",
        f"| iteration | {manifest['iteration']} |",
        f"| weights SHA-256 | {manifest['weights_sha256']} |",
        f"| score (`episode_return_mean`) | {manifest['score']:g} |",
        "| actions | Discrete(2) |",
        "Trained from the beginning: no parent.",
        "## Config\n\n```yaml\nname: run\n",
        "(actions,) = torch.jit.load(",
        "`observation` in, `action` out",
    ):
        assert line in card


def test_evaluate_plays_the_exported_policy_only_where_its_environment_is_known(
    exported: Path,
) -> None:
    """It lies in no experiment; from Python it plays in any environment with its spaces."""
    found = here("evaluate", exported)
    assert found.code == 2 and "load_policy" in found.err
    from raytrain.policy.evaluate import evaluate

    policy = raytrain.load_policy(exported)
    assert evaluate(policy, lambda: gym.make("CartPole-v1"), episodes=1, seed=0).lengths[0] > 1


def test_export_as_json_and_to_other_storage(survivor: Path, tmp_path: Path) -> None:
    uri = f"memory://{tmp_path.name}/policy"
    found = here("export", trial_of(survivor) / "final", uri, "--json")
    assert (found.code, found.err) == (0, "")
    assert found.document["files"] == ["README.md", "policy.json", "policy.safetensors"]
    assert (found.document["needs_ray"], found.document["onnx_difference"]) == (None, None)
    copy = tmp_path / "copy"
    Location.of(uri).copy_tree(Location.of(copy))
    assert raytrain.load_policy(copy).metadata["kind"] == "final"


def test_export_refuses(
    survivor: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    used = here("export", experiment_of(survivor), exported)
    assert used.code == 2 and "not an empty directory" in used.err
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    nothing = here("export", tmp_path, tmp_path / "out")
    assert nothing.code == 2 and not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    missing = here("export", experiment_of(survivor), tmp_path / "out", "--onnx")
    assert missing.code == 2 and 'pip install "raytrain[export]"' in missing.err
    assert not (tmp_path / "out").exists()


def test_damage_is_not_exported(survivor: Path, tmp_path: Path) -> None:
    experiment = shutil.copytree(experiment_of(survivor), tmp_path / "run")
    victim = experiment / "trial_00000" / "best" / "policy.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    found = here("export", f"{experiment}:best", tmp_path / "out")
    assert found.code == 1 and "policy.safetensors" in found.err
    assert not (tmp_path / "out").exists()


# Videos


def test_videos_of_the_very_episodes(survivor: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    arguments = (
        "evaluate",
        f"{experiment_of(survivor)}:best",
        "--episodes",
        2,
        "--seed",
        3,
        "--json",
    )
    found = here(*arguments, "--video", videos)
    assert found.code == 0, found.err
    assert found.document == here(*arguments).document
    files = sorted(videos.iterdir())
    assert [path.name for path in files] == ["policy-episode-0.mp4", "policy-episode-1.mp4"]
    assert all(path.read_bytes()[4:8] == b"ftyp" for path in files)
    again = here(*arguments, "--video", videos)
    assert again.code == 2 and "exists already" in again.err


def test_videos_are_refused_where_they_cannot_be_made(
    survivor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = shutil.copytree(experiment_of(survivor), tmp_path / "run")
    stored = json.loads((experiment / "experiment.json").read_text())
    stored["config"]["environment"]["env"] = "stumbling_cartpole:make_blind"
    (experiment / "experiment.json").write_text(json.dumps(stored))
    found = here("evaluate", experiment, "--video", tmp_path / "videos")
    assert found.code == 2 and "render_mode" in found.err
    monkeypatch.setitem(sys.modules, "moviepy", None)
    found = here("evaluate", experiment, "--video", tmp_path / "videos")
    assert found.code == 2 and 'pip install "raytrain[video]"' in found.err
    assert not (tmp_path / "videos").exists()


# Progress bars


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_bar_comes_up_when_the_work_takes_long() -> None:
    console, up = terminal(), threading.Event()
    original = console.file.write

    def write(text: str) -> int:
        if "Checking" in text:
            up.set()
        return original(text)

    console.file.write = write  # type: ignore[method-assign]
    seen = []
    for item in track([1, 2], "Checking", console=console, delay_s=0.05):
        assert up.wait(600)
        seen.append(item)
    assert seen == [1, 2]
    assert "0/2" in written(console)


def test_quick_work_and_logs_show_nothing() -> None:
    console = terminal()
    assert list(track(iter("ab"), "Checking", console=console, delay_s=60)) == ["a", "b"]
    with busy("Looking", console=console, delay_s=60):
        pass
    assert written(console) == ""
    log = Console(file=io.StringIO())
    with busy("Looking", console=log, delay_s=0):
        assert list(track([1], "Checking", console=log, delay_s=0)) == [1]
    assert written(log) == ""


# A shell starts what it does not wait for with Ctrl-C ignored, and children inherit that.
_HEARS_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from raytrain.cli import main
main()
"""


@pytest.mark.slow
def test_a_person_at_a_terminal_sees_how_far_an_evaluation_is(survivor: Path) -> None:
    """The bar is drawn on stderr, a pseudo-terminal here; Ctrl-C ends it."""
    ours, theirs = pty.openpty()
    experiment = str(experiment_of(survivor))
    run = subprocess.Popen(
        [sys.executable, "-c", _HEARS_CTRL_C, "evaluate", experiment, "--episodes", "1000000"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    said = b""
    try:
        while b"/1000000" not in said and select.select([ours], [], [], 600)[0]:
            said += os.read(ours, 4096)
        assert b"Playing" in said and b"/1000000" in said
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=600)
        assert (run.returncode, out) == (130, b"")
    finally:
        run.kill()
        os.close(ours)
