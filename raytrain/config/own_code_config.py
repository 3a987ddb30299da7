"""RLlib's `PPOConfig` with the user's classes and functions in it, for processes that have not
imported their modules yet.

A class is pickled by its name, so what is pickled with RLlib's config can be read only where the
module is found. A worker of Ray does not know the directory of the YAML file. So this config is
pickled as bytes within a pickle, and the directory comes first in Python's path before the bytes
are read.
"""

from __future__ import annotations

import copy
from typing import Any

from ray import cloudpickle
from ray.rllib.algorithms.ppo import PPOConfig

from raytrain.config.own_code import first_in_path


class OwnCodeConfig(PPOConfig):
    """See the module's docstring. `import_path`: the directory of the YAML file, or None."""

    import_path: str | None = None

    @classmethod
    def found_in(cls, import_path: str | None) -> OwnCodeConfig:
        """A new config whose modules are in this directory."""
        config = cls()
        config.import_path = import_path
        return config

    def plain(self) -> PPOConfig:
        """A copy as RLlib's own class, which no other program needs raytrain for."""
        config = PPOConfig.__new__(PPOConfig)
        config.__dict__.update(copy.deepcopy(self.__dict__))
        config.__dict__.pop("import_path", None)
        return config

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnCodeConfig:
        # RLlib copies configs often; it need not go through pickle.
        config = type(self).__new__(type(self))
        memo[id(self)] = config
        config.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return config

    def __reduce__(self) -> Any:
        return _read, (self.import_path, cloudpickle.dumps(self.__dict__))


def _read(import_path: str | None, pickled: bytes) -> OwnCodeConfig:
    first_in_path(import_path)
    config = OwnCodeConfig.__new__(OwnCodeConfig)
    config.__dict__.update(cloudpickle.loads(pickled))
    return config
