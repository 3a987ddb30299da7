"""RLlib's `PPOConfig` -> the sections of raytrain's config, setting by setting.

Each setting that differs from a default `PPOConfig` is taken over under raytrain's name, or noted
as one without effect, or refused with the reason. What is not set keeps raytrain's default.
"""

from __future__ import annotations

import dataclasses
import functools
import pkgutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from raytrain._ray.ppo_config import default_model, registered_env, settings_of
from raytrain.config.environment import EnvCreator, takes_the_dict
from raytrain.config.errors import ConfigError, Problem, nearest
from raytrain.config.schema import ALGORITHM_SECTIONS
from raytrain.config.validation import yaml_fields
from raytrain.migrate.reasons import WITHOUT_EFFECT, why_refused
from raytrain.migrate.script_code import ScriptCode, place_of
from raytrain.migrate.script_source import NoSource
from raytrain.migrate.search_spaces import (
    NoSearchSpace,
    converted,
    first_value,
    is_search_space,
)

_ELSEWHERE = frozenset({"env", "env_config", "evaluation_config", "model_config", "model"})
_NO_SEARCH = "cannot be searched as a whole; give each key of model_config its search space"


@dataclass
class TakenOver:
    """`values`: sections of raytrain's config. `problems`: settings that are refused. `notes`:
    settings without effect, each a sentence."""

    values: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def put(self, path: tuple[str, ...], value: Any) -> None:
        """Set one value."""
        node = self.values
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value

    def refuse(self, name: str, why: str, *value: Any) -> None:
        """Add a problem of the setting `name`."""
        self.problems.append(Problem(why, "", name, *value))


def as_ppo_config(trainable: Any, param_space: Any) -> Any:
    """The `PPOConfig` that a Tuner's two arguments mean, with its search spaces in it.

    Raises ConfigError with the reason if they are not RLlib's PPO.
    """
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.algorithms.ppo import PPO, PPOConfig

    given = [part for part in (trainable, param_space) if isinstance(part, AlgorithmConfig)]
    for shown in (trainable, *(config.algo_class for config in given)):
        if any(shown is known for known in (PPO, PPOConfig, *given)) or shown in ("PPO", None):
            continue
        name = getattr(shown, "__name__", shown)
        if isinstance(shown, type) and issubclass(shown, PPO):
            raise ConfigError(
                f"the trainable is {name!r}, a subclass of RLlib's PPO (tune.with_resources and "
                "tune.with_parameters make one, too): give PPO itself, and put changes into a "
                "learner_class, callbacks or connectors"
            )
        raise ConfigError(
            f"the trainable is {name!r}, and raytrain trains RLlib's PPO: give 'PPO', PPO or a "
            "PPOConfig"
        )
    if trainable is None and not given:
        raise ConfigError("no trainable is given: give 'PPO', PPO or a PPOConfig")
    if len(given) == 2:
        raise ConfigError("two configs are given; leave param_space out")
    config = given[0] if given else PPOConfig()
    if isinstance(param_space, Mapping) and not isinstance(param_space, AlgorithmConfig):
        config = _updated(config.copy(copy_frozen=False), param_space)
    return config


def _updated(config: Any, values: Mapping[str, Any]) -> Any:
    """The config with RLlib's flat keys. Search spaces are put in afterwards: RLlib may look at a
    value."""
    spaces = {name: value for name, value in values.items() if is_search_space(value)}
    plain = {name: first_value(value) for name, value in spaces.items()}
    try:
        config.update_from_dict({**values, **plain})
    except Exception as error:  # RLlib raises any kind, with its reason.
        raise ConfigError(f"RLlib does not accept param_space: {error}") from error
    for name, space in spaces.items():
        attribute = name if name in vars(config) else f"_{name}"
        vars(config)[attribute] = space
    return config


def take_over(config: Any, code: ScriptCode) -> TakenOver:
    """The settings of a `PPOConfig`; `code` collects the program's own classes and functions."""
    return _Reader(config, code).taken()


class _Reader:
    def __init__(self, config: Any, code: ScriptCode) -> None:
        from ray.rllib.algorithms.ppo import PPOConfig

        self._config, self._code = config, code
        self._settings, self._defaults = settings_of(config), settings_of(PPOConfig())
        self._out = TakenOver()
        self._direct = _direct()
        self._special: dict[str, Callable[[Any], None]] = {
            "seed": lambda value: self._put(("seed",), "seed", value),
            "env": lambda value: None,
            "env_config": lambda value: None,
            "callbacks_class": self._callbacks_class,
            "env_to_module_connector": self._env_to_module_connector,
            "gym_env_vectorize_mode": self._vectorize_mode,
            "observation_filter": self._observation_filter,
            "model": self._old_model,
            "policies": self._policies,
            "min_sample_timesteps_per_iteration": self._least_timesteps,
            "evaluation_config": self._evaluation_config,
            "rl_module_spec": lambda value: None,
            "model_config": lambda value: None,
            "train_batch_size": self._batch_size,
            "train_batch_size_per_learner": self._batch_size,
            "_torch_lr_scheduler_classes": self._lr_schedulers,
        }

    def taken(self) -> TakenOver:
        self._environment()
        for name, value in self._settings.items():
            if name == "algo_class" or _equal(value, self._defaults.get(name, ...)):
                continue
            self._setting(name, value)
        self._network()
        return self._out

    def _setting(self, name: str, value: Any) -> None:
        if name in self._special:
            self._special[name](value)
        elif name in self._direct:
            section, key, is_code = self._direct[name]
            if is_code:
                self._put_code((section, key), name, value)
            else:
                self._put((section, key), name, value)
        elif name in WITHOUT_EFFECT:
            self._out.notes.append(f"{name} has no effect here: {WITHOUT_EFFECT[name]}.")
        elif name in self._defaults:
            self._out.refuse(name, why_refused(name), value)
        else:
            near = nearest(name, [known for known in self._defaults if known[0] != "_"])
            problem = Problem("PPOConfig has no such setting", "", name, value, near)
            self._out.problems.append(problem)

    # -- values ----------------------------------------------------------------------------------

    def _put(self, path: tuple[str, ...], name: str, value: Any) -> None:
        try:
            self._out.put(path, _converted(value))
        except NoSearchSpace as error:
            self._out.refuse(name, str(error))

    def _put_code(self, path: tuple[str, ...], name: str, value: Any) -> None:
        try:
            self._out.put(path, self._paths(value, path[-1]))
        except (NoSource, NoSearchSpace) as error:
            self._out.refuse(name, str(error))

    def _paths(self, value: Any, name: str) -> Any:
        """Import paths in the places of objects, in lists and search spaces too."""
        if is_search_space(value):
            return {kind: self._paths(items, name) for kind, items in converted(value).items()}
        if isinstance(value, (list, tuple)):
            return [self._paths(item, name) for item in value]
        return self._code.path_of_class(value, name)

    # -- environment -----------------------------------------------------------------------------

    def _environment(self) -> None:
        env, arguments = self._settings["env"], self._settings["env_config"] or {}
        if env is None:
            self._out.refuse("env", "no environment is given: PPOConfig().environment(...)")
            return
        if is_search_space(env):
            self._out.refuse("env", "cannot be searched; give each environment a run of its own")
            return
        plain = {key: item for key, item in arguments.items() if _is_plain(item)}
        others = {key: item for key, item in arguments.items() if key not in plain}
        if plain:
            self._put(("environment", "env_config"), "env_config", plain)
        try:
            spec = self._env_spec(env, others)
        except NoSource as error:
            self._out.refuse("env", str(error))
        else:
            self._out.put(("environment", "env"), spec)

    def _env_spec(self, env: Any, others: Mapping[str, Any]) -> str:
        creator = registered_env(env) if isinstance(env, str) else env
        # An earlier run of this program has registered an id of Gymnasium's.
        if creator is None or isinstance(creator, EnvCreator):
            own = _own_gymnasium_spec(str(env))
            if own is not None:
                make = self._code.bind("make", gymnasium.make)
                made = f"{make}({self._code.expression(own)}, **{self._argument(others)})"
                return self._code.path_of_expression("environment", "config", made)
            if others:
                raise NoSource(
                    f"env_config.{next(iter(others))} is a {_kind(next(iter(others.values())))}, "
                    "which cannot be stored with the run; give a function that makes the "
                    "environment with it"
                )
            return str(env)
        if not callable(creator):
            raise NoSource(f"a {_kind(creator)} is no class or function that makes an environment")
        if not others and takes_the_dict(creator):
            return self._code.path_of(creator, "environment")
        made = self._code.bind(
            getattr(creator, "__name__", "").strip("<>") + "_env"
            if getattr(creator, "__name__", "") in ("<lambda>", "")
            else creator.__name__,
            creator,
        )
        expression = f"{made}({self._argument(others)})"
        return self._code.path_of_expression("environment", "config", expression)

    def _argument(self, others: Mapping[str, Any]) -> str:
        """The dictionary that makes an environment, as an expression: `config`, and values that
        cannot be stored with the run."""
        extra = ""
        for key, item in others.items():
            try:
                extra += f", {key!r}: {self._code.expression(item)}"
            except NoSource as error:
                raise NoSource(f"env_config.{key}: {error}") from None
        return f"{{**config{extra}}}" if extra else "config"

    # -- the other settings that need a look -----------------------------------------------------

    def _callbacks_class(self, value: Any) -> None:
        self._put_code(("callbacks", "callbacks_class"), "callbacks_class", value)

    def _env_to_module_connector(self, value: Any) -> None:
        pieces = _pieces(value)
        kinds = None if pieces is None else [type(piece).__name__ for piece in pieces]
        if kinds == ["FlattenObservations"]:
            self._out.notes.append(
                "FlattenObservations is not needed: raytrain flattens observations the same way."
            )
        elif kinds in (["MeanStdFilter"], ["FlattenObservations", "MeanStdFilter"]):
            self._out.put(("env_runners", "observation_filter"), "MeanStdFilter")
        else:
            path = ("env_runners", "env_to_module_connector")
            self._put_code(path, "env_to_module_connector", value)

    def _vectorize_mode(self, value: Any) -> None:
        text = str(getattr(value, "value", value)).lower()
        if text in ("sync", "async"):
            self._out.notes.append(
                f"gym_env_vectorize_mode={text!r}: environments are stepped one after the other, "
                "with the same results: no snapshot can be taken of environments in other "
                "processes. More env runners step in parallel (num_env_runners)."
            )
        else:
            self._out.refuse(
                "gym_env_vectorize_mode",
                "environments are stepped one after the other (sync), so that a snapshot can be "
                "taken of each; remove it",
                value,
            )

    def _observation_filter(self, value: Any) -> None:
        self._put(("env_runners", "observation_filter"), "observation_filter", value)
        self._out.notes.append(
            f"observation_filter={value!r} is used, although RLlib's new API stack ignores it."
        )

    def _least_timesteps(self, value: Any) -> None:
        name, size = "min_sample_timesteps_per_iteration", self._batch()
        if not is_search_space(size) and not is_search_space(value) and value <= size:
            self._out.notes.append(f"{name} has no effect: an iteration has {size} timesteps.")
        else:
            self._out.refuse(name, why_refused(name), value)

    def _policies(self, value: Any) -> None:
        # `PPOConfig.to_dict()` has RLlib's default policy in another form.
        if set(value) != {"default_policy"}:
            self._out.refuse("policies", why_refused("policies"), sorted(map(str, value)))

    def _old_model(self, value: Any) -> None:
        if getattr(self._settings["rl_module_spec"], "module_class", None) is None:
            self._out.refuse("model", why_refused("model"))
        else:
            self._out.notes.append("model has no effect here: the network is the module_class.")

    def _batch_size(self, value: Any) -> None:
        size = self._batch()
        learners = max(1, int(self._settings["num_learners"] or 1))
        if not self._settings["train_batch_size_per_learner"] and learners > 1:
            if is_search_space(size):
                self._out.refuse("train_batch_size", "search train_batch_size_per_learner instead")
                return
            size //= learners
        self._put(("training", "train_batch_size_per_learner"), "train_batch_size", size)

    def _batch(self) -> Any:
        settings = self._settings
        return settings["train_batch_size_per_learner"] or settings["train_batch_size"]

    def _lr_schedulers(self, value: Any) -> None:
        """Each is a class, or a `functools.partial` of one with its arguments."""
        path, name = ("training", "torch_lr_schedulers"), "_torch_lr_scheduler_classes"
        schedulers = []
        for item in value or ():
            made = item if isinstance(item, functools.partial) else functools.partial(item)
            if made.args or not _is_plain(made.keywords):
                self._out.refuse(name, "give its arguments by name, as numbers or text", made)
                return
            try:
                kind = self._code.path_of(made.func, "scheduler")
            except NoSource as error:
                self._out.refuse(name, str(error))
                return
            schedulers.append({"class": kind, **made.keywords})
        self._out.put(path, schedulers)

    def _evaluation_config(self, value: Any) -> None:
        if value is None:
            return
        overrides = value if isinstance(value, Mapping) else None
        if overrides is None or hasattr(value, "algo_class"):
            given = settings_of(value)
            overrides = {
                name: item
                for name, item in given.items()
                if not _equal(item, self._settings.get(name, ...))
            }
        section = ("evaluation", "evaluation_config")
        fields = [path[2] for path in yaml_fields() if path[:2] == section and len(path) == 3]
        for name, item in overrides.items():
            if name in fields:
                self._put((*section, name), f"evaluation_config.{name}", item)
            elif name in WITHOUT_EFFECT or name == "in_evaluation":
                self._out.notes.append(
                    f"evaluation_config.{name} has no effect here: "
                    f"{WITHOUT_EFFECT.get(name, 'it is always so')}."
                )
            elif name not in self._defaults:
                self._out.notes.append(
                    f"evaluation_config.{name} has no effect: RLlib has no such setting."
                )
            else:
                known_names = ", ".join(fields)
                why = f"evaluation may differ from training in {known_names}; remove it"
                self._out.refuse(f"evaluation_config.{name}", why, item)

    # -- network ---------------------------------------------------------------------------------

    def _network(self) -> None:
        from ray.rllib.core.rl_module.rl_module import RLModuleSpec

        model, spec = self._settings["model_config"], self._settings["rl_module_spec"]
        own = None
        if spec is not None:
            if not isinstance(spec, RLModuleSpec):
                why = why_refused("policies") if "Multi" in _kind(spec) else _NO_SEARCH
                self._out.refuse("rl_module_spec", why)
                return
            for name in ("observation_space", "action_space", "load_state_path"):
                if getattr(spec, name, None) is not None:
                    why = why_refused(name) if "space" in name else why_refused("")
                    self._out.refuse(f"rl_module_spec.{name}", why)
            own = spec.module_class
            if spec.catalog_class is not None:
                path = ("rl_module", "catalog_class")
                self._put_code(path, "rl_module_spec.catalog_class", spec.catalog_class)
            model = spec.model_config if spec.model_config is not None else model
        others: dict[str, Any] = {}
        if is_search_space(model):
            self._out.refuse("model_config", _NO_SEARCH)
        elif model:
            others = self._model(model, own=own is not None)
        if own is not None:
            self._module_class(own, others)

    def _module_class(self, own: Any, others: Mapping[str, Any]) -> None:
        """`others`: values of its `model_config` that cannot be stored with the run. They are
        written into a class that is derived from it."""
        name = "rl_module_spec.module_class"
        if not others:
            self._put_code(("rl_module", "module_class"), name, own)
            return
        try:
            values = self._code.expression(dict(others))
            made = self._code.path_of_network(self._code.bind(own.__name__, own), values)
        except NoSource as error:
            self._out.refuse(f"model_config.{next(iter(others))}", str(error))
        else:
            self._out.put(("rl_module", "module_class"), made)

    def _model(self, model: Any, *, own: bool) -> dict[str, Any]:
        """`own`: the network is the program's, and takes any keys. Returns those that cannot be
        stored."""
        from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

        if not isinstance(model, Mapping):
            model = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
            defaults = dataclasses.asdict(DefaultModelConfig()) | default_model(self._config)
            if not own:
                model = {
                    key: value
                    for key, value in model.items()
                    if key not in defaults or not _equal(value, defaults[key])
                }
        others: dict[str, Any] = {}
        for key, given in model.items():
            name, value = f"model_config.{key}", given
            if key.endswith("_initializer"):
                value = _initializer_name(given)
            if value is None and not own:
                continue
            if not _is_plain(value, tuples=not own):
                others[key] = value
                if own:
                    continue
                why = f"a {_kind(value)} cannot be stored with the run; give it a name or a number"
                self._out.refuse(name, why)
                continue
            self._put(("rl_module", "model_config", key), name, value)
        return others


def _own_gymnasium_spec(env_id: str) -> Any:
    """What the program, or a module beside it, has registered under an id of Gymnasium's, which
    another process does not know; else None."""
    spec = gymnasium.registry.get(env_id)
    entry = None if spec is None else spec.entry_point
    if isinstance(entry, str):
        module = entry.partition(":")[0]
        if module != "__main__" and place_of(module) is None:
            return None
        with suppress(ImportError, AttributeError):  # Which making it will tell.
            entry = pkgutil.resolve_name(entry)
    return None if entry is None else dataclasses.replace(spec, entry_point=entry)


def _direct() -> dict[str, tuple[str, str, bool]]:
    """Settings that have the same name in a section of raytrain's: section, key, and whether the
    value is code."""
    code = {
        "module_to_env_connector": ("env_runners", "module_to_env_connector"),
        "learner_connector": ("training", "learner_connector"),
        "learner_class": ("training", "learner_class"),
    }
    keys = [path for path in yaml_fields() if len(path) == 2 and path[0] in ALGORITHM_SECTIONS]
    found = {key: (section, key, False) for section, key in keys if key not in _ELSEWHERE}
    hooks = [key for section, key in keys if section == "callbacks"]
    found.update(
        {f"callbacks_{hook}": ("callbacks", hook, True) for hook in hooks if "on_" in hook}
    )
    found.update({name: (*path, True) for name, path in code.items()})
    return found


def _equal(one: Any, other: Any) -> bool:
    """Whether two values of a setting are the same: of the same type, too (`1` is not `True`)."""
    if one is other:
        return True
    if type(one) is not type(other) and not (
        isinstance(one, (int, float)) and isinstance(other, (int, float))
    ):
        return False
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if hasattr(one, "__dict__") and type(one).__module__.startswith("ray."):
        return bool(vars(one) == vars(other))  # PolicySpec, ...
    try:
        return bool(one == other)
    except ValueError:  # An array has no single truth.
        return False


def _converted(value: Any) -> Any:
    """Search spaces in raytrain's form, at any depth; tuples as lists."""
    if is_search_space(value):
        kind, values = next(iter(converted(value).items()))
        return {kind: [_converted(item) for item in values]}
    if isinstance(value, Mapping):
        return {key: _converted(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_converted(item) for item in value]
    return getattr(value, "value", value) if type(value).__module__.startswith("ray.") else value


def _is_plain(value: Any, *, tuples: bool = False) -> bool:
    """Whether a value can be stored with the run as it is. A tuple would come back as a list."""
    if is_search_space(value):
        try:
            space = converted(value)
        except NoSearchSpace:
            return True  # It is refused where it is converted.
        return all(_is_plain(item, tuples=tuples) for item in next(iter(space.values())))
    if isinstance(value, Mapping):
        return all(
            isinstance(key, str) and _is_plain(item, tuples=tuples) for key, item in value.items()
        )
    if isinstance(value, list) or (tuples and isinstance(value, tuple)):
        return all(_is_plain(item, tuples=tuples) for item in value)
    return value is None or isinstance(value, (str, bool, int, float))


def _kind(value: Any) -> str:
    return type(value).__name__


def _initializer_name(value: Any) -> Any:
    """The name of one of `torch.nn.init`'s functions; other values as they are."""
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    return name if module == "torch.nn.init" else value


def _pieces(function: Any) -> list[Any] | None:
    """The connectors that a program's function makes, if all of them have RLlib's defaults and no
    environment is needed to make them; else None."""
    if not callable(function):
        return None
    try:
        made = function(None, None, None)
        pieces = list(made) if isinstance(made, (list, tuple)) else [made]
        plain = [type(piece)() for piece in pieces]
    except Exception:  # The program's own code may need what it is not given here.
        return None
    ours = "ray.rllib.connectors."
    if not all(type(piece).__module__.startswith(ours) for piece in pieces):
        return None
    same = all(repr(vars(a)) == repr(vars(b)) for a, b in zip(pieces, plain, strict=True))
    return pieces if same else None
