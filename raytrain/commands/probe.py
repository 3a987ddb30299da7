"""`raytrain probe ENV`: show before training how an environment can be snapshotted; and for
`raytrain probe CONFIG` also whether the user's own code can be restored."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raytrain.config import ConfigError, Problem, env_creator, load_config, resolve_env
from raytrain.config.environment import with_mask
from raytrain.config.user_code import of_environment
from raytrain.config.yaml_lines import parse_yaml
from raytrain.driver.own_code import Rehearsed, names_own_code, rehearse
from raytrain.rng import hash_seed
from raytrain.rollout.env_snapshots import Proof, prove


def probe(env: str, env_config: str | None = None, action_mask: str | None = None) -> Proof:
    """Try the snapshot strategies on copies of `env`, looked up as for a file in this directory.
    `action_mask`: as `environment.action_mask`; only allowed actions are taken.

    Raises:
        BadInput: there is no such environment, or `env_config` is not a mapping.
        EnvironmentFailed: the environment raises, or breaks Gymnasium's contract.
    """
    arguments: Any = {}
    if env_config:
        arguments = parse_yaml(env_config, f"--env-config {env_config!r}").value
        if not isinstance(arguments, dict):
            raise ConfigError(
                f"--env-config {env_config!r}: must be a mapping, such as '{{size: 5}}'"
            )
    try:
        creator = with_mask(resolve_env(env, os.getcwd()), action_mask)
        creator.check_arguments(arguments)
    except ConfigError as error:
        # There is no file here: the problem is an argument of the command.
        raise ConfigError(*map(_of_the_command, error.problems)) from None
    with of_environment(env):
        return prove(lambda: creator(arguments), action_mask=action_mask)


@dataclass(frozen=True)
class Probed:
    """The environment of a config, and its own code (None: it names none)."""

    env: str
    proof: Proof
    own_code: Rehearsed | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        own = None if self.own_code is None else self.own_code.to_dict()
        return {**self.proof.to_dict(), "own_code": own}

    def report(self) -> str:
        """For a person."""
        text = report(self.env, self.proof)
        if self.own_code is None:
            return text
        if self.own_code.exact:
            saved = "two iterations, saved, continue identically in a fresh process"
            return f"{text}own code: exact\n  {saved}\n"
        return (
            f"{text}own code: NOT exact after an interruption\n"
            f"  {self.own_code.piece}: {self.own_code.reason}\n"
        )


def probe_config(path: Path) -> Probed:
    """Try the environment of a config, and its own code.

    Raises:
        BadInput: the config cannot be used.
        EnvironmentFailed: the environment, or the user's own code, raises.
    """
    config = load_config(path)
    creator = env_creator(config)
    with of_environment(config.environment.env):
        proof = prove(
            lambda: creator(config.environment.env_config),
            seed=config.seed,
            action_mask=config.environment.action_mask,
        )
    found = None
    if names_own_code(config):
        found = rehearse(config, proof.strategy, hash_seed=hash_seed(config.seed))
    return Probed(config.environment.env, proof, found)


def _of_the_command(problem: Problem) -> Problem:
    name = problem.field.replace("environment.env_config", "--env-config")
    return replace(problem, field=name.replace("environment.env", "ENV"))


def report(env: str, proof: Proof) -> str:
    """The proof for a person."""
    exact = "exact" if proof.exact else "NOT exact after an interruption"
    lines = [f"{env}: {proof.strategy}, {exact}"]
    for attempt in proof.attempts:
        lines.append(f"  {attempt.strategy}: {'works' if attempt.ok else 'no'}: {attempt.detail}")
    if not proof.exact:
        lines.append(f"  why: {proof.reason}")
    if proof.global_random:
        lines.append(
            f"  draws from the process's global generators: {', '.join(proof.global_random)} "
            "(saved and restored with the environment)"
        )
    lines += [f"  warning: {warning}" for warning in proof.warnings]
    return "".join(f"{line}\n" for line in lines)
