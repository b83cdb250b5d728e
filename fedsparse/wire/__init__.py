"""The sparse payload format and its place in Flower's records."""

from fedsparse.wire.payload import Decoded, decode, encode, payload_size
from fedsparse.wire.records import (
    is_payload,
    pack,
    pack_many,
    record_bytes,
    unpack,
    unpack_many,
)
from fedsparse.wire.schema import Schema

__all__ = [
    "Decoded",
    "Schema",
    "decode",
    "encode",
    "is_payload",
    "pack",
    "pack_many",
    "payload_size",
    "record_bytes",
    "unpack",
    "unpack_many",
]
