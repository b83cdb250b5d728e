"""A mask alone, in few bytes: what a client keeps so that later payloads need not bring it.

One index section a tensor, as in payloads, and a CRC-32. Names and shapes are not in it:
who keeps a mask knows its model.
"""

import math
import struct
import zlib
from collections.abc import Mapping

import numpy as np

from fedsparse.errors import WireError
from fedsparse.sparsity.mask import Mask
from fedsparse.wire import index_coding

_CRC = struct.Struct("<I")


def encode_mask(mask: Mask) -> bytes:
    """Return the bytes of a mask, entropy-coded where that is shorter than its bits."""
    sections = []
    for _, bits in mask.items():
        flat = bits.reshape(-1)
        positions = np.flatnonzero(flat).astype(np.int32)
        sections.append(index_coding.write(index_coding.plan(positions, flat.size)))
    body = b"".join(sections)
    return body + _CRC.pack(zlib.crc32(body))


def decode_mask(content: bytes, shapes: Mapping[str, tuple[int, ...]]) -> Mask:
    """Return the mask that `encode_mask` was given; raises WireError when it is damaged.

    `shapes` are those of the mask, in its order.
    """
    body = memoryview(content)[: -_CRC.size]
    if len(content) < _CRC.size or _CRC.pack(zlib.crc32(body)) != content[-_CRC.size :]:
        raise WireError("a stored mask is damaged: its checksum does not match")
    packed = {}
    for name, shape in shapes.items():
        flags, used = index_coding.read(body, math.prod(shape))
        packed[name] = np.packbits(flags)
        body = body[used:]
    if len(body):
        raise WireError("a stored mask is of another model")
    return Mask.from_packed(shapes, packed)
