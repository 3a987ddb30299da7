"""RLlib's own programs run with `raytrain.Tuner` in the place of Tune's; each is killed once, and
ends as the run that nothing disturbed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray.rllib.examples
from support import tune_program
from support.paths import ROOT
from support.rllib_examples import EXAMPLES, Example
from support.running import Run, committed, rows

WHERE = Path(ray.rllib.examples.__file__).parent


def start(example: Example, home: Path) -> Run:
    """The program, with its results in `home`, as Tune puts them there."""
    home.mkdir(exist_ok=True)
    return Run(
        str(WHERE / example.path),
        "--checkpoint-freq=1",
        f"--stop-iters={example.iterations}",
        *example.arguments,
        log=home / "log.txt",
        # It starts a Ray of its own, and does not join one that runs on this machine.
        env={"HOME": str(home), "RAY_ADDRESS": "local"},
        program=(str(tune_program.__file__),),
    )


def trial_in(home: Path) -> Path | None:
    return next(home.glob("ray_results/PPO_*/trial_00000"), None)


def trained(run: Run, home: Path) -> Path:
    assert run.wait(3600) == 0, run.output()
    trial = trial_in(home)
    assert trial is not None, run.output()
    return trial


def digests(trial: Path) -> list[str]:
    return [row["weights_sha256"] for row in rows(trial)]


def check(example: Example, tmp_path: Path) -> None:
    left_alone = start(example, tmp_path / "left_alone")
    expected = trained(left_alone, tmp_path / "left_alone")
    assert len(digests(expected)) == example.iterations
    output = left_alone.output()
    for what, reason in (("sampling", example.sampling), ("update", example.update)):
        slow = f"RLlib's own {what} is used, which is several times slower: "
        assert (slow in output) == bool(reason), output
        assert not reason or reason in output.partition(slow)[2].splitlines()[0]

    killed = start(example, tmp_path / "killed")
    killed.until(lambda: (trial := trial_in(tmp_path / "killed")) and committed(trial), 3600)
    killed.kill_everything()
    found = trained(start(example, tmp_path / "killed"), tmp_path / "killed")
    assert found.parent.name == expected.parent.name
    assert "Continued from checkpoint_" in killed.output()
    manifest = json.loads((found / "final" / "manifest.json").read_text())
    assert manifest["exact"] == example.exact, manifest["exact_lost"]
    if example.exact:
        assert digests(found) == digests(expected)
    else:
        assert example.why in manifest["exact_lost"]["why"]


@pytest.mark.slow
@pytest.mark.timeout(10_000)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_rllibs_programs(example: Example, tmp_path: Path) -> None:
    check(example, tmp_path)


def test_the_documented_table_is_what_is_tested() -> None:
    text = (ROOT / "docs" / "guide" / "migration.md").read_text()
    table = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    documented = {row[1].strip().strip("`"): [cell.strip() for cell in row[2:5]] for row in table}
    for example in EXAMPLES:
        sampling, update, exact = documented[example.path]
        assert (sampling == "fast", update == "fast") == (not example.sampling, not example.update)
        assert (exact in ("yes", "expected")) == example.exact
