"""`environment.env` -> something that makes environments, the same everywhere.

The driver's checks, the env runners, `probe` and `evaluate` all make environments with the
`EnvCreator` of this file, so the environment that was checked is the one that runs. It accepts:

    CartPole-v1, ALE/Pong-v5           a Gymnasium id
    my_envs:Maze-v0                    an id that the module before ':' registers
    my_package.my_module:make_env      a class or function that returns an environment

A factory gets `env_config` as keyword arguments; if its first parameter is called config,
env_config, env_context or cfg, it gets the dictionary, as in RLlib. The dictionary is a plain one,
without RLlib's worker index: an environment must not depend on the process that it runs in.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from raytrain.config.errors import ConfigError, Problem, nearest
from raytrain.config.own_code import load_module, load_object, module_code, place_of
from raytrain.config.secrets import with_secrets
from raytrain.config.user_code import users_code

if TYPE_CHECKING:
    import gymnasium

    from raytrain.config.schema import ExperimentConfig

_FIELD = "environment.env"
_TAKES_THE_DICT = ("config", "env_config", "env_context", "cfg")
_EXTRAS = {
    # Where Gymnasium's entry points lie: the module they need, and how to get it.
    "gymnasium.envs.mujoco.": ("mujoco", "pip install 'raytrain[mujoco]'"),
    "gymnasium.envs.box2d.": ("Box2D", "pip install 'raytrain[box2d]'"),
    "ale_py.": ("ale_py", "pip install 'raytrain[atari]'"),
}
_MAKE_ARGUMENTS = ("max_episode_steps", "disable_env_checker", "render_mode")
"""What `gymnasium.make` takes for itself among the keyword arguments."""


@dataclass(frozen=True)
class EnvCreator:
    """Makes one environment: `creator({"gravity": 9.8})`.

    It holds names only, so it can be sent to other processes, which import the module themselves;
    `import_path` is put in front of `sys.path` there. `max_episode_steps` truncates episodes, in
    addition to the environment's own limit. `mask_key`: the key of the observation that holds the
    action mask, which becomes a part of the info (see `action_mask`).
    """

    spec: str
    import_path: str | None = None
    check_env: bool = True
    max_episode_steps: int | None = None
    mask_key: str | None = None

    def __call__(self, env_config: Mapping[str, Any] | None = None) -> gymnasium.Env[Any, Any]:
        """Raises ConfigError if the environment cannot be found or does not take `env_config`, and
        EnvironmentFailed if its own code raises."""
        import gymnasium

        arguments = copy.deepcopy(dict(env_config or {}))
        self.check_arguments(arguments)
        arguments = with_secrets(arguments, "environment.env_config")
        if _is_gymnasium_id(self.spec):
            if not self.check_env:
                arguments.setdefault("disable_env_checker", True)
            with users_code(f"making the environment {self.spec}"):
                try:
                    env = gymnasium.make(self.spec, **arguments)
                except gymnasium.error.DependencyNotInstalled as error:
                    raise _env_error(str(error), self.spec) from error
        else:
            factory = _factory(self.spec, self.import_path)
            with users_code(f"making the environment {self.spec}"):
                env = factory(arguments) if takes_the_dict(factory) else factory(**arguments)
            if not isinstance(env, gymnasium.Env):
                message = f"the factory must return a gymnasium.Env; it returned {_kind_of(env)}"
                raise _env_error(message, self.spec)
        if self.mask_key is not None:
            from raytrain.config.action_mask import MaskIntoInfo

            env = MaskIntoInfo(env, self.mask_key)
        limit = self.max_episode_steps
        return env if limit is None else gymnasium.wrappers.TimeLimit(env, limit)

    def check_arguments(self, env_config: Mapping[str, Any]) -> None:
        """Raises ConfigError for an argument that the environment does not take or lacks."""
        arguments = dict(env_config)
        if _is_gymnasium_id(self.spec):
            creator, arguments = _gymnasium_creator(self.spec, self.import_path, arguments)
        else:
            creator = _factory(self.spec, self.import_path)
            if takes_the_dict(creator):
                return
        try:
            signature = inspect.signature(creator)
        except (TypeError, ValueError):
            return  # Written in C, without a signature: the call itself raises.
        try:
            signature.bind(**arguments)
        except TypeError as error:
            names = list(signature.parameters)
            unknown = [key for key in env_config if key in arguments and key not in names]
            problem = Problem(
                f"{self.spec} does not take this: {error}", "", "environment.env_config"
            )
            if unknown:
                field, near = f"{problem.field}.{unknown[0]}", nearest(unknown[0], names)
                problem = Problem(problem.message, "", field, env_config[unknown[0]], near)
            raise ConfigError(problem) from error


def resolve_env(spec: str, import_path: str | None = None, *, check_env: bool = True) -> EnvCreator:
    """The creator of an environment that exists: its id is registered, or its module imports.

    Raises ConfigError with the missing name, the places that were searched, and the nearest name.
    """
    if _is_gymnasium_id(spec):
        _gymnasium_creator(spec, import_path, {})
    else:
        _factory(spec, import_path)
    return EnvCreator(spec, import_path, check_env)


def make_env(config: ExperimentConfig) -> gymnasium.Env[Any, Any]:
    """One environment, made as the run makes its own."""
    return env_creator(config)(config.environment.env_config)


def env_creator(config: ExperimentConfig) -> EnvCreator:
    """The creator that the run registers; raises ConfigError if the environment does not exist."""
    environment = config.environment
    creator = resolve_env(
        environment.env, config.import_path, check_env=not environment.disable_env_checking
    )
    return with_mask(creator, environment.action_mask)


def with_mask(creator: EnvCreator, setting: str | None) -> EnvCreator:
    """The creator of an environment with `environment.action_mask`."""
    if setting is None:
        return creator
    from raytrain.config.action_mask import MaskSource

    source = MaskSource.of(setting)
    return creator if source is None else replace(creator, mask_key=source.key)


def entry_modules(config: ExperimentConfig) -> list[str]:
    """The modules that `environment.env` names, itself or through Gymnasium's registry. Raises
    ConfigError as `resolve_env` does."""
    spec = config.environment.env
    module = spec.rpartition(":")[0]
    if not _is_gymnasium_id(spec):
        return [module]
    entry, _ = _gymnasium_creator(spec, config.import_path, {})
    import gymnasium

    wrappers = gymnasium.spec(spec.rpartition(":")[2]).additional_wrappers
    points = [wrapper.entry_point.partition(":")[0] for wrapper in wrappers]
    return [name for name in (module, entry.__module__, *points) if name]


def _is_gymnasium_id(spec: str) -> bool:
    _, colon, attribute = spec.partition(":")
    # "my_envs:Maze-v0" is an id that the module registers: no attribute has '-' or '/' in its name.
    return not (colon and attribute.isidentifier())


def _gymnasium_creator(
    spec: str, import_path: str | None, arguments: dict[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The class or function behind an id, and the keyword arguments that it will get."""
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    module_name, colon, env_id = spec.rpartition(":")
    if colon:
        load_module(module_name, spec, import_path, _FIELD)
    if is_atari(env_id):
        _register_atari(spec)
    try:
        env_spec = gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        near = _nearest_id(env_id, gymnasium.registry)
        message = (
            "no environment with this id is registered with Gymnasium; write your own class or "
            "function as package.module:factory"
        )
        near = None if near is None else f"{module_name}{colon}{near}"
        raise _env_error(message, spec, near) from error
    entry = env_spec.entry_point
    if entry is None:
        raise _env_error("this id has no entry point, so no single environment can be made", spec)
    if isinstance(entry, str):
        _require_extra(entry, spec)
        with module_code(f"importing its entry point {entry}", spec, _FIELD):
            entry = load_env_creator(entry)
    kept = {key: value for key, value in arguments.items() if key not in _MAKE_ARGUMENTS}
    return entry, {**env_spec.kwargs, **kept}


def is_atari(env_id: str) -> bool:
    """Whether the id is registered with Gymnasium only after ale_py was imported."""
    return env_id.startswith("ALE/") or "NoFrameskip-" in env_id


def _nearest_id(env_id: str, registry: Mapping[str, Any]) -> str | None:
    # The newest version of the nearest name; but v9 -> v1 if only the version is wrong.
    near = nearest(env_id, registry)
    if near is None:
        return None
    name = near.rpartition("-v")[0]
    versions = [spec for spec in registry.values() if f"{spec.id}".rpartition("-v")[0] == name]
    if env_id.rpartition("-v")[2] in {str(spec.version) for spec in versions}:
        return near
    return str(max(versions, key=lambda spec: spec.version or 0).id) if versions else near


def _register_atari(spec: str) -> None:
    import gymnasium

    _require_extra("ale_py.", spec)
    with module_code("importing ale_py", spec, _FIELD):
        import ale_py
    gymnasium.register_envs(ale_py)


def _require_extra(entry: str, spec: str) -> None:
    for prefix, (module, remedy) in _EXTRAS.items():
        if entry.startswith(prefix) and importlib.util.find_spec(module) is None:
            raise _env_error(f"needs the package {module}: {remedy}", spec)


def _factory(spec: str, import_path: str | None) -> Callable[..., Any]:
    factory = load_object(spec, import_path, _FIELD)
    if not callable(factory):
        module_name, _, attribute = spec.partition(":")
        place = place_of(sys.modules[module_name])
        kind = type(factory).__name__
        message = f"{attribute} in {module_name} ({place}) is a {kind} and not callable"
        raise _env_error(message, spec)
    return cast("Callable[..., Any]", factory)


def takes_the_dict(factory: Callable[..., Any]) -> bool:
    """Whether a factory gets `env_config` as one dictionary, as RLlib gives it."""
    try:
        names = list(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        return False
    return bool(names) and names[0] in _TAKES_THE_DICT


def _kind_of(value: Any) -> str:
    """What a factory returned instead of an environment, and what it should return."""
    import gymnasium

    if value is None:
        return "None: does it end with `return env`?"
    if isinstance(value, type):
        return f"the class {value.__name__}: return an object of it, {value.__name__}(...)"
    kind = f"a {type(value).__name__}"
    if isinstance(value, gymnasium.vector.VectorEnv):
        return f"{kind}: return one environment; env_runners.num_envs_per_env_runner makes copies"
    if any(base.__module__.partition(".")[0] == "gym" for base in type(value).__mro__):
        return f"{kind} of the older package gym: derive it from gymnasium.Env"
    return kind


def _env_error(message: str, spec: str, near: str | None = None) -> ConfigError:
    return ConfigError(Problem(message, "", _FIELD, spec, near))


def deep_merge(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` merged into `values`, nested mappings key by key, as RLlib merges
    `evaluation_config` into the config."""
    merged = dict(values)
    for key, value in overrides.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = deep_merge(merged[key], value) if nested else value
    return merged
