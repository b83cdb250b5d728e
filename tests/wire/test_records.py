"""Payloads in Flower's records: what travels comes back, what is not ours is refused."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from fedsparse import wire
from fedsparse.errors import WireError
from fedsparse.sparsity.mask import Mask

BITS = np.arange(60).reshape(6, 10) % 7 == 0
STATE = {
    "w": np.where(BITS, np.linspace(-1, 1, 60, dtype=np.float32).reshape(6, 10), np.float32(0)),
    "b": np.ones(6, np.float32),
    "steps": np.array(3, np.float32),
}
MASK = Mask.from_arrays({"w": BITS})
PAYLOAD = wire.encode(STATE, mask=MASK)


def sent(record: ArrayRecord) -> ArrayRecord:
    """Return a record that was bytes on the way."""
    raw = recorddict_to_proto(RecordDict({"arrays": record})).SerializeToString()
    return recorddict_from_proto(ProtoRecordDict.FromString(raw)).array_records["arrays"]


def test_a_payload_that_travelled_is_the_same_bytes_and_the_same_model():
    received = sent(wire.pack(PAYLOAD))
    assert wire.is_payload(received)
    assert wire.unpack(received) == PAYLOAD
    decoded = wire.decode(wire.unpack(received), wire.Schema.of(STATE))
    assert decoded.mask == MASK
    assert all(np.array_equal(decoded.state[name], STATE[name]) for name in STATE)


def test_an_array_in_the_form_that_deployments_store_is_the_same_bytes():
    (array,) = wire.pack(PAYLOAD).values()
    chunks = {key: type(c).inflate(c.deflate()) for key, c in (array.children or {}).items()}
    stored = Array.inflate(array.deflate(), chunks)
    assert wire.unpack(ArrayRecord({"payload": stored})) == PAYLOAD


def test_several_payloads_travel_by_name_and_in_order():
    payloads = {"2": PAYLOAD, "0": wire.encode({}), "1": PAYLOAD[:-1]}
    received = wire.unpack_many(sent(wire.pack_many(payloads)))
    assert list(received.items()) == list(payloads.items())
    assert wire.unpack_many(wire.pack_many({})) == {}


def test_a_record_weighs_its_payloads_and_nothing_else():
    assert wire.record_bytes(wire.pack(PAYLOAD)) == len(PAYLOAD)
    assert wire.record_bytes(wire.pack_many({"a": PAYLOAD, "b": b"123"})) == len(PAYLOAD) + 3
    assert wire.record_bytes(ArrayRecord()) == 0


def test_plain_arrays_weigh_what_flower_sends_of_them():
    plain = ArrayRecord({"w": Array(STATE["w"])})
    assert wire.record_bytes(plain) == len(plain["w"].data) >= STATE["w"].nbytes


@pytest.mark.parametrize(
    "record",
    [
        ArrayRecord(),
        ArrayRecord({"w": Array(STATE["w"])}),
        ArrayRecord({"payload": Array(STATE["w"])}),
        wire.pack_many({"a": PAYLOAD}),
        wire.pack_many({"payload": PAYLOAD, "more": PAYLOAD}),
    ],
    ids=["empty", "plain", "plain under our name", "another name", "two"],
)
def test_other_records_are_no_payload(record):
    assert not wire.is_payload(record)
    with pytest.raises(WireError, match="no fedsparse payload"):
        wire.unpack(record)


def test_one_plain_array_among_payloads_is_refused():
    mixed = ArrayRecord({**wire.pack(PAYLOAD), "w": Array(STATE["w"])})
    with pytest.raises(WireError, match="no fedsparse payloads"):
        wire.unpack_many(mixed)


def test_our_type_of_array_is_part_of_the_format():
    (array,) = wire.pack(PAYLOAD).values()
    assert (array.dtype, array.shape, array.stype) == (
        "uint8",
        (len(PAYLOAD),),
        "fedsparse.wire.v1",
    )
