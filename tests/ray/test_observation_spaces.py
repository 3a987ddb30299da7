"""Every observation space is sampled into arrays, as RLlib samples it with connectors, and the
policy of a checkpoint sees what was seen in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tree
from gymnasium.vector.utils import concatenate, create_empty_array
from observed import SPACES
from ray.rllib.connectors.env_to_module import FlattenObservations, MeanStdFilter
from support.samplers import FILTER, config, pair, require_same_rollouts, unlike
from support.tiny_ppo import Told, built, disturb, iterate
from support.tiny_ppo import unlike as unlike_trails

from raytrain import _ray, load_policy
from raytrain.policy.export import _described
from raytrain.policy.format import read_policy, write_policy
from raytrain.policy.from_algorithm import policy_parts
from raytrain.policy.onnx import write_onnx
from raytrain.policy.policy import Policy

MODELS: dict[str, Any] = {"model_config": {"fcnet_hiddens": [16]}}


def observed(kind: str, **sections: Any) -> dict[str, Any]:
    environment = {"env": "observed:Observed", "env_config": {"kind": kind}}
    return {"environment": environment, "rl_module": MODELS, **sections}


def require_same(ours: Any, theirs: Any) -> None:
    for version in (1, 2):
        one = require_same_rollouts(ours, theirs, version)
        assert one.episodes


@pytest.mark.parametrize("filtered", [False, True], ids=["plain", "filtered"])
@pytest.mark.parametrize("kind", SPACES)
def test_episodes_are_those_that_connectors_make(kind: str, filtered: bool) -> None:
    ours, theirs = pair(config(**observed(kind, env_runners=FILTER if filtered else {})))
    require_same(ours, theirs)
    space = ours.module.observation_space
    assert np.issubdtype(space.dtype, np.floating) or (space.dtype == np.uint8 and not filtered)


RLLIBS = ("discrete", "multidiscrete", "multibinary", "matrix", "bytes", "dict", "scalar")


@pytest.mark.parametrize("filtered", [False, True], ids=["plain", "filtered"])
@pytest.mark.parametrize("kind", RLLIBS)
def test_episodes_are_those_of_rllibs_own_connectors(kind: str, filtered: bool) -> None:
    """FlattenObservations, and MeanStdFilter behind it where everything is normalized."""

    def connectors(*_: Any, **__: Any) -> list[Any]:
        return [FlattenObservations(), *([MeanStdFilter()] if filtered else [])]

    change = lambda given: given.env_runners(env_to_module_connector=connectors)  # noqa: E731
    ours, _ = pair(config(**observed(kind)))
    if filtered and SPACES[kind].__class__.__name__ == "Box":
        ours, _ = pair(config(**observed(kind, env_runners=FILTER)))
    arrays, theirs = pair(config(change=change, **observed(kind)))
    one, other, third = (each.rollout(None, snapshot=True) for each in (ours, theirs, arrays))
    assert unlike(third.episodes, other.episodes) == []
    if not filtered or SPACES[kind].__class__.__name__ == "Box":
        assert unlike(one.episodes, other.episodes) == []


# -- the whole way ---------------------------------------------------------------------------------

WHOLE = {
    "one-hot": ("started axes", False),
    "integers-filtered": ("integers", True),
    "nested": ("nested", False),
    "nested-filtered": ("nested", True),
    "eyes": ("eyes", False),
    "eyes-filtered": ("eyes", True),
    "bytes-image": ("bytes image", False),
    "frames-filtered": ("frames", True),
    "integer-image": ("integer image", False),
}
QUICK = ("one-hot", "nested-filtered", "eyes")
EACH = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in WHOLE]


@contextmanager
def trainer(name: str, env: str = "Observed") -> Iterator[Told]:
    kind, filtered = WHOLE[name]
    sections = observed(kind, env_runners=FILTER if filtered else {})
    sections["environment"]["env"] = f"observed:{env}"
    with built(**sections) as algorithm:
        assert algorithm.told == []  # of slow ways
        yield algorithm


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", EACH)
def test_what_follows_a_loaded_state_is_what_followed_the_saved_one(
    name: str, tmp_path: Path
) -> None:
    with trainer(name) as original:
        iterate(original, 1)
        original.save_exact(tmp_path / "state")
        expected = iterate(original, 1)
    disturb()
    with trainer(name) as again:
        again.load_exact(tmp_path / "state")
        assert unlike_trails(expected, iterate(again, 1)) == []


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("name", EACH)
def test_policies_choose_the_actions_that_training_chose(name: str, tmp_path: Path) -> None:
    """That of a checkpoint, the described one, and ONNX, for what the environment has shown."""
    with trainer(name, "Recorded") as algorithm:
        iterate(algorithm, 1)
        runner = algorithm.env_runner
        for piece in _ray.runners.connectors(runner)[0].connectors:
            normalizer = getattr(piece, "filter", piece)
            if isinstance(normalizer, MeanStdFilter):
                normalizer._update_stats = False  # Those of a policy are frozen.
        envs = [env.unwrapped for env in runner.env.unwrapped.envs]
        for env in envs:
            env.pairs.clear()
        runner.sample(num_timesteps=64, explore=False)
        write_policy(tmp_path, policy_parts(algorithm), metadata={})
        pairs = [pair for env in envs for pair in env.pairs]
    shown, chosen = [seen for seen, _ in pairs], [action for _, action in pairs]
    assert len(set(chosen)) > 1
    loaded = load_policy(tmp_path)
    assert [loaded.act(each) for each in shown] == chosen
    parts, why_not = _described(read_policy(tmp_path)[0])
    assert why_not is None and parts.network is not None
    described = Policy(parts, metadata={})
    assert [described.act(each) for each in shown] == chosen
    (tmp_path / "again").mkdir()
    write_policy(tmp_path / "again", parts, metadata={})
    space = loaded.observation_space
    arrays = concatenate(space, shown, create_empty_array(space, len(shown)))
    assert load_policy(tmp_path / "again").act(arrays).tolist() == chosen
    assert write_onnx(parts, tmp_path / "policy.onnx") < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    feeds = {
        ".".join(["observation", *map(str, path)]): leaf
        for path, leaf in tree.flatten_with_path(arrays)
    }
    (actions,) = session.run(None, feeds)
    assert actions.tolist() == chosen
