"""The payload's place in Flower's records, and what a record weighs.

A payload travels as one `Array` with a type of its own, so that Flower's deployments
carry it unchanged; one array for the whole model, as each costs some 400 bytes of frame.
"""

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord

from fedsparse.errors import WireError

STYPE = "fedsparse.wire.v1"
KEY = "payload"


def _array(payload: bytes) -> Array:
    return Array("uint8", (len(payload),), STYPE, payload)


def pack(payload: bytes) -> ArrayRecord:
    """Return a record that holds one payload."""
    return pack_many({KEY: payload})


def pack_many(payloads: Mapping[str, bytes]) -> ArrayRecord:
    """Return a record that holds several payloads by name."""
    return ArrayRecord({name: _array(payload) for name, payload in payloads.items()})


def is_payload(record: ArrayRecord) -> bool:
    """Tell whether a record holds one payload of ours, not plain arrays."""
    return list(record.keys()) == [KEY] and record[KEY].stype == STYPE


def unpack(record: ArrayRecord) -> bytes:
    """Return the payload of a record; raises WireError when it holds none."""
    array = record.get(KEY)
    if array is None or len(record) > 1 or array.stype != STYPE:
        raise WireError("the record holds no fedsparse payload")
    data = array.data
    if not isinstance(data, bytes):
        raise WireError(f"the record holds {type(data).__name__}, not bytes")
    return data


def unpack_many(record: ArrayRecord) -> dict[str, bytes]:
    """Return the payloads of a record by name; raises WireError for anything else."""
    if any(array.stype != STYPE for array in record.values()):
        raise WireError("the record holds arrays that are no fedsparse payloads")
    return {name: bytes(array.data) for name, array in record.items()}


def record_bytes(record: ArrayRecord) -> int:
    """Return the bytes of a record's arrays, ours or plain ones, without Flower's frame."""
    return sum(len(array.data) for array in record.values())
