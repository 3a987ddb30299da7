"""The outcome of a run, as the command line and the Python API return it."""

from __future__ import annotations

from pathlib import Path

from support.checkpoint_children import put

from raytrain.checkpoint import Catalogue
from raytrain.config import config_from_dict
from raytrain.driver.outcome import finished_before
from raytrain.storage import Location


def test_the_trials_of_a_finished_search_are_listed_best_first(tmp_path: Path) -> None:
    config = config_from_dict(
        {
            "name": "search",
            "environment": {"env": "CartPole-v1"},
            "training": {"lr": {"grid_search": [0.1, 0.2, 0.3]}},
            "stop": {"iterations": 4},
        }
    )
    done = {}
    for name, score in (("first", 1.0), ("second", 3.0), ("third", 2.0)):
        trial = Location.of(tmp_path / name)
        put(trial, tmp_path, 4, kind="final", score=score)
        (done[name],) = Catalogue(trial).entries()
    outcome = finished_before(config, Location.of(tmp_path), done)
    assert outcome.trials == ("second", "third", "first")
