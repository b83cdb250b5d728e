"""The sparse payload format and its place in Flower's records."""

from fedsparse.wire.masks import decode_mask, encode_mask
from fedsparse.wire.payload import (
    Decoded,
    decode,
    decode_flat,
    decode_kept,
    encode,
    encode_kept,
    payload_size,
)
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
