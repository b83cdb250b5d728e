"""Strategies that are not ours: plain arrays, no mask, and a state that we can store.

A Flower strategy keeps what it learns (FedAdam's moments, say) in its attributes; those
that a checkpoint can hold are in it, and others are named by `lost`.
"""

import functools
import inspect
import logging
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedsparse import models, registry, wire
from fedsparse.config import StrategySettings
from fedsparse.errors import ConfigError, ModelError, RunFolderError
from fedsparse.runs import tree
from fedsparse.sparsity import State
from strategies.base import SparseStrategy
from strategies.task import Task

WRAPPED = "wrapped strategy"
"""Key of the attributes of a strategy that another one, such as a privacy wrapper, holds."""

ARRAYS = "array record"
"""Key of the arrays of an attribute that is an `ArrayRecord`."""


def make(task: Task) -> Strategy:
    """Build the strategy that the configuration names, ours or another maker's.

    Every key of `[strategy]` that is not fedsparse's own goes to a foreign strategy's
    constructor, for example `strategy.fraction_train`.
    """
    section = task.config.strategy
    cls = registry.load("strategies", section["name"])
    if isinstance(cls, type) and issubclass(cls, SparseStrategy):
        return cls(task)
    if not (isinstance(cls, type) and issubclass(cls, Strategy)):
        raise ConfigError(f"strategy.name = '{section['name']}' is no Flower Strategy class")
    extra = {k: v for k, v in section.items() if k not in StrategySettings.model_fields}
    try:
        return cls(**_defaults(cls, task), **extra)
    except TypeError as error:
        raise ConfigError(f"strategy '{section['name']}' refused its settings: {error}") from None


def _defaults(cls: type, task: Task) -> dict[str, Any]:
    """Return the cohort's size in the words of Flower's FedAvg family."""
    fleet = task.config.fleet
    given = task.config.strategy
    size = fleet.clients_per_round or fleet.clients
    wanted = {
        "fraction_train": size / fleet.clients,
        "fraction_evaluate": min(1.0, fleet.evaluate_clients / fleet.clients),
        "min_train_nodes": size,
        "min_evaluate_nodes": min(2, fleet.clients),
        "min_available_nodes": min(2, fleet.clients),
        "initial_arrays": initial_arrays(task),
    }
    accepted = _parameters(cls)
    return {k: v for k, v in wanted.items() if k in accepted and k not in given}


def _parameters(cls: type) -> set[str]:
    """Return the constructor's keywords; one with **kwargs takes those of its parents."""
    found: set[str] = set()
    for parent in cls.__mro__:
        init = parent.__dict__.get("__init__")
        if init is None:
            continue
        parameters = inspect.signature(init).parameters
        found |= set(parameters)
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
