"""Keys of RLlib's own configs and of other programs: the refusal says what they are called here."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.config_files import STOP, refused

from raytrain.config.former_names import NOTES, RENAMED
from raytrain.config.validation import yaml_fields


def test_every_key_of_another_program_leads_to_a_key_that_exists() -> None:
    fields = {".".join(path) for path in yaml_fields()}
    assert set(RENAMED.values()) <= fields
    # None of them is a key here, where it would never be looked up.
    assert not {path[-1] for path in yaml_fields()} & {*RENAMED, *NOTES}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("n_steps: 2048", "'training.train_batch_size_per_learner'"),
        ("training: {n_steps: 2048}", "'train_batch_size_per_learner'"),
        ("training: {n_steps: 2048}", "the steps of all environments together"),
        ("num_gpus: 1", "'learners.num_gpus_per_learner'"),
        ("training: {lr_schedule: [[0, 1e-3]]}", "'lr'"),
        ("training: {lr_schedule: [[0, 1e-3]]}", "[[0, x], [timestep, y], ...]"),
        ("training: {batch_size: 64}", "'minibatch_size'"),
        ("training: {norm_adv: true}", "'normalize_advantages'"),
        ("training: {norm_adv: true}", "in each minibatch"),
        ("target_kl: 0.01", "'training.target_kl'"),
        ("num_workers: 4", "'env_runners.num_env_runners'"),
        ("framework: torch", "Torch is the only framework"),
        ("rl_module: {custom_model: Net}", "'module_class'"),
        ("model: {fcnet_hiddens: [64]}", "'rl_module.model_config'"),
        ("training: {use_lstm: true}", "'rl_module.model_config.use_lstm'"),
    ],
)
def test_a_key_of_another_program(tmp_path: Path, line: str, said: str) -> None:
    assert said in refused(tmp_path, STOP + line)
