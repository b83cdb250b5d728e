"""What a run needs before it can begin, side by side: Ray's processes, and our own imports.

Ray takes seconds to start, most of them waiting for its processes; importing torch and Flower
takes seconds too.
"""

import importlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fedsparse import registry
from fedsparse.config import Config, override
from fedsparse.errors import FedSparseError
from fedsparse.sections import StrategySettings
from simulations import capacity, garbage

if TYPE_CHECKING:
    from simulations.ray_session import RaySession

NAME = "strategy.name"

ASIDE = 15
"""How far the thread that imports steps back (see `nice`): the imports are done before Ray is."""


@contextmanager
def prepared(
    tree: Mapping[str, Any], changes: Iterable[str], out: Path | None
) -> Iterator["RaySession | None"]:
    """Import the simulator; start Ray meanwhile where the configuration names it.

    `tree`, `changes`: a configuration and assignments to it, not checked yet. Nothing is
    started, nor imported, where a mistake can be seen at once; whoever checks the configuration
    in earnest tells it. Ray ends with this block. Raises GridError when Ray cannot be started.
    """
    config = at_a_glance(tree, changes, out)
    if config is None:
        yield None
        return
    modules = ["clients.client_app", "simulations.experiment", "simulations.grid"]
    session = None
    # Modules are made of objects that stay: looking for garbage takes a tenth of the import.
    with garbage.kept():
        if config.engine.name == "ray":
            session = _beside_imports(config, [*modules, "simulations.ray_workers"])
        else:
            _import(modules)
    try:
        yield session
    finally:
        if session is not None:
            session.close()


def at_a_glance(tree: Mapping[str, Any], changes: Iterable[str], out: Path | None) -> Config | None:
    """Return the configuration, None where something is seen to be wrong.

    Of a strategy's settings only those are looked at that every strategy has: its own are known
    when it is imported, and torch with it.
    """
    changes = list(changes)
    section = tree.get("strategy", {})
    name = section.get("name", "fedtiny") if isinstance(section, Mapping) else None
    for change in changes:
        key, _, value = change.partition("=")
        if key.strip() == NAME:
            name = value.strip().strip("\"'")
    others = [change for change in changes if change.partition("=")[0].strip() != NAME]
    try:
        if isinstance(section, Mapping):
            tree = {**tree, "strategy": {k: v for k, v in section.items() if k != "name"}}
        config = Config.model_validate(override(tree, others))
        common = {k: v for k, v in config.strategy.items() if k in StrategySettings.model_fields}
        StrategySettings.model_validate(common)
        capacity.check(config.engine)
    except (FedSparseError, ValidationError):
        return None
    names = {
        "strategies": name,
        "models": config.model.name,
        "datasets": config.data.name,
    }
    known = all(":" in str(n) or str(n) in registry.names(kind) for kind, n in names.items())
    free = out is None or not out.exists() or (out.is_dir() and not any(out.iterdir()))
    return config if known and free else None


def _beside_imports(config: Config, modules: list[str]) -> "RaySession":
    """Start Ray in this thread, to whose life Linux ties its processes; import in another."""
    # numpy's BLAS reads its number of threads now; while Ray starts, that is set for workers.
    importlib.import_module("numpy")
    # Two threads that import take turns, so Ray comes first: its processes are what is waited for.
    from simulations.ray_session import RaySession, changed, environment

    importing = threading.Thread(target=_import_aside, args=(modules,), name="imports")
    # What Ray changes of the environment is set before: C code that is imported may read it.
    with changed(environment() if config.engine.ray_address is None else {}):
        importing.start()
        try:
            session = RaySession(capacity.workers_of(config), config.engine.ray_address)
        except BaseException:
            importing.join()
            raise
        try:
            importing.join()
        except BaseException:
            session.close()
            raise
    return session


def _import_aside(modules: list[str]) -> None:
    """Import modules, and let Ray's processes have the cores first; the thread ends with it."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), ASIDE)
    _import(modules)


def _import(modules: list[str]) -> None:
    """Import modules; what fails will be told where it is used."""
    with suppress(Exception):
        for module in modules:
            importlib.import_module(module)
