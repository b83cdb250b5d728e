"""Every touch of Flower's internals that a grid of our own needs, for flwr 1.41.

Flower offers no public way to say who a process is, to number a message, or to store a
context. When a new flwr comes, this module and its test are what must be looked at.
"""

import copyreg
import importlib
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    Context,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from fedsparse.errors import GridError
from fedsparse.flower_pulls import ask_again_soon
from fedsparse.state_codec import record_state

T = TypeVar("T")

SERVER_NODE = 1
RAISED = 2
"""Flower's CLIENT_APP_RAISED_EXCEPTION."""
CRASHED = 8
"""Flower's CLIENT_APP_CRASHED."""


def become_server(run_id: int) -> None:
    """Say who this process is; without it `Message(...)` raises."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE


def number(message: Message, message_id: str) -> None:
    """Give a message its id, which replies quote; Flower's link does the same."""
    message.metadata.__dict__["_message_id"] = message_id


class Address(NamedTuple):
    """What of its metadata is a message's own, where many are sent alike."""

    message_id: str
    node: int
    created_at: float


_own_metadata = itemgetter("_message_id", "_dst_node_id", "_created_at")
_common_metadata = itemgetter(
    "_run_id",
    "_src_node_id",
    "_src_task_id",
    "_dst_task_id",
    "_reply_to_message_id",
    "_group_id",
    "_ttl",
    "_message_type",
)


def address(metadata: Metadata) -> Address:
    """Return what is a message's own."""
    return Address(*_own_metadata(metadata.__dict__))


def alike(metadata: Metadata) -> tuple[Any, ...]:
    """Return what else is in a message's metadata."""
    return tuple(_common_metadata(metadata.__dict__))


def addressed(metadata: Metadata, to: Address) -> Metadata:
    """Return another message's metadata with an address of its own."""
    own = {"_message_id": to.message_id, "_dst_node_id": to.node, "_created_at": to.created_at}
    return _made(Metadata, {**metadata.__dict__, **own})


def message_of(metadata: Metadata, records: Mapping[str, Any]) -> Message:
    """Rebuild a message from its parts, with records that are the receiver's own.

    Strategies put one RecordDict into all messages; a client that writes into what it
    received must not reach its neighbours. The arrays' bytes are shared, not copied.
    """
    return _message(metadata, {name: _own(record) for name, record in records.items()})


Told = tuple[tuple[Any, ...], tuple[Any, ...], dict[str, dict[str, Any]], dict[str, Any]]
"""A reply in parts: what of its metadata is its own, what many have alike, its metrics, and
records of other kinds as they are. Plain values, as a Flower object takes ten times as long to
carry."""


_REPLYS_OWN = ("_src_node_id", "_reply_to_message_id", "_created_at", "_ttl")
_REPLYS_ALIKE = (
    *("_run_id", "_message_id", "_dst_node_id", "_group_id", "_message_type"),
    *("_src_task_id", "_dst_task_id", "_delivered_at"),
)
_own_of_reply, _alike_of_reply = itemgetter(*_REPLYS_OWN), itemgetter(*_REPLYS_ALIKE)


def told(reply: Message, without: str) -> Told:
    """Take a reply apart that has content, and leave out one of its records.

    Raises KeyError where its metadata is not as Flower makes it.
    """
    metrics, others = {}, {}
    for name, record in reply.content.__dict__["_data"].items():
        if type(record) is MetricRecord:
            metrics[name] = record.__dict__["_data"]
        elif name != without:
            others[name] = record
    metadata = reply.metadata.__dict__
    if len(metadata) != len(_REPLYS_OWN) + len(_REPLYS_ALIKE):
        raise KeyError("fields that are not known here")
    return _own_of_reply(metadata), _alike_of_reply(metadata), metrics, others


def reply_of(told: Told, name: str, record: Any) -> Message:
    """Put a reply together again, with a record in the place of the one left out."""
    own, alike, metrics, others = told
    fields = dict(zip(_REPLYS_ALIKE, alike, strict=True))
    fields.update(zip(_REPLYS_OWN, own, strict=True))
    records = {name: record}
    for key, data in metrics.items():
        records[key] = _like(_NO_METRICS, data)
    records.update(others)
    return _message(_made(Metadata, fields), records)


def check_reply(reply: Message) -> None:
    """Raise where a client has made of its reply what Flower could not send."""
    if reply.has_error():
        return
    for name, record in reply.content.items():
        for array in record.values() if isinstance(record, ArrayRecord) else ():
            if type(array.data) is not bytes:
                raise TypeError(f"'{name}' holds {type(array.data).__name__}, not bytes")


LARGE = 65536
"""Bytes from which an array is carried in a buffer of its own."""


def carry_large_arrays_apart() -> None:
    """Let processes hand large arrays over as buffers, which saves copying them twice."""
    copyreg.pickle(Array, _taken_apart)


def _taken_apart(array: Array) -> Any:
    if len(array.data) < LARGE:
        return object.__reduce_ex__(array, 2)
    data = np.frombuffer(array.data, np.uint8)
    return _put_together, (array.dtype, array.shape, array.stype, data)


def _put_together(dtype: str, shape: tuple[int, ...], stype: str, data: NDArray[np.uint8]) -> Array:
    return Array(dtype, tuple(shape), stype, data.tobytes())


def put(message: Message, name: str, record: Any) -> None:
    """Replace a record of a message; others that have the same content keep theirs."""
    message.content = _like(_NO_RECORDS, {**message.content.__dict__["_data"], name: record})


# Flower's constructors check what they are given. What comes from such objects was checked when
# they were made; checking it again takes most of the time that an idle client takes.


def _made(kind: type[T], fields: dict[str, Any]) -> T:
    """Return an object of a class with these fields."""
    made = object.__new__(kind)
    made.__dict__.update(fields)
    return made


def _like(record: T, data: dict[str, Any]) -> T:
    """Return a record of the same kind that holds other data."""
    fields = record.__dict__
    made = object.__new__(type(record))
    made.__dict__.update(
        _check_key_fn=fields["_check_key_fn"],
        _check_value_fn=fields["_check_value_fn"],
        _data=data,
    )
    return made


_NO_RECORDS, _NO_METRICS = RecordDict(), MetricRecord()


def _message(metadata: Metadata, records: dict[str, Any]) -> Message:
    content = _like(_NO_RECORDS, records)
    return _made(Message, {"_metadata": metadata, "_content": content, "_error": None})


def _own(record: T) -> T:
    """Return a copy of a record, of which a change reaches nobody else."""
    return _like(record, {k: _own_value(v) for k, v in record.__dict__["_data"].items()})


def _own_value(value: Any) -> Any:
    if isinstance(value, list):
        return list(value)
    if type(value) is not Array:
        return value
    fields = value.__dict__
    return _made(Array, {name: fields[name] for name in ("dtype", "shape", "stype", "data")})


def copied(reply: Message) -> Message:
    """Return a reply of its own with the same metadata and content, as one that comes twice."""
    made = _made(Message, dict(reply.__dict__))
    made.__dict__["_metadata"] = _made(Metadata, dict(reply.metadata.__dict__))
    return made


def skew(reply: Message, seconds: float) -> None:
    """Have a reply say that it was made at another time, as a node's wrong clock does."""
    reply.metadata.__dict__["_created_at"] += seconds


def redirect(reply: Message, node: int) -> None:
    """Have a reply say that it comes from another node."""
    reply.metadata.__dict__["_src_node_id"] = node


def error_reply(message: Message, code: int, reason: str) -> Message:
    """Return the error that stands for a client's reply, its reason on one line."""
    return Message(Error(code, " ".join(reason.split())), reply_to=message)


def abandon(grid: Grid) -> None:
    """Make whoever waits in this grid's `send_and_receive` raise GridError.

    Flower's own grid waits for ever when its engine is gone, and has no way to be told.
    """

    def gone(messages: Any) -> Any:
        raise GridError("the engine behind this grid has ended")

    vars(grid).update(push_messages=gone, pull_messages=gone)


def new_context(
    run_id: int, node: int, client: int, clients: int, run_config: Mapping[str, Any], state: Any
) -> Context:
    """Return a client's context, its state as `plain_state` left it."""
    return Context(
        run_id=run_id,
        node_id=node,
        node_config={"partition-id": client, "num-partitions": clients},
        state=record_state(state or {}),
        run_config=dict(run_config),
    )


def load_app(path: str) -> ClientApp:
    """Import a ClientApp by `module:attribute`; raises GridError when it is none."""
    module, _, attribute = path.partition(":")
    if module == "__main__":
        raise GridError(f"'{path}' cannot be imported by workers; put the ClientApp in a module")
    try:
        app = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise GridError(f"cannot import the ClientApp '{path}': {error}") from error
    if not isinstance(app, ClientApp):
        raise GridError(f"'{path}' is a {type(app).__name__}, not a flwr ClientApp")
    return app


# What follows makes a SuperNode answer fast; `simulations/deployment` starts it.


def look_often_for_work(seconds: float) -> None:
    """Let this process's SuperNode look for messages and replies at least every `seconds`.

    Flower's node sleeps three seconds between looks, and half a second between those for a
    reply; both are written into its loop.
    """
    import time
    from types import SimpleNamespace

    from flwr.supernode import start_client_internal as loop

    clock = SimpleNamespace(
        **{name: getattr(time, name) for name in dir(time) if not name.startswith("_")}
    )
    clock.sleep = lambda wanted: time.sleep(min(wanted, seconds))
    vars(loop)["time"] = clock
    ask_again_soon()


class Forks:
    """An executor of Flower's that forks this process for each of a node's messages."""

    def __init__(self, parent: int) -> None:
        self.parent = parent
        self.running: dict[int, Any] = {}

    def get_eligible_capacity(self, kinds: set[Any], **options: Any) -> tuple[set[Any], set[str]]:
        """Take whatever there is: a node has one message at a time."""
        return kinds, set()

    def launch(self, spec: Any) -> Any:
        """Fork; the child answers one message and ends, the parent goes on at once."""
        from flwr.supercore.superexec.executor import LaunchResult

        child = os.fork()
        if child == 0:
            _answer_and_end(spec)
        self.running[child] = spec
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Take leave of children that ended, tell of those that died; end when the node has."""
        from simulations.deployment.processes import signal_name
        from simulations.deployment.steadfast import report_death

        if os.getppid() != self.parent:
            sys.exit(0)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                spec = self.running.pop(ended[0], None)
                if spec is not None and os.WIFSIGNALED(ended[1]):
                    name = signal_name(os.WTERMSIG(ended[1]))
                    reason = f"the client's process was ended by {name}"
                    report_death(spec.runtime_api_address, spec.token, reason)

    def close(self) -> None:
        """Release nothing: children end by themselves."""


def _answer_and_end(spec: Any) -> None:
    """Be Flower's client process for one message; never returns."""
    code = 1
    try:
        from flwr.supercore.exit import exit_handler
        from flwr.supernode.runtime.run_clientapp import run_clientapp

        from simulations.deployment.steadfast import install_whole_apps

        install_whole_apps()
        exit_handler.registered_exit_handlers.clear()  # the parent's, whose link this isn't
        run_clientapp(
            runtime_api_address=spec.runtime_api_address,
            token=spec.token,
            insecure=True,
            parent_pid=os.getppid(),
            runtime_dependency_install=False,
        )
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_superexec_forking(address: str, parent: int) -> None:
    """Run clients of the node at `address` in forks of this process, until process `parent` ends.

    What is imported before is there in each. No thread runs here, which a fork would lose.
    """
    from flwr.supercore.superexec import run_superexec as module

    def get_executor(*args: Any, **options: Any) -> Any:
        return Forks(parent)

    vars(module)["get_executor"] = get_executor
    ask_again_soon()
    module.run_superexec(address, insecure=True, runtime_dependency_install=False)


def screen_superlink(middleware: Any) -> None:
    """Put an ASGI middleware ahead of everything that this process' SuperLink answers.

    Flower has a seam for extensions, which it looks for in a package that it does not publish.
    """
    from flwr.superlink import extensions
    from starlette.middleware import Middleware

    vars(extensions)["get_middleware"] = lambda: (Middleware(middleware),)
