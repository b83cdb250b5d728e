"""CRC-32 of payloads, and what is seen of their values on the way: compiled where that is there."""

import zlib
from functools import lru_cache

from fedsparse.kernels.library import Checker, payload_checker


def crc32(content: bytes) -> int:
    """Return what zlib calls crc32."""
    return check(content, len(content))[0]


def check(payload: bytes, length: int, first: int = 0, count: int = 0) -> tuple[int, int | None]:
    """Return the CRC-32 of the first bytes, and the largest magnitude of some floats in them.

    There are `count` float32 from byte `first` on; the magnitude is told by its bits, which are
    `INFINITE` or more where one is infinite or NaN, and is None without kernels.
    """
    if not 0 <= first <= first + 4 * count <= length <= len(payload):
        raise ValueError(f"{count} floats from byte {first} are not in {length} bytes")
    native = _native()
    if native is None:
        return zlib.crc32(memoryview(payload)[:length]), None
    return native(payload, length, first, count)


INFINITE = 0x7F800000
"""The bits of infinity."""


@lru_cache(maxsize=1)
def _native() -> Checker | None:
    return payload_checker()
