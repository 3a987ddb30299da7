"""`environment.env` -> something that makes environments, the same everywhere.

The driver's checks, the env runners, `probe` and `evaluate` all make environments with the
`EnvCreator` of this file, so what was checked is what runs. It takes two kinds of names:

    CartPole-v1, ALE/Pong-v5, my_envs:Maze-v0     a Gymnasium id (the module before ':' registers
    it) my_package.my_module:make_env                 a class or function that returns an
    environment

A factory gets `env_config` as keyword arguments; if its first parameter is called config,
env_config, env_context or cfg, it gets the dictionary, as RLlib does it. The dictionary is a plain
one, without RLlib's worker index: which process an environment lives in must not change what it
does.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from raytrain.config.errors import NOTHING, ConfigError, Problem, nearest
from raytrain.config.secrets import with_secrets
from raytrain.config.user_code import by_the_code_itself, no_exit, places, text_of, users_code

if TYPE_CHECKING:
    import gymnasium

    from raytrain.config.schema import ExperimentConfig

_TAKES_THE_DICT = ("config", "env_config", "env_context", "cfg")
_EXTRAS = {
    # Where Gymnasium's entry points lie: the module they need, and how to get it.
    "gymnasium.envs.mujoco.": ("mujoco", "pip install 'raytrain[mujoco]'"),
    "gymnasium.envs.box2d.": ("Box2D", "pip install box2d pygame"),
    "ale_py.": ("ale_py", "pip install 'raytrain[atari]'"),
}
_MAKE_ARGUMENTS = ("max_episode_steps", "disable_env_checker", "render_mode")
"""What `gymnasium.make` takes for itself among the keyword arguments."""


@dataclass(frozen=True)
class EnvCreator:
    """Makes one environment: `creator({"gravity": 9.8})`.

    It holds names only, so it travels to other processes, which import the module there;
    `import_path` is put in front of `sys.path` for that. `max_episode_steps` truncates episodes, beside
    what limits them already.
    """

    spec: str
    import_path: str | None = None
    check_env: bool = True
    max_episode_steps: int | None = None

    def __call__(self, env_config: Mapping[str, Any] | None = None) -> gymnasium.Env[Any, Any]:
        """Raises ConfigError if the environment cannot be found or does not take `env_config`, and
        EnvironmentFailed if its own code raises."""
        import gymnasium

        made = self._make(env_config)
        if self.max_episode_steps is None:
            return made
        return gymnasium.wrappers.TimeLimit(made, self.max_episode_steps)

    def _make(self, env_config: Mapping[str, Any] | None) -> gymnasium.Env[Any, Any]:
        import gymnasium

        arguments = copy.deepcopy(dict(env_config or {}))
        self.check_arguments(arguments)
        arguments = with_secrets(arguments, "environment.env_config")
        if _is_gymnasium_id(self.spec):
            if not self.check_env:
                arguments.setdefault("disable_env_checker", True)
            with users_code(f"making the environment {self.spec}"):
                try:
                    return gymnasium.make(self.spec, **arguments)
                except gymnasium.error.DependencyNotInstalled as error:
                    raise _env_error(str(error), self.spec) from error
        factory = _factory(self.spec, self.import_path)
        with users_code(f"making the environment {self.spec}"):
            made = factory(arguments) if _takes_the_dict(factory) else factory(**arguments)
        if not isinstance(made, gymnasium.Env):
            said = f"the factory must return a gymnasium.Env; it returned {_what_it_is(made)}"
            raise _env_error(said, self.spec)
        return made

    def check_arguments(self, env_config: Mapping[str, Any]) -> None:
        """Raises ConfigError for an argument that the environment does not take, or one it
        misses.
        """
        arguments = dict(env_config)
        if _is_gymnasium_id(self.spec):
            creator, arguments = _gymnasium_creator(self.spec, self.import_path, arguments)
        else:
            creator = _factory(self.spec, self.import_path)
            if _takes_the_dict(creator):
                return
        try:
            signature = inspect.signature(creator)
        except (TypeError, ValueError):
            return  # Written in C, without a signature: the call itself will tell.
        try:
            signature.bind(**arguments)
        except TypeError as error:
            names = list(signature.parameters)
            unknown = [key for key in env_config if key in arguments and key not in names]
            field, value = "environment.env_config", NOTHING
            if unknown:
                field, value = f"{field}.{unknown[0]}", env_config[unknown[0]]
            problem = Problem(
                f"{self.spec} does not take this: {error}",
                field=field,
                value=value,
                suggestion=nearest(unknown[0], names) if unknown else None,
            )
            raise ConfigError(problem) from error


def resolve_env(spec: str, import_path: str | None = None, *, check_env: bool = True) -> EnvCreator:
    """The creator of an environment that exists: its id is registered, or its module imports.

    Raises ConfigError naming what was not found, where it was looked for, and the nearest name.
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
    return resolve_env(
        environment.env, config.import_path, check_env=not environment.disable_env_checking
    )


_NEEDED = ("gymnasium", "numpy", "pandas", "pyarrow", "ray", "raytrain", "torch", "yaml")


def _is_gymnasium_id(spec: str) -> bool:
    _, colon, attribute = spec.partition(":")
    # "my_envs:Maze-v0" is an id that the module registers: no attribute has a '-' or '/' in its
    # name.
    return not (colon and attribute.isidentifier())


def _gymnasium_creator(
    spec: str, import_path: str | None, arguments: dict[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The class or function behind an id, and the keyword arguments that it will get."""
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    module_name, colon, env_id = spec.rpartition(":")
    if colon:
        _import(module_name, spec, import_path)
    if is_atari(env_id):
        _register_atari(spec)
    try:
        found = gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        near = _nearest_id(env_id, gymnasium.registry)
        problem = Problem(
            "no environment with this id is registered with Gymnasium; a class or function of your "
            "own is written package.module:factory",
            field="environment.env",
            value=spec,
            suggestion=None if near is None else f"{module_name}{colon}{near}",
        )
        raise ConfigError(problem) from error
    entry = found.entry_point
    if entry is None:
        raise _env_error("this id has no entry point, so no single environment can be made", spec)
    if isinstance(entry, str):
        _require_extra(entry, spec)
        try:
            with no_exit():
                entry = load_env_creator(entry)
        except BaseException as error:  # The module is the user's.
            if not by_the_code_itself(error):
                raise
            said = f"importing its entry point {found.entry_point} fails: {_why(error)}"
            raise _env_error(said, spec) from error
    kept = {key: value for key, value in arguments.items() if key not in _MAKE_ARGUMENTS}
    return entry, {**found.kwargs, **kept}


def is_atari(env_id: str) -> bool:
    """Whether Gymnasium knows the id only once ale_py is imported."""
    return env_id.startswith("ALE/") or "NoFrameskip-" in env_id


def _nearest_id(env_id: str, registry: Mapping[str, Any]) -> str | None:
    # The newest version of the nearest name, unless the version is what is wrong: v9 -> v1.
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

    try:
        import ale_py
    except ImportError as error:
        said = f"needs the package ale_py: {_EXTRAS['ale_py.'][1]}"
        raise _env_error(said, spec) from error
    gymnasium.register_envs(ale_py)


def _require_extra(entry: str, spec: str) -> None:
    for prefix, (module, remedy) in _EXTRAS.items():
        if entry.startswith(prefix) and importlib.util.find_spec(module) is None:
            raise _env_error(f"needs the package {module}: {remedy}", spec)


def _factory(spec: str, import_path: str | None) -> Callable[..., Any]:
    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        said = f"{module_name} is no module's name; for a file my_envs.py beside the YAML file write my_envs:make"
        raise _env_error(said, spec)
    module = _import(module_name, spec, import_path)
    file = getattr(module, "__file__", None) or next(
        iter(getattr(module, "__path__", ())), "a part of Python"
    )
    try:
        factory = getattr(module, attribute)
    except AttributeError as error:
        public = [name for name in vars(module) if not name.startswith("_")]
        problem = Problem(
            f"the module {module_name} ({file}) has no {attribute}",
            field="environment.env",
            value=spec,
            suggestion=nearest(attribute, public),
        )
        raise ConfigError(problem) from error
    except BaseException as error:  # A module may have a __getattr__.
        if not by_the_code_itself(error):
            raise
        said = f"asking the module {module_name} for {attribute} fails: {_why(error)}"
        raise _env_error(said, spec) from error
    if not callable(factory):
        said = (
            f"{attribute} in {module_name} ({file}) is a {type(factory).__name__} and not callable"
        )
        raise _env_error(said, spec)
    checked: Callable[..., Any] = factory
    return checked


def _takes_the_dict(factory: Callable[..., Any]) -> bool:
    try:
        names = list(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        return False
    return bool(names) and names[0] in _TAKES_THE_DICT


def _import(module_name: str, spec: str, import_path: str | None) -> ModuleType:
    if import_path is not None:
        _refuse_names_of_packages(import_path, spec)
    if import_path is not None and import_path not in sys.path and os.path.isdir(import_path):
        # In front, as Python does it for the directory of a script.
        sys.path.insert(0, import_path)
        importlib.invalidate_caches()
    try:
        with no_exit():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _env_error(f"importing {module_name} fails: {_why(error)}", spec) from error
        looked = f"{import_path} (beside the YAML file) and " if import_path else ""
        said = f"no module {error.name}; looked in {looked}Python's path"
        problem = Problem(
            said, "", "environment.env", spec, _nearest_module(error.name, import_path)
        )
        raise ConfigError(problem) from error
    except BaseException as error:  # The module is the user's: it runs whatever it likes.
        if not by_the_code_itself(error):
            raise
        raise _env_error(f"importing {module_name} fails: {_why(error)}", spec) from error
    _refuse_other_module(module, module_name, spec, import_path)
    _refuse_another_dtype(module_name, spec)
    return module


def _refuse_names_of_packages(import_path: str, spec: str) -> None:
    """The directory comes first in Python's path."""
    for name in _NEEDED:
        for file in (Path(import_path, f"{name}.py"), Path(import_path, name, "__init__.py")):
            if file.is_file() and not _is_that_package(name, file):
                said = f"{file} would be imported in the place of the package {name}; give it another name"
                raise _env_error(said, spec)


def _is_that_package(name: str, file: Path) -> bool:
    found = importlib.util.find_spec(name)
    return name in sys.modules and found is not None and found.origin == str(file)


def _refuse_another_dtype(module_name: str, spec: str) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_default_dtype() is not torch.float32:
        said = (
            f"importing {module_name} sets Torch's default dtype to {torch.get_default_dtype()}, and the networks "
            "here are torch.float32; give your own tensors their dtype instead"
        )
        raise _env_error(said, spec)


def _why(error: BaseException) -> str:
    """What a module raised, where, and what to do if it ended the program."""
    said = text_of(error)
    place, inner = places(error)
    if place is not None:
        said += f" ({place.path}, line {place.line})"
    if inner is not None:
        said += f", there in {inner}"
    if isinstance(error, SystemExit):
        said += (
            ". A module that is imported must not end the program: put what belongs to a script, such as "
            'reading arguments, under `if __name__ == "__main__":`'
        )
    return said


def _what_it_is(made: Any) -> str:
    """What a factory returned that is no environment, and what was meant."""
    import gymnasium

    if made is None:
        return "None: does it end with `return env`?"
    if isinstance(made, type):
        return f"the class {made.__name__}: return an object of it, {made.__name__}(...)"
    kind = f"a {type(made).__name__}"
    if isinstance(made, gymnasium.vector.VectorEnv):
        return f"{kind}: return one environment; env_runners.num_envs_per_env_runner makes copies"
    if any(base.__module__.partition(".")[0] == "gym" for base in type(made).__mro__):
        return f"{kind} of the older package gym: derive it from gymnasium.Env"
    return kind


def _nearest_module(name: str, import_path: str | None) -> str | None:
    if import_path is None or not os.path.isdir(import_path):
        return None
    beside = Path(import_path)
    modules = [path.stem for path in beside.glob("*.py")]
    packages = [path.parent.name for path in beside.glob("*/__init__.py")]
    return nearest(name, [*modules, *packages])


def _refuse_other_module(
    module: ModuleType, module_name: str, spec: str, import_path: str | None
) -> None:
    """One process imports a name once: a second `envs.py`, of another experiment, would not be
    seen.
    """
    if import_path is None or getattr(module, "__file__", None) is None:
        return
    assert module.__file__ is not None
    stem = Path(import_path, *module_name.split("."))
    own = next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)
    if own is None or own.resolve() == Path(module.__file__).resolve():
        return
    said = (
        f"the module {module_name} was already imported from {module.__file__}, so the one beside "
        f"the YAML file, {own}, cannot be; give one of them another name"
    )
    raise _env_error(said, spec)


def _env_error(said: str, spec: str) -> ConfigError:
    return ConfigError(Problem(said, field="environment.env", value=spec))


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """As RLlib lays `evaluation_config` over the config, mappings in it one by one."""
    laid = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(laid.get(key), Mapping)
        laid[key] = laid_over(laid[key], value) if both else value
    return laid
