"""The user's own code that a config names: `module:Name` -> the object, the same everywhere.

    nets:MyNet                       a class in nets.py, beside the YAML file or installed
    my_package.callbacks:on_end      a function in a module of a package
    nets:Family.Large                a class within a class

The config holds the names, so it can be stored, compared and sent; each process imports the module
itself, with the directory of the config first in Python's path.

    environment.env                           (see `environment`)
    rl_module.module_class, .catalog_class    classes
    callbacks.callbacks_class                 a class or a list of classes
    callbacks.on_*                            a function or a list of functions
    env_runners.*_connector                   functions that make connectors
    training.learner_connector                a function that makes connectors
    training.learner_class                    a class

`KINDS` says what each must be. A class is known by the names of its bases, so that checking one
imports no more than the user's module does.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from raytrain.config.errors import ConfigError, KeyPath, Problem, dotted, nearest
from raytrain.config.user_code import converted_errors, describe

if TYPE_CHECKING:
    from raytrain.config.schema import ExperimentConfig

_NEEDED = ("gymnasium", "numpy", "pandas", "pyarrow", "ray", "raytrain", "torch", "yaml")

_EPISODE = ("episode", "env_runner", "metrics_logger", "env", "rl_module", "env_index")
HOOKS: Mapping[str, tuple[str, ...]] = {
    "on_algorithm_init": ("algorithm", "metrics_logger"),
    "on_train_result": ("algorithm", "metrics_logger", "result"),
    "on_evaluate_start": ("algorithm", "metrics_logger"),
    "on_evaluate_end": ("algorithm", "metrics_logger", "evaluation_metrics"),
    "on_env_runners_recreated": (
        "algorithm",
        "env_runner_group",
        "env_runner_indices",
        "is_evaluation",
    ),
    "on_checkpoint_loaded": ("algorithm",),
    "on_environment_created": ("env_runner", "metrics_logger", "env", "env_context"),
    "on_episode_created": _EPISODE,
    "on_episode_start": _EPISODE,
    "on_episode_step": _EPISODE,
    "on_episode_end": (*_EPISODE, "prev_episode_chunks"),
    "on_sample_end": ("env_runner", "metrics_logger", "samples"),
}
"""RLlib's hooks for one agent on the new API stack, and the keyword arguments of each."""


@dataclass(frozen=True)
class Kind:
    """What an object must be: a class that derives from all `bases` (`module:Name`); without them,
    something that can be called with `arguments` and `keywords`."""

    bases: tuple[str, ...] = ()
    arguments: tuple[tuple[str, ...], ...] = ()
    """The positional arguments of each form in which it may be called."""
    keywords: tuple[str, ...] = ()
    note: str = ""
    """What to do, where a class lacks a base."""


KINDS: Mapping[str, Kind] = {
    "rl_module.module_class": Kind(
        bases=(
            "ray.rllib.core.rl_module.torch.torch_rl_module:TorchRLModule",
            "ray.rllib.core.rl_module.apis.value_function_api:ValueFunctionAPI",
        ),
        note="PPO needs both, class MyNet(TorchRLModule, ValueFunctionAPI)",
    ),
    "rl_module.catalog_class": Kind(bases=("ray.rllib.core.models.catalog:Catalog",)),
    "callbacks.callbacks_class": Kind(bases=("ray.rllib.callbacks.callbacks:RLlibCallback",)),
    **{f"callbacks.{name}": Kind(keywords=keywords) for name, keywords in HOOKS.items()},
    # RLlib also calls a function of one argument, which older programs have.
    "env_runners.env_to_module_connector": Kind(arguments=(("env", "spaces", "device"), ("env",))),
    "env_runners.module_to_env_connector": Kind(arguments=(("env", "spaces"), ("env",))),
    "training.learner_connector": Kind(arguments=(("observation_space", "action_space"),)),
    "training.learner_class": Kind(
        bases=("ray.rllib.algorithms.ppo.torch.ppo_torch_learner:PPOTorchLearner",)
    ),
}


@dataclass(frozen=True)
class Named:
    """One name in a config: `path` leads to it, `kind` is its key in `KINDS`."""

    path: KeyPath
    spec: str
    kind: str


def own_code(config: ExperimentConfig) -> list[Named]:
    """Every object that the config names, without the environment; candidates of a search too."""
    found: dict[Named, None] = {}
    searched = [space for space in config.search if ".".join(space.path) in KINDS]
    for kind in KINDS:
        section, key = kind.split(".")
        candidates = [space.values for space in searched if ".".join(space.path) == kind]
        value = list(*candidates) if candidates else getattr(getattr(config, section), key)
        if isinstance(value, str):
            found[Named((section, key), value, kind)] = None
        for index, spec in enumerate(value if isinstance(value, list) else ()):
            path = (section, key) if candidates else (section, key, index)
            found[Named(path, spec, kind)] = None
    return list(found)


def own_code_modules(config: ExperimentConfig) -> list[str]:
    """The modules of `own_code` and of Torch's schedulers."""
    specs = [named.spec for named in own_code(config)]
    specs += [str(item["class"]) for item in config.training.torch_lr_schedulers or ()]
    return list(dict.fromkeys(spec.partition(":")[0] for spec in specs))


def torch_schedulers(config: ExperimentConfig) -> list[Any]:
    """What `training.torch_lr_schedulers` names, each with its arguments; each makes a scheduler of
    an optimizer."""
    found = []
    for index, item in enumerate(config.training.torch_lr_schedulers or ()):
        arguments = {key: value for key, value in item.items() if key != "class"}
        field = f"training.torch_lr_schedulers[{index}]"
        kind = load_object(item["class"], config.import_path, field)
        why = _why_not_called(kind, Kind(arguments=(("optimizer",),), keywords=tuple(arguments)))
        if why is not None:
            raise ConfigError(Problem(f"{item['class']} {why}", "", field))
        found.append(partial(kind, **arguments))
    return found


def loaded(config: ExperimentConfig) -> dict[str, Any]:
    """The objects by their kind (a key of `KINDS`), a list where the config has a list; without
    those that the config does not name. Raises ConfigError as `load_object` does."""
    objects: dict[str, Any] = {}
    for named in own_code(config):
        found = load_object(named.spec, config.import_path, dotted(named.path))
        if len(named.path) == len(named.kind.split(".")):
            objects[named.kind] = found
        else:
            objects.setdefault(named.kind, []).append(found)
    return objects


def own_code_problems(config: ExperimentConfig) -> Iterator[tuple[KeyPath, Problem]]:
    """What is wrong with the objects that the config names; it imports their modules."""
    for named in own_code(config):
        try:
            check(load_object(named.spec, config.import_path, dotted(named.path)), named)
        except ConfigError as error:
            yield from ((named.path, problem) for problem in error.problems)
    try:
        torch_schedulers(config)
    except ConfigError as error:
        yield from ((("training", "torch_lr_schedulers"), problem) for problem in error.problems)


def require_own_code(config: ExperimentConfig) -> None:
    """Raises ConfigError if an object that the config names does not exist, or is not what its key
    needs."""
    problems = [problem for _, problem in own_code_problems(config)]
    if problems:
        raise ConfigError(*problems)


def load_object(spec: str, import_path: str | None, field: str) -> Any:
    """The object that `module:Name` names; `import_path` is put in front of `sys.path`.

    Raises ConfigError about `field` (a dotted key of the config) with what is missing, the places
    that were searched, and the nearest name.
    """
    module_name, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        (*_, stem) = "my_code", *re.findall(r"[^\W\d]\w*", module_name.removesuffix(".py"))
        message = (
            f"{module_name} is not the name of a module; for a file {stem}.py beside the YAML "
            f"file write {stem}:{name}"
        )
        raise ConfigError(Problem(message, "", field, spec))
    found: Any = load_module(module_name, spec, import_path, field)
    place = f"the module {module_name} ({place_of(found)})"
    for part in name.split("."):
        with module_code(f"reading {name} from the module {module_name}", spec, field):
            try:
                found = getattr(found, part)
            except AttributeError as error:
                near = nearest(part, [known for known in vars(found) if not known.startswith("_")])
                message = f"{place} has no {name}"
                raise ConfigError(Problem(message, "", field, spec, near)) from error
    return found


def check(found: Any, named: Named) -> None:
    """Raises ConfigError if an object is not what its key needs."""
    kind, spec = KINDS[named.kind], named.spec
    message = _why_no_class(found, kind) if kind.bases else _why_not_called(found, kind)
    if message is None and named.kind == "callbacks.callbacks_class":
        message = _why_no_callbacks(found)
    if message is not None:
        raise ConfigError(Problem(f"{spec} {message}", "", dotted(named.path)))


def _why_no_class(found: Any, kind: Kind) -> str | None:
    names = [base.rpartition(":")[2] for base in kind.bases]
    if not isinstance(found, type):
        return f"is {a_kind_of(found)}; write a class that derives from RLlib's {names[0]}"
    lineage = {f"{base.__module__}:{base.__qualname__}" for base in found.__mro__}
    missing = [name for name, base in zip(names, kind.bases, strict=True) if base not in lineage]
    if not missing:
        return None
    note = f" ({kind.note})" if kind.note else ""
    return f"does not derive from RLlib's {' and '.join(missing)}{note}"


def _why_not_called(found: Any, kind: Kind) -> str | None:
    if not callable(found):
        return f"is {a_kind_of(found)} and cannot be called; write a function"
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return None  # Written in C, without a signature.
    why = ""
    for names in kind.arguments or ((),):
        try:
            signature.bind(*names, **dict.fromkeys(kind.keywords))
        except TypeError as error:
            why = why or f"{error}"
        else:
            return None
    if kind.keywords:
        names = kind.keywords
        return f"is called with the keyword arguments {', '.join(names)}: {why}; take **kwargs too"
    return f"is called with {', '.join(kind.arguments[0])}: {why}"


def _why_no_callbacks(found: Any) -> str | None:
    """Why RLlib cannot call a method of a callbacks class that overrides one of its own."""
    for name, keywords in HOOKS.items():
        method = getattr(found, name)
        if method.__module__.startswith("ray.rllib.callbacks"):
            continue
        # The place of `self` is taken; a method may have any name for it.
        why = _why_not_called(method, Kind(arguments=(("self",),), keywords=keywords))
        if why is not None:
            return f"has a method {name} that {why}"
    return None


# -- importing -----------------------------------------------------------------------------------


def load_module(module_name: str, spec: str, import_path: str | None, field: str) -> ModuleType:
    """Import a module that `spec`, the value of `field`, names.

    Raises ConfigError if there is none, if it raises, or if it is another one than the file beside
    the config.
    """

    def refuse(message: str, near: str | None = None) -> ConfigError:
        return ConfigError(Problem(message, "", field, spec, near))

    if import_path is not None:
        hidden = _hidden_package(import_path)
        if hidden is not None:
            raise refuse(hidden)
    first_in_path(import_path)
    with module_code(f"importing {module_name}", spec, field):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            beside = f"{import_path} (beside the YAML file) and " if import_path else ""
            message = f"no module {error.name}; looked in {beside}Python's path"
            raise refuse(message, _nearest_module(error.name, import_path)) from error
    wrong = _other_module(module, module_name, import_path) or _other_dtype(module_name)
    if wrong is not None:
        raise refuse(wrong)
    return module


def first_in_path(import_path: str | None) -> None:
    """Have Python find the modules of a directory that exists, in front of all others, as it finds
    those in the directory of a script."""
    if import_path is not None and import_path not in sys.path and os.path.isdir(import_path):
        sys.path.insert(0, import_path)
        importlib.invalidate_caches()


def module_code(action: str, spec: str, field: str) -> AbstractContextManager[None]:
    """Turn what a user's module raises in the body into a ConfigError: "`action` fails: ..."."""

    def converted(error: BaseException) -> ConfigError:
        message = f"{action} fails: {describe(error, whole_path=True)}"
        if isinstance(error, SystemExit):
            message += (
                ". A module that is imported must not end the program: put the code of a script, "
                'such as reading arguments, under `if __name__ == "__main__":`'
            )
        return ConfigError(Problem(message, "", field, spec))

    return converted_errors(converted, ConfigError)


def place_of(module: ModuleType) -> str:
    """The file or directory of a module, for a message."""
    file = getattr(module, "__file__", None)
    return file or next(iter(getattr(module, "__path__", ())), "a part of Python")


def a_kind_of(value: Any) -> str:
    """What a value is, for a message."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return "a function"
    return f"a {type(value).__name__}"


def _hidden_package(import_path: str) -> str | None:
    """`import_path` comes first in Python's path, so its files would hide packages."""
    for name in _NEEDED:
        for file in (Path(import_path, f"{name}.py"), Path(import_path, name, "__init__.py")):
            if not file.is_file():
                continue
            package = importlib.util.find_spec(name)
            if name not in sys.modules or package is None or package.origin != str(file):
                return f"{file} would be imported instead of the package {name}; rename the file"
    return None


def _other_dtype(module_name: str) -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or torch.get_default_dtype() is torch.float32:
        return None
    return (
        f"importing {module_name} sets Torch's default dtype to {torch.get_default_dtype()}, and "
        "the networks need torch.float32; set the dtype of your own tensors instead"
    )


def _other_module(module: ModuleType, module_name: str, import_path: str | None) -> str | None:
    """A process imports a name once, so it cannot use the `envs.py` of a second experiment."""
    file = getattr(module, "__file__", None)
    if import_path is None or file is None:
        return None
    stem = Path(import_path, *module_name.split("."))
    own = next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)
    if own is None or own.resolve() == Path(file).resolve():
        return None
    return (
        f"the module {module_name} was already imported from {file}, so the one beside "
        f"the YAML file, {own}, cannot be imported; rename one of them"
    )


def _nearest_module(name: str, import_path: str | None) -> str | None:
    if import_path is None or not os.path.isdir(import_path):
        return None
    beside = Path(import_path)
    modules = [path.stem for path in beside.glob("*.py")]
    packages = [path.parent.name for path in beside.glob("*/__init__.py")]
    return nearest(name, [*modules, *packages])
