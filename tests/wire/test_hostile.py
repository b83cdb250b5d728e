"""Hostile payloads: a typed error or a well-formed state, within the memory of that state.

20,000 mutations in all. Nearly all carry a checksum that fits, as an attacker's would.
"""

import contextlib
import re
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from fedsparse import wire
from fedsparse.errors import WireError
from fedsparse.sparsity.mask import Mask

KINDS = ("f32", "f16", "bf16", "int8")
MODES = ("full", "shared", "delta")
HEAD = 16
CONSTANT = 128 * 1024
"""Bytes that decoding may take whatever the schema: Python's objects and one numpy buffer."""

SCHEMAS = {
    "small": (("conv.weight", (3, 2, 3, 3)), ("conv.bias", (3,)), ("steps", ()), ("none", (0, 4))),
    "odd": tuple((f"{i}", shape) for i, shape in enumerate([(), (1,), (7,), (8,), (9,), (0,)] * 2)),
    "layers": (("a", (40, 25)), ("b", (999,)), ("c", (16, 8, 3, 3)), ("d", (40,))),
}
LARGE = (("w", (1000, 1000)), ("b", (17,)))


@dataclass(frozen=True)
class Case:
    """A valid payload, and what its receiver knows."""

    payload: bytes
    schema: wire.Schema
    masks: tuple[Mask, ...]

    @property
    def first_index(self) -> int:
        """Where the first index section is, if the payload has any."""
        full = self.payload[5] == 0
        return HEAD + ((len(self.schema.tensors) + 7) // 8 if full else 16)

    def decode(self, payload: bytes) -> wire.Decoded:
        return wire.decode(payload, self.schema, masks=self.masks)


def case(tensors: tuple, density: float, mode: str, kind: str, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    state = {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in tensors}
    covered = [name for name, shape in tensors if len(shape) != 1 or shape[0] > 100]
    mask, base = (
        Mask.from_arrays({n: np.asarray(rng.random(state[n].shape) < density) for n in covered})
        for _ in range(2)
    )
    payload = wire.encode(state, mask=mask, mode=mode, base=base, values=kind)
    return Case(payload, wire.Schema(tensors), (base, mask))


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


# -- mutations: of a body without its checksum ---------------------------------------------


def flip_bits(rng: np.random.Generator, body: bytearray, case: Case, other: bytes) -> None:
    for _ in range(rng.integers(1, 9)):
        body[rng.integers(len(body))] ^= 1 << rng.integers(8)


def overwrite(rng: np.random.Generator, body: bytearray, case: Case, other: bytes) -> None:
    at, count = rng.integers(HEAD, len(body)), rng.integers(1, 12)
    fill = rng.choice([0x00, 0x01, 0x7F, 0x80, 0xFF, -1])
    body[at : at + count] = rng.bytes(count) if fill < 0 else bytes([fill]) * int(count)


def truncate(rng: np.random.Generator, body: bytearray, case: Case, other: bytes) -> None:
    del body[rng.integers(len(body)) :]


def extend(rng: np.random.Generator, body: bytearray, case: Case, other: bytes) -> None:
    at = rng.integers(HEAD, len(body) + 1)
    body[at:at] = rng.bytes(rng.integers(1, 40))


def splice(rng: np.random.Generator, body: bytearray, case: Case, other: bytes) -> None:
    at = rng.integers(HEAD, len(body))
    body[at:] = other[rng.integers(HEAD, len(other)) : -4]


def change_head(rng: np.random.Generator, body: bytearray, case: Case, other: bytes) -> None:
    at = rng.choice([0, 4, 5, 5, 5, 6, 6, 6, 7, 8, 15])
    body[at] = rng.integers(5) if at != 8 else rng.integers(256)


def change_masked(rng: np.random.Generator, body: bytearray, case: Case, other: bytes) -> None:
    body[rng.integers(HEAD, case.first_index)] ^= 1 << rng.integers(8)


def change_kind(rng: np.random.Generator, body: bytearray, case: Case, other: bytes) -> None:
    body[case.first_index] = rng.integers(6)


def change_count(rng: np.random.Generator, body: bytearray, case: Case, other: bytes) -> None:
    at = case.first_index
    size = int(np.prod(case.schema.tensors[0][1]))
    counts = [0, 1, 2, size // 10, 2 * size // 5, 2 * size // 5 + 1, size, size + 1, 2**31, 2**35]
    count = varint(int(rng.choice(counts)))
    body[at : at + 1 + int(rng.integers(4))] = b"\x03" + count


MUTATIONS = (
    flip_bits,
    overwrite,
    truncate,
    extend,
    splice,
    change_head,
    change_masked,
    change_kind,
    change_count,
)


def mutants(seed: int, case: Case, other: bytes, count: int) -> Iterator[bytes]:
    """Yield payloads with one to three mutations each; one in twenty with a wrong checksum."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        body = bytearray(case.payload[:-4])
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            if len(body) > max(HEAD, case.first_index):
                MUTATIONS[(i + rng.integers(2) * rng.integers(9)) % 9](rng, body, case, other)
        yield bytes(body) + case.payload[-4:] if i % 20 == 19 else sealed(bytes(body))


# -- what must hold ------------------------------------------------------------------------


def outcome(case: Case, payload: bytes) -> str:
    """Return the error's message without its figures, or "" for a well-formed state."""
    try:
        decoded = case.decode(payload)
    except WireError as error:
        return re.sub(r"(?<=mask )\w{8}|-?\b(\d[\d.]*(e[+-]\d+)?|inf|nan)\b", "N", str(error))
    tensors = dict(case.schema.tensors)
    assert list(decoded.state) == list(tensors)
    for name, value in decoded.state.items():
        assert isinstance(value, np.ndarray)
        assert (value.dtype, value.shape) == (np.float32, tensors[name])
        assert np.isfinite(value).all()
    for name, bits in decoded.mask.items() if decoded.mask is not None else ():
        assert bits.shape == tensors[name]
        assert not decoded.state[name][~bits].any()
    again = case.decode(wire.encode(decoded.state, mask=decoded.mask))
    assert again.mask == decoded.mask or not decoded.mask
    assert all(np.array_equal(again.state[name], value) for name, value in decoded.state.items())
    return ""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_mutated_payloads_are_refused_or_well_formed(schema, mode):
    """9 x 4 x 3 x 175 = 18,900 of them."""
    outcomes: dict[str, int] = {}
    for i, kind in enumerate(KINDS):
        for j, density in enumerate((0.05, 0.3, 0.99)):
            valid = case(SCHEMAS[schema], density, mode, kind)
            other = case(SCHEMAS[schema], 0.2, MODES[(i + j) % 3], KINDS[j], seed=1).payload
            assert outcome(valid, valid.payload) == ""
            for payload in mutants(1000 * i + j, valid, other, 175):
                message = outcome(valid, payload)
                outcomes[message] = outcomes.get(message, 0) + 1
    assert sum(outcomes.values()) == 2100
    assert outcomes[""] > 100, "some mutations must get through, or none gets far"
    assert len(outcomes) >= 8, f"the mutations reach too few of the checks: {sorted(outcomes)}"


def memory_peak(case: Case, payload: bytes) -> int:
    """Return the most bytes that decoding held at any time, its result included."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        with contextlib.suppress(WireError):
            case.decode(payload)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def allowed(case: Case, payload: bytes) -> int:
    """Twice the decoded state (4 bytes an entry) and its mask (a bit), and the payload."""
    entries = case.schema.entries
    return 2 * (4 * entries + (entries + 7) // 8) + len(payload) + CONSTANT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_mutated_payloads_of_a_large_schema_stay_within_its_memory(mode, kind):
    """12 x 85 = 1,020 of them, 20,000 and more with those above; one in three is tiny."""
    count = 0
    for j, density in enumerate((0.001, 0.1, 0.38)):
        valid = case(LARGE, density, mode, kind)
        assert memory_peak(valid, valid.payload) <= allowed(valid, valid.payload)
        other = case(LARGE, 0.1, MODES[j], kind, seed=1).payload
        for payload in mutants(j, valid, other, (29, 28, 28)[j]):
            assert memory_peak(valid, payload) <= allowed(valid, payload)
            count += 1
    assert count == 85


SIZE = 1_000_000
SECTIONS = {
    "all of them, and no values": b"\x01",
    "a bitmask of all, and no values": b"\x02" + b"\xff" * (SIZE // 8),
    "a bitmask that is missing": b"\x02",
    "whole, and no values": b"\x04",
    "nothing": b"",
    "more positions than fit": b"\x03" + varint(SIZE),
    "2**35 positions": b"\x03" + varint(2**35 - 1),
    "the most positions, missing": b"\x03" + varint(2 * SIZE // 5),
    "the most positions, all bits set": b"\x03" + varint(2 * SIZE // 5) + b"\xff" * SIZE,
    "the most positions, no bit set": b"\x03" + varint(2 * SIZE // 5) + bytes(SIZE),
    "the most positions, alternating": b"\x03" + varint(2 * SIZE // 5) + b"\xaa" * SIZE,
    "a third, all bits set": b"\x03" + varint(SIZE // 3) + b"\xff" * SIZE,
    "a tenth, all bits set": b"\x03" + varint(SIZE // 10) + b"\xff" * SIZE,
    "a tenth, then tiny": b"\x03" + varint(SIZE // 10) + b"\xff" * 50_000,
    "one, far away": b"\x03\x01" + bytes(SIZE),
}


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("mode", ["full", "delta"])
def test_declared_sizes_take_no_memory_that_the_payload_does_not_bear_out(mode, section):
    valid = case(LARGE, 0.1, mode, "int8")
    for kind in range(4):
        head = bytearray(valid.payload[: valid.first_index])
        head[6] = kind
        payload = sealed(bytes(head) + SECTIONS[section])
        assert outcome(valid, payload)
        assert memory_peak(valid, payload) <= allowed(valid, payload)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("density", [0.3, 0.5, 0.9, 0.99, 1.0])
def test_valid_payloads_of_every_density_stay_within_the_same_memory(density, mode, kind):
    valid = case(LARGE, density, mode, kind)
    assert memory_peak(valid, valid.payload) <= allowed(valid, valid.payload)


def test_a_truncated_payload_of_a_large_schema_is_refused_before_memory_is_taken():
    for kind in KINDS:
        valid = case(LARGE, 0.1, "full", kind)
        whole = sealed(valid.payload[:HEAD] + b"\0" + bytes(100))
        assert outcome(valid, whole) == "the payload ends N bytes early"
        assert memory_peak(valid, whole) <= CONSTANT
