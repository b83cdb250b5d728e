"""A client's state as nested dicts, as a JSON body that names its bytes by their SHA-256, and back.

Clients that keep the same bytes name the same; clients whose states are equal have one body.
Nothing is unpickled: a body is JSON, and all else is bytes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

State = dict[str, Any]
"""One client's state in the form of `plain_state`: nested dicts of bytes, lists and values."""


def plain_state(state: RecordDict) -> State:
    """Return a client's state as nested dicts of bytes, lists and plain values.

    {"arrays": {record: {key: {dtype, shape, stype, data}}}, "metrics": .., "configs": ..},
    without the kinds that are empty; {} when there is no state.
    """
    if not state:
        return {}
    arrays = {
        name: {
            key: {"dtype": a.dtype, "shape": list(a.shape), "stype": a.stype, "data": bytes(a.data)}
            for key, a in record.items()
        }
        for name, record in state.array_records.items()
    }
    metrics = {name: _owned(record) for name, record in state.metric_records.items()}
    configs = {name: _owned(record) for name, record in state.config_records.items()}
    kinds = {"arrays": arrays, "metrics": metrics, "configs": configs}
    return {kind: records for kind, records in kinds.items() if records}


def record_state(plain: Mapping[str, Any]) -> RecordDict:
    """Return the RecordDict that `plain_state` flattened."""
    state = RecordDict()
    for name, arrays in plain.get("arrays", {}).items():
        state[name] = ArrayRecord(
            {
                key: Array(a["dtype"], tuple(a["shape"]), a["stype"], a["data"])
                for key, a in arrays.items()
            }
        )
    for name, metrics in plain.get("metrics", {}).items():
        state[name] = MetricRecord(_owned(metrics))
    for name, config in plain.get("configs", {}).items():
        state[name] = ConfigRecord(_owned(config))
    return state


def _owned(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of which a change reaches nobody else."""
    return {key: list(v) if isinstance(v, list) else v for key, v in values.items()}


def encode(state: State) -> tuple[bytes, list[bytes]]:
    """Return a state's body and the bytes that it names, in the order in which it does."""
    parts: list[bytes] = []
    body = json.dumps(_encoded(state, parts), separators=(",", ":"))
    return body.encode(), parts


def decode(body: bytes, fetch: Callable[[bytes], bytes]) -> State:
    """Return the state of a body; `fetch` gives the bytes of a digest."""
    return dict(_decoded(json.loads(body), fetch))


def named(body: bytes) -> list[bytes]:
    """Return the digests that a body names, each as often as it does."""
    return list(_named(json.loads(body)))


def _encoded(node: Any, parts: list[bytes]) -> Any:
    """Return what JSON can hold: text behind an 's', the digest of bytes behind a 'b'."""
    if isinstance(node, dict):
        return {key: _encoded(value, parts) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_encoded(value, parts) for value in node]
    if isinstance(node, bytes):
        parts.append(node)
        return f"b{hashlib.sha256(node).hexdigest()}"
    return f"s{node}" if isinstance(node, str) else node


def _decoded(node: Any, fetch: Callable[[bytes], bytes]) -> Any:
    if isinstance(node, dict):
        return {key: _decoded(value, fetch) for key, value in node.items()}
    if isinstance(node, list):
        return [_decoded(value, fetch) for value in node]
    if isinstance(node, str):
        return fetch(bytes.fromhex(node[1:])) if node[0] == "b" else node[1:]
    return node


def _named(node: Any) -> Iterator[bytes]:
    if isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _named(value)
    elif isinstance(node, str) and node[0] == "b":
        yield bytes.fromhex(node[1:])
