"""RLlib's programs in Ray's own wheel (`ray/rllib/examples`) that train one agent with PPO, and
what raytrain makes of each: the table in docs/guide/migration.md."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """`path`: below `ray/rllib/examples`. `sampling`, `update`: empty for raytrain's fast ways,
    else a part of the reason why RLlib's own are used. `exact`: whether it ends as if it had not
    been killed; else `why`. `iterations`: that the test trains."""

    path: str
    sampling: str = ""
    update: str = ""
    exact: bool = True
    why: str = ""
    arguments: tuple[str, ...] = ()
    iterations: int = 3

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2].removesuffix(".py")


EXAMPLES = [
    Example("connectors/mean_std_filtering.py"),
    Example("connectors/flatten_observations_dict_space.py"),
    Example("envs/custom_gym_env.py"),
    Example("envs/async_gym_env_vectorization.py"),
]
