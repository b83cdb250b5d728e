"""Shamir's secret sharing over the integers modulo a prime just above 2^256 (Shamir 1979).

Any `threshold` shares of a secret of 32 bytes give it back; fewer say nothing of it.
"""

import secrets
from collections.abc import Mapping

from fedsparse.errors import SecureAggregationError

PRIME = 2**256 + 297
"""The smallest prime above 2^256, so that every secret of 32 bytes is a residue."""

SECRET, SHARE = 32, 33
"""Bytes of a secret and of a share."""


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Return `count` shares of a secret of 32 bytes, those at the places 1, 2, ..., count.

    Each is the value there of a random polynomial of degree threshold - 1 that is the secret at 0.
    """
    if len(secret) != SECRET:
        raise SecureAggregationError(f"a secret has {len(secret)} bytes; only {SECRET} are shared")
    if not 1 <= threshold <= count:
        raise SecureAggregationError(f"{count} shares cannot have a threshold of {threshold}")
    polynomial = [int.from_bytes(secret, "little")]
    polynomial += [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return [_value(polynomial, place).to_bytes(SHARE, "little") for place in range(1, count + 1)]


def _value(polynomial: list[int], place: int) -> int:
    """Return the polynomial's value by Horner's rule."""
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * place + coefficient) % PRIME
    return value


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret of which these are enough shares, by place; of too few, other bytes.

    Lagrange's interpolation at 0. Raises SecureAggregationError for what are no shares.
    """
    values = {place: read(share) for place, share in shares.items()}
    if not values or min(values) < 1:
        raise SecureAggregationError("no shares, or one at no place; nothing can be put together")
    secret = 0
    for place, value in values.items():
        above, below = 1, 1
        for other in values:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        secret += value * above * pow(below, -1, PRIME)
    secret %= PRIME
    if secret >> (8 * SECRET):
        raise SecureAggregationError("the shares do not belong together")
    return secret.to_bytes(SECRET, "little")


def read(share: bytes) -> int:
    """Return a share's value; raises SecureAggregationError for bytes that are no share."""
    value = int.from_bytes(share, "little")
    if len(share) != SHARE or value >= PRIME:
        raise SecureAggregationError(f"{len(share)} bytes are no share of a secret")
    return value
