"""Masks of secure aggregation: what a client adds to its words, and the server takes away.

y_u = x_u + PRG(b_u) + sum_{u<v} PRG(s_uv) - sum_{u>v} PRG(s_uv) (Bonawitz et al. 2017, eq. 1): the
masks of a pair cancel in the sum of both; a client's own is taken away by its seed b_u.
"""

from collections.abc import Mapping

from fedsparse.secure import keys
from fedsparse.secure.keys import Words


def pair_seed(private: bytes, public: bytes, session: bytes) -> bytes:
    """Return s_uv, from the private key of one and the public key of the other."""
    return keys.agreed(private, public, b"mask " + session)


def share_key(private: bytes, public: bytes, session: bytes, pair: tuple[int, int]) -> bytes:
    """Return the key for the shares that the first of a pair of clients seals for the second."""
    return keys.agreed(private, public, b"shares %d to %d " % pair + session)


def add_own(words: Words, seed: bytes, sign: int = 1) -> None:
    """Add a client's own mask to words in place, or take it away."""
    keys.add_keystream(words, seed, sign)


def add_pairs(words: Words, client: int, seeds: Mapping[int, bytes], sign: int = 1) -> None:
    """Add a client's masks with others, by their seeds, in place; or take them away."""
    for other, seed in seeds.items():
        keys.add_keystream(words, seed, sign if client < other else -sign)
