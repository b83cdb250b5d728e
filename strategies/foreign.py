"""Strategies that are not ours: plain arrays, no mask, and a state that we can store.

A Flower strategy keeps what it learns (FedAdam's moments, say) in its attributes; those
that a checkpoint can hold are in it, and others are named by `lost`.
"""

import functools
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedsparse import models, registry, wire
from fedsparse.config import Config, RobustConfig, StrategySettings, settings_of
from fedsparse.errors import (
    ConfigError,
    FedSparseError,
    GridError,
    ModelError,
    RunFolderError,
    one_line,
)
from fedsparse.runs import tree
from fedsparse.sparsity import State
from strategies.addressing import least_replies, round_size
from strategies.base import SparseStrategy
from strategies.secure import check_secure
from strategies.task import Task

WRAPPED = "wrapped strategy"
"""Key of the attributes of a strategy that another one, such as a privacy wrapper, holds."""

ARRAYS = "array record"
"""Key of the arrays of an attribute that is an `ArrayRecord`."""

NODES = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
"""How many nodes a strategy of Flower's FedAvg family waits for."""

FRACTIONS = ("fraction_train", "fraction_evaluate")
"""Of the nodes that are there, those that it asks."""


def make(task: Task) -> Strategy:
    """Build the strategy that the configuration names, ours or another maker's.

    Every key of `[strategy]` that is not fedsparse's own goes to a foreign strategy's
    constructor, for example `strategy.fraction_train`.
    """
    section = task.config.strategy
    cls = registry.load("strategies", section["name"])
    if isinstance(cls, type) and issubclass(cls, SparseStrategy):
        made = cls(task)
        check_secure(task, vars(cls).get("private", False) and made.adds_up)
        return made
    if not (isinstance(cls, type) and issubclass(cls, Strategy)):
        raise ConfigError(f"strategy.name = '{section['name']}' is no Flower Strategy class")
    _check_unused(section)
    check_secure(task, vouched=False)
    if task.config.privacy.clip is not None:
        raise ConfigError(
            f"privacy.clip: strategy '{section['name']}' combines its replies itself; leave it "
            "out, or choose static or fedavg"
        )
    if task.config.fleet.novel_clients:
        raise ConfigError(
            f"fleet.novel_clients: strategy '{section['name']}' draws from all nodes by itself; "
            "leave it out, or choose a strategy of fedsparse"
        )
    for key in ("rule", "bucket_size", "max_norm", "max_examples"):
        value = getattr(task.config.robust, key)
        if value != RobustConfig.model_fields[key].default:
            raise ConfigError(
                f"robust.{key} = {value!r}: strategy '{section['name']}' judges and combines "
                "replies by itself; leave it out, or choose a strategy of fedsparse"
            )
    extra = {k: v for k, v in section.items() if k not in StrategySettings.model_fields}
    _check_numbers(cls, extra)
    try:
        strategy = cls(**_defaults(cls, task), **extra)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"strategy '{section['name']}' refused its settings: {error}") from None
    _check_nodes(strategy, task.config.fleet.clients - len(task.absent))
    return strategy


@contextmanager
def guarded(strategy: Strategy, round_number: int) -> Iterator[None]:
    """Turn what another maker's strategy raises into a GridError; errors of ours go through."""
    try:
        yield
    except (FedSparseError, MemoryError):
        raise
    except Exception as error:
        if isinstance(strategy, SparseStrategy):
            raise
        reason = f"{type(error).__name__}: {one_line(str(error))}"
        name = type(strategy).__name__
        raise GridError(f"strategy {name} failed in round {round_number}: {reason}") from error


def _check_unused(section: Mapping[str, Any]) -> None:
    """Refuse keys of fedsparse's own that would do nothing; raises ConfigError."""
    for key, field in settings_of(section["name"]).model_fields.items():
        own = key in StrategySettings.model_fields and key != "name"
        if own and section.get(key, field.default) != field.default:
            raise ConfigError(
                f"strategy.{key} = {section[key]!r}: strategy '{section['name']}' sends dense "
                f"arrays as they are and takes none; leave it at {field.default!r}"
            )


def _check_numbers(cls: type, extra: Mapping[str, Any]) -> None:
    """Refuse what is no number where the constructor says `int` or `float`.

    Many a strategy takes anything and fails in its first round. Raises ConfigError.
    """
    parameters = _parameters(cls)
    for key, value in extra.items():
        said = parameters[key].annotation if key in parameters else None
        whole = said in (int, "int")
        number = isinstance(value, int) or (isinstance(value, float) and not whole)
        if (whole or said in (float, "float")) and (isinstance(value, bool) or not number):
            must = "a whole number" if whole else "a number"
            raise ConfigError(f"strategy.{key} = {value!r}: must be {must}")


def _check_nodes(strategy: Strategy, clients: int) -> None:
    """Refuse a strategy that would wait for ever for more nodes; raises ConfigError."""
    limits = {**dict.fromkeys(NODES, clients), **dict.fromkeys(FRACTIONS, 1)}
    for key, most in limits.items():
        value = getattr(strategy, key, None)
        if isinstance(value, int | float) and value > most:
            raise ConfigError(
                f"strategy.{key} = {value} asks for more nodes than fleet.clients = {clients}; "
                f"lower it to {most} or less"
            )


def check_clock(config: Config) -> None:
    """Refuse keys of a simulated clock that such a strategy takes no notice of."""
    fleet = config.fleet
    for key, value in (("over_selection", fleet.over_selection), ("fit", fleet.fit)):
        if value not in (0.0, "refuse"):
            raise ConfigError(
                f"fleet.{key} = {value!r} does nothing with strategy '{config.strategy['name']}', "
                "which says itself whom it asks and what it sends; leave it out"
            )


def least_nodes(strategy: Strategy) -> int:
    """Return how many nodes a strategy waits for before it asks any."""
    wanted = [getattr(strategy, key, 0) for key in NODES if "evaluate" not in key]
    return max((value for value in wanted if isinstance(value, int)), default=1)


def _defaults(cls: type, task: Task) -> dict[str, Any]:
    """Return the cohort's size in the words of Flower's FedAvg family."""
    fleet = task.config.fleet
    given = task.config.strategy
    nodes = fleet.clients - len(task.absent)
    size = min(nodes, round_size(fleet))
    least = least_replies(size, fleet.min_replies)
    wanted = {
        "fraction_train": size / nodes,
        "fraction_evaluate": min(1.0, fleet.evaluate_clients / nodes),
        # With devices, not all may be there at once, and a strategy would wait for ever.
        "min_train_nodes": size if fleet.profile is None else least,
        "min_evaluate_nodes": min(2, nodes),
        "min_available_nodes": min(2, nodes) if fleet.profile is None else least,
        "initial_arrays": initial_arrays(task),
    }
    accepted = _parameters(cls)
    return {k: v for k, v in wanted.items() if k in accepted and k not in given}


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return the constructor's keywords; one with **kwargs takes those of its parents."""
    found: dict[str, inspect.Parameter] = {}
    for parent in cls.__mro__:
        init = parent.__dict__.get("__init__")
        if init is None:
            continue
        parameters = inspect.signature(init).parameters
        found = {**parameters, **found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return found


def initial_arrays(task: Task) -> ArrayRecord:
    """Return the freshly initialised model as plain arrays."""
    return plain_arrays(models.get_state(task.model))


def plain_arrays(state: State) -> ArrayRecord:
    """Return a state as Flower's own dense arrays."""
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in state.items()})


def state_of(arrays: ArrayRecord, schema: wire.Schema) -> State:
    """Return the state that plain arrays hold."""
    missing = [name for name in schema.names if name not in arrays]
    if missing:
        raise ModelError(f"the strategy returned a model without '{missing[0]}'")
    return {name: arrays[name].numpy().astype(np.float32) for name in schema.names}


def state_dict(strategy: Strategy, arrays: ArrayRecord) -> dict[str, Any]:
    """Return the model and the strategy's attributes that a checkpoint can hold."""
    return {"arrays": _numpy(arrays), "attributes": _attributes(strategy)}


def _attributes(strategy: Strategy) -> dict[str, Any]:
    """Return what can be stored of a strategy, and of one that it wraps, as `{WRAPPED: ...}`."""
    found: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            found[name] = {WRAPPED: _attributes(value)}
        elif isinstance(value, ArrayRecord):
            found[name] = {ARRAYS: _numpy(value)}
        elif _storable(value):
            found[name] = value
    return found


def lost(strategy: Strategy) -> list[str]:
    """Return the attributes that may be state and that no checkpoint can hold."""
    found: list[str] = []
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            found += lost(value)
        elif not (isinstance(value, ArrayRecord) or _storable(value) or _stateless(value)):
            found.append(name)
    return found


def _numpy(arrays: ArrayRecord) -> State:
    return {name: array.numpy() for name, array in arrays.items()}


def load_state_dict(strategy: Strategy, saved: dict[str, Any]) -> ArrayRecord:
    """Give a strategy its attributes back and return the model."""
    _load_attributes(strategy, saved["attributes"])
    return plain_arrays(saved["arrays"])


def _load_attributes(strategy: Any, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        held = getattr(strategy, name, None)
        if isinstance(value, dict) and list(value) == [WRAPPED]:
            _load_attributes(held, value[WRAPPED])
        elif isinstance(value, dict) and list(value) == [ARRAYS]:
            setattr(strategy, name, plain_arrays(value[ARRAYS]))
        elif isinstance(held, dict) and type(held) is not dict:  # a defaultdict has a factory
            held.clear()
            held.update(value)
        else:
            setattr(strategy, name, value)


def _storable(value: Any) -> bool:
    try:
        tree.encode(value, tree.Tensors())
    except (RunFolderError, RecursionError):
        return False
    return True


def _stateless(value: Any) -> bool:
    return (
        inspect.isroutine(value)
        or inspect.isclass(value)
        or inspect.ismodule(value)
        or isinstance(value, functools.partial | logging.Logger)
    )
