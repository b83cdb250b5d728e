"""Mutations of valid bytes: flipped, cut, doubled, spliced, with integers at their extremes.

All draw from one generator, so that an input can be made again from its seed.
"""

import re
from collections.abc import Callable, Sequence

import numpy as np

Mutation = Callable[[np.random.Generator, bytearray, bytes], None]

NUMBERS = (
    *(b"0", b"-1", b"1e999", b"NaN", b"Infinity", b"99999999999999999999", b"-0.0", b"true"),
    *(b"null", b'""', b"[]", b"{}", b"2147483648", b"9223372036854775808", b"1e-320", b'"\\ud800"'),
)
"""What takes the place of a number, or of a word, in text."""


def flip(rng: np.random.Generator, body: bytearray, other: bytes) -> None:
    for _ in range(rng.integers(1, 9)):
        body[rng.integers(len(body))] ^= 1 << int(rng.integers(8))


def cut(rng: np.random.Generator, body: bytearray, other: bytes) -> None:
    del body[rng.integers(len(body)) :]


def drop(rng: np.random.Generator, body: bytearray, other: bytes) -> None:
    at = rng.integers(len(body))
    del body[at : at + rng.integers(1, 20)]


def double(rng: np.random.Generator, body: bytearray, other: bytes) -> None:
    at = rng.integers(len(body))
    piece = body[at : at + rng.integers(1, 60)]
    body[at:at] = piece * int(rng.integers(1, 4))


def splice(rng: np.random.Generator, body: bytearray, other: bytes) -> None:
    body[rng.integers(len(body)) :] = other[rng.integers(len(other)) :]


def extreme(rng: np.random.Generator, body: bytearray, other: bytes) -> None:
    """Put an integer at its extremes, of 1 to 8 bytes, at a place that is mostly aligned."""
    size = int(rng.choice([1, 2, 4, 8]))
    at = int(rng.integers(max(1, len(body) // size))) * size
    value = [b"\x00", b"\xff", b"\x7f", b"\x80"][rng.integers(4)]
    fill = {b"\x7f": b"\xff" * (size - 1) + b"\x7f", b"\x80": b"\x00" * (size - 1) + b"\x80"}
    body[at : at + size] = fill.get(value, value * size)


def number(rng: np.random.Generator, body: bytearray, other: bytes) -> None:
    """Put something else in the place of a number in text, or of a bare word or string."""
    places = list(re.finditer(rb'-?\d+(?:\.\d+)?|"[^"\n]{0,40}"|true|false|null', body))
    if not places:
        return extreme(rng, body, other)
    place = places[rng.integers(len(places))]
    body[place.start() : place.end()] = NUMBERS[rng.integers(len(NUMBERS))]
    return None


def nest(rng: np.random.Generator, body: bytearray, other: bytes) -> None:
    at = rng.integers(len(body))
    body[at:at] = [b"[", b'{"a":', b"(", b"'"][rng.integers(4)] * int(rng.choice([1, 40, 3000]))


MUTATIONS: tuple[Mutation, ...] = (flip, cut, drop, double, splice, extreme, number, nest)


def mutated(rng: np.random.Generator, corpus: Sequence[bytes]) -> bytes:
    """Return one of a corpus, mutated once to three times."""
    body = bytearray(corpus[rng.integers(len(corpus))])
    other = corpus[rng.integers(len(corpus))]
    for _ in range(rng.integers(1, 4)):
        if not body or not other:
            break
        MUTATIONS[rng.integers(len(MUTATIONS))](rng, body, other)
    return bytes(body)
