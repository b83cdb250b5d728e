"""The sparse payload format and its place in Flower's records."""

from fedsparse.wire.masks import decode_mask, encode_mask
from fedsparse.wire.payload import NOT_HELD
from fedsparse.wire.reading import Decoded, FlatValues, decode, decode_flat, decode_kept
from fedsparse.wire.records import (
    STYPE,
    is_payload,
    pack,
    pack_many,
    record_bytes,
    unpack,
    unpack_many,
)
from fedsparse.wire.schema import Schema
from fedsparse.wire.writing import encode, encode_kept, payload_size

__all__ = [
    "NOT_HELD",
    "STYPE",
    "Decoded",
    "FlatValues",
    "Schema",
    "decode",
    "decode_flat",
    "decode_kept",
    "decode_mask",
    "encode",
    "encode_kept",
    "encode_mask",
    "is_payload",
    "pack",
    "pack_many",
    "payload_size",
    "record_bytes",
    "unpack",
    "unpack_many",
]
