"""Payloads: what is encoded comes back, exactly as long as was said, and never longer than due."""

import hashlib
import itertools
import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedsparse import wire
from fedsparse.errors import WireError
from fedsparse.sparsity.mask import Mask, State
from fedsparse.wire import values

PROPERTY = settings(max_examples=400, derandomize=True, deadline=None, database=None)
MODES = ("full", "shared", "delta", "auto")
KINDS = ("f32", "f16", "bf16", "int8")
DENSITIES = (0.0, 0.01, 0.1, 0.3, 0.5, 0.9, 0.99, 1.0)
SPECIAL = np.array([0x80000000, 0, 1, 0x807FFFFF, 0x00800000], np.uint32).view(np.float32)
DAMAGED = np.array([0x7F800000, 0xFF800000, 0x7FC00001, 0xFFC12345], np.uint32).view(np.float32)
SHAPES = st.one_of(
    st.just(()),
    st.integers(0, 17).map(lambda n: (n,)),
    st.sampled_from([(0, 3), (1, 1), (2, 4), (3, 5), (3, 1, 3, 3), (1023,), (32, 32), (5, 205)]),
)


@dataclass(frozen=True)
class Sample:
    state: State
    mask: Mask
    base: Mask

    @property
    def pruned(self) -> State:
        """The state that a receiver sees."""
        kept = {name: np.array(value) for name, value in self.state.items()}
        self.mask.apply_(kept)
        return kept


def random_mask(rng: np.random.Generator, state: State, covered: list[str], density: float) -> Mask:
    return Mask.from_arrays({n: np.asarray(rng.random(state[n].shape) < density) for n in covered})


@st.composite
def samples(draw: st.DrawFn, special: np.ndarray = SPECIAL) -> Sample:
    shapes = draw(st.lists(SHAPES, max_size=9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    state: State = {}
    for i, shape in enumerate(shapes):
        value = np.asarray(rng.normal(size=shape), np.float32)
        odd = rng.random(shape) < draw(st.sampled_from([0.0, 0.3]))
        state[f"{i}.weight"] = np.where(odd, rng.choice(special, shape), value).astype(np.float32)
    covered = [name for name in state if draw(st.booleans())]
    mask = random_mask(rng, state, covered, draw(st.sampled_from(DENSITIES)))
    flips = random_mask(rng, state, covered, draw(st.sampled_from([0.0, 0.0, 0.01, 0.5, 1.0])))
    return Sample(state, mask, mask ^ flips)


def bits(array: np.ndarray) -> list[int]:
    return array.reshape(-1).view(np.uint32).tolist()


def exchange(sample: Sample, mode: str, kind: str = "f32", *, finite: bool = True) -> wire.Decoded:
    """Encode, check the length that was announced, and decode what came of it."""
    arguments = {"mask": sample.mask, "mode": mode, "base": sample.base, "values": kind}
    payload = wire.encode(sample.state, **arguments)
    assert len(payload) == wire.payload_size(sample.state, **arguments)
    held = [sample.base, sample.mask] if mode in ("shared", "auto") else [sample.base]
    decoded = wire.decode(payload, wire.Schema.of(sample.state), masks=held, finite=finite)
    assert list(decoded.state) == list(sample.state)
    for name, value in decoded.state.items():
        assert (value.dtype, value.shape) == (np.float32, sample.state[name].shape)
        assert value.flags.writeable
    assert decoded.mask == sample.mask or (decoded.mask is None and not sample.mask.names)
    return decoded


@PROPERTY
@given(samples(), st.sampled_from(MODES))
def test_f32_comes_back_bit_by_bit_with_its_mask(sample, mode):
    decoded = exchange(sample, mode)
    for name, value in sample.pruned.items():
        assert bits(decoded.state[name]) == bits(value)


@PROPERTY
@given(samples(special=np.concatenate([SPECIAL, DAMAGED])), st.sampled_from(MODES))
def test_f32_carries_nan_and_infinity_to_whoever_asks_for_them(sample, mode):
    decoded = exchange(sample, mode, finite=False)
    for name, value in sample.pruned.items():
        assert bits(decoded.state[name]) == bits(value)


@PROPERTY
@given(samples(), st.sampled_from(MODES), st.sampled_from(["f16", "bf16", "int8"]))
def test_short_values_come_back_within_their_rounding(sample, mode, kind):
    decoded = exchange(sample, mode, kind)
    for name, value in sample.pruned.items():
        largest = float(np.abs(value).max(initial=0))
        error = {
            "f16": np.abs(value) * 2.0**-11 + 2.0**-25,
            "bf16": np.abs(value) * 2.0**-8 + 2.0**-134,
            "int8": np.full(value.shape, largest / 254 * (1 + 1e-5) + 64 * 2.0**-149),
        }[kind]
        assert (np.abs(decoded.state[name].astype(np.float64) - value) <= error).all()


@PROPERTY
@given(samples(), st.sampled_from(KINDS))
def test_auto_is_exactly_as_long_as_the_shortest_mode_that_is_possible(sample, kind):
    sizes = {
        mode: wire.payload_size(
            sample.state, mask=sample.mask, mode=mode, base=sample.base, values=kind
        )
        for mode in MODES
    }
    possible = ["full", "delta", *(["shared"] if sample.base == sample.mask else [])]
    assert sizes["auto"] == min(sizes[mode] for mode in possible)


@PROPERTY
@given(samples(), st.sampled_from(KINDS))
@example(Sample({}, Mask.full({}), Mask.full({})), "f32")
def test_a_state_without_a_mask_is_sent_whole(sample, kind):
    payload = wire.encode(sample.state, values=kind)
    expected = sum(values.size(kind, value.size) for value in sample.state.values())
    assert len(payload) == 16 + math.ceil(len(sample.state) / 8) + expected + 4
    assert wire.payload_size(sample.state, mode="auto", values=kind) == len(payload)
    decoded = wire.decode(payload, wire.Schema.of(sample.state))
    assert decoded.mask is None
    if kind == "f32":
        assert [bits(v) for v in decoded.state.values()] == [bits(v) for v in sample.state.values()]


# -- kept values alone --------------------------------------------------------------------


@settings(PROPERTY, max_examples=100)
@given(samples(), st.sampled_from(KINDS))
def test_kept_values_make_the_payload_of_their_state(sample, kind):
    schema = wire.Schema.of(sample.state)
    kept = {n: v[sample.mask[n]] if n in sample.mask else v for n, v in sample.state.items()}
    found = wire.encode_kept(kept, schema, sample.mask, values=kind)
    assert found == wire.encode(sample.state, mask=sample.mask, mode="shared", values=kind)
    whole = wire.encode_kept(sample.state, schema, None, values=kind)
    assert whole == wire.encode(sample.state, values=kind)


def test_kept_values_that_do_not_fit_are_refused():
    schema, kept = wire.Schema.of(TINY), {"w": W[KEEPS["w"]], "b": TINY["b"]}
    assert wire.encode_kept(kept, schema, KEEPS) == wire.encode(TINY, mask=KEEPS, mode="shared")
    for wrong, message in (
        ({"b": TINY["b"]}, "'w' does not have as many values as its mask or shape says"),
        ({**kept, "w": W}, "'w' does not have as many values"),
        ({**kept, "b": np.zeros(2, np.float32)}, "'b' does not have as many values"),
        ({**kept, "b": np.zeros(1)}, "'b' is float64; pass float32"),
    ):
        with pytest.raises(WireError, match=message):
            wire.encode_kept(wrong, schema, KEEPS)
    with pytest.raises(WireError, match="values 'f64' is unknown; choose one of: f32"):
        wire.encode_kept(kept, schema, KEEPS, values="f64")


# -- the format, by hand ------------------------------------------------------------------

W = np.array([[9, 1, 9, 9], [9, 9, -2, 9]], np.float32)
TINY = {"w": W, "b": np.array([0.5], np.float32)}
KEEPS = Mask.from_arrays({"w": np.array([[0, 1, 0, 0], [0, 0, 1, 0]], bool)})
BASE = Mask.from_arrays({"w": np.array([[0, 1, 1, 0], [0, 0, 0, 0]], bool)})
DIGEST = hashlib.blake2b(b"(('w', (2, 4)), ('b', (1,)))", digest_size=8).hexdigest()


def sealed(body: str) -> bytes:
    raw = bytes.fromhex(body)
    return raw + struct.pack("<I", zlib.crc32(raw))


def test_a_full_payload_worked_out_by_hand():
    golden = sealed(
        "46535057 01 00 00 00"  # FSPW, version 1, full, f32
        + DIGEST
        + "80"  # w is masked, b is not
        "02 42"  # a bit an entry: 0100 0010
        "0000803f 000000c0"  # 1, -2
        "0000003f"  # 0.5
    )
    assert wire.encode(TINY, mask=KEEPS) == golden
    decoded = wire.decode(golden, wire.Schema.of(TINY))
    assert decoded.state["w"].tolist() == [[0, 1, 0, 0], [0, 0, -2, 0]]
    assert decoded.state["b"].tolist() == [0.5]
    assert decoded.mask == KEEPS


def test_a_shared_payload_worked_out_by_hand():
    golden = sealed(f"46535057 01 01 02 00 {DIGEST} {KEEPS.digest.hex()} 803f 00c0 003f")
    assert wire.encode(TINY, mask=KEEPS, mode="shared", values="bf16") == golden
    assert wire.decode(golden, wire.Schema.of(TINY), masks=[BASE, KEEPS]).mask is KEEPS


def test_a_delta_payload_worked_out_by_hand():
    golden = sealed(  # the flips are 2 and 6, 0010 0010
        f"46535057 01 02 01 00 {DIGEST} {BASE.digest.hex()} 02 22 003c 00c0 0038"
    )
    assert wire.encode(TINY, mask=KEEPS, mode="delta", base=BASE, values="f16") == golden
    assert wire.decode(golden, wire.Schema.of(TINY), masks=[BASE, KEEPS]).mask == KEEPS


def test_an_int8_payload_worked_out_by_hand():
    state = {"w": np.array([127, 0, -64], np.float32)}
    digest = hashlib.blake2b(b"(('w', (3,)),)", digest_size=8).hexdigest()
    assert wire.encode(state, values="int8") == sealed(
        f"46535057 01 00 03 00 {digest} 00 0000803f 7f 00 c0"
    )


def test_the_schema_tells_names_shapes_and_order_apart():
    digests = {
        wire.Schema(tensors).digest
        for tensors in [
            (("a", (2, 3)), ("b", ())),
            (("b", ()), ("a", (2, 3))),
            (("a", (3, 2)), ("b", ())),
            (("a", (6,)), ("b", ())),
            (("a", (2, 3)), ("b", (1,))),
            (("a", (2, 3)), ("c", ())),
            (("a", (2, 3)),),
        ]
    }
    assert len(digests) == 7


# -- whole tensors ------------------------------------------------------------------------


def almost_full(pruned: int, size: int = 100) -> tuple[State, Mask]:
    return (
        {"w": np.arange(1, size + 1, dtype=np.float32)},
        Mask.from_arrays({"w": np.arange(size) >= pruned}),
    )


def test_a_tensor_is_sent_whole_where_that_is_shorter():
    state, mask = almost_full(3)
    assert wire.payload_size(state, mask=mask) == 16 + 1 + (1 + 4 * 100) + 4
    state, mask = almost_full(4)
    assert wire.payload_size(state, mask=mask) == 16 + 1 + (1 + 13 + 4 * 96) + 4
    state, mask = almost_full(0)
    assert wire.payload_size(state, mask=mask) == 16 + 1 + (1 + 4 * 100) + 4


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_kept_zero_stays_kept(zero):
    state, mask = almost_full(1)
    state["w"][50] = zero
    assert wire.payload_size(state, mask=mask) == 16 + 1 + (1 + 13 + 4 * 99) + 4
    decoded = exchange(Sample(state, mask, mask), "full")
    assert bits(decoded.state["w"])[50] == bits(np.array(zero, np.float32))[0]


def test_a_kept_value_that_rounds_to_zero_stays_kept():
    state, mask = almost_full(1)
    state["w"][50] = 1e-30
    for kind in ("f16", "int8"):
        assert exchange(Sample(state, mask, mask), "full", kind).state["w"][50] == 0


def test_what_the_mask_prunes_is_not_sent():
    state, mask = almost_full(3)
    other = {"w": np.where(mask["w"], state["w"], np.float32(np.nan))}
    for mode in MODES:
        assert wire.encode(state, mask=mask, mode=mode, base=mask) == wire.encode(
            other, mask=mask, mode=mode, base=mask
        )


# -- which mode ---------------------------------------------------------------------------


def large(density: float, seed: int = 0) -> tuple[State, Mask]:
    rng = np.random.default_rng(seed)
    state = {f"{i}": rng.normal(size=(100, 30)).astype(np.float32) for i in range(4)}
    return state, random_mask(rng, state, list(state), density)


def mode_of(payload: bytes) -> str:
    return MODES[payload[5]]


def test_auto_takes_shared_for_the_mask_itself_delta_for_a_near_one_and_full_for_another():
    state, mask = large(0.1)
    near = mask ^ random_mask(np.random.default_rng(1), state, list(state), 0.001)
    far = large(0.1, seed=2)[1]
    assert mode_of(wire.encode(state, mask=mask, mode="auto", base=mask)) == "shared"
    assert mode_of(wire.encode(state, mask=mask, mode="auto", base=near)) == "delta"
    assert mode_of(wire.encode(state, mask=mask, mode="auto", base=far)) == "full"
    assert mode_of(wire.encode(state, mask=mask, mode="auto")) == "full"


def test_auto_sends_a_tiny_mask_rather_than_its_digest():
    payload = wire.encode(TINY, mask=KEEPS, mode="auto", base=KEEPS)
    assert mode_of(payload) == "full"
    assert len(payload) < wire.payload_size(TINY, mask=KEEPS, mode="shared")


def test_auto_takes_the_digest_of_many_small_masks():
    for count in range(8, 24):
        state = {f"{i}": np.ones(8, np.float32) for i in range(count)}
        mask = Mask.full(dict.fromkeys(state, (8,)))
        sizes = [wire.payload_size(state, mask=mask, mode=mode) for mode in ("full", "shared")]
        assert wire.payload_size(state, mask=mask, mode="auto", base=mask) == min(sizes)


# -- what does not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "sparse"}, "mode 'sparse' is unknown; choose one of: auto, full"),
        ({"values": "f64"}, "values 'f64' is unknown; choose one of: f32"),
        ({"mode": "shared"}, "mode 'shared' needs a mask"),
        ({"mode": "delta", "base": BASE}, "mode 'delta' needs a mask"),
        ({"mode": "delta", "mask": KEEPS}, "needs a base mask of the same tensors"),
        ({"mode": "delta", "mask": KEEPS, "base": Mask.full({"b": (1,)})}, "of the same tensors"),
        ({"mask": Mask.full({"v": (2, 4)})}, "the mask covers 'v', which is not in the state"),
        ({"mask": Mask.full({"w": (4, 2)})}, "'w' and its mask differ in shape"),
        ({"mask": Mask.full({"b": (1,), "w": (2, 4)})}, "not in the state's order"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    for function in (wire.encode, wire.payload_size):
        with pytest.raises(WireError, match=message):
            function(TINY, **arguments)


@pytest.mark.parametrize("array", [W.astype(np.float64), W.astype(">f4"), [1.0], np.float32(1)])
def test_only_float32_arrays_travel(array):
    with pytest.raises(WireError, match=r"'w' is .*; pass float32"):
        wire.encode({"w": array})


def test_arrays_in_another_memory_order_travel_by_their_entries():
    state = {"w": W.T, "v": np.arange(20, dtype=np.float32)[::2]}
    mask = Mask.from_arrays({"w": W.T > 1})
    decoded = exchange(Sample(state, mask, mask), "full")
    assert decoded.state["w"].tolist() == np.where(W.T > 1, W.T, 0).tolist()
    assert decoded.state["v"].tolist() == list(range(0, 20, 2))


def changed(payload: bytes, at: int, content: bytes) -> bytes:
    """Return the payload with other bytes somewhere and the checksum that fits them."""
    body = payload[:at] + content + payload[at + len(content) : -4]
    return body + struct.pack("<I", zlib.crc32(body))


FULL = wire.encode(TINY, mask=KEEPS)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "0 bytes is cut short"),
        (FULL[:19], "19 bytes is cut short"),
        (b"PK\3\4" + FULL[4:], "no fedsparse payload"),
        (changed(FULL, 4, b"\2"), "payload version 2"),
        (FULL[:-1] + bytes([FULL[-1] ^ 1]), "checksum does not match"),
        (FULL[:30] + b"\xff" + FULL[31:], "checksum does not match"),
        (changed(FULL, 8, b"\0"), "of another model"),
        (changed(FULL, 5, b"\3"), "mode 3 with values 0 is unknown"),
        (changed(FULL, 6, b"\4"), "mode 0 with values 4 is unknown"),
        (changed(FULL, 7, b"\1"), "is unknown"),
        (changed(FULL, 5, b"\1"), "ends 1 bytes early"),
        (changed(FULL, 16, b"\x90"), "masks tensors that are not in its schema"),
        (changed(FULL, 17, b"\5"), "index coding 5 is unknown"),
        (changed(FULL, 17, b"\1"), "ends 19 bytes early"),
        (changed(FULL, 17, b"\0"), "has 9 bytes too many"),
        (changed(FULL, 19, b"\0\0\x80\x7f"), "NaN or infinity"),
        (changed(FULL, 27, b"\0\0\xc0\x7f"), "NaN or infinity"),
    ],
)
def test_payloads_that_are_not_exactly_ones_of_this_model_are_refused(payload, message):
    with pytest.raises(WireError, match=message):
        wire.decode(payload, wire.Schema.of(TINY), masks=[KEEPS])


def test_every_truncation_and_any_extension_is_refused():
    schema = wire.Schema.of(TINY)
    for payload in (FULL, wire.encode(TINY, mask=KEEPS, mode="shared")):
        body = payload[:-4]
        for other in itertools.chain((body[:n] for n in range(len(body))), [body + b"\0"]):
            with pytest.raises(WireError):
                wire.decode(other + struct.pack("<I", zlib.crc32(other)), schema, masks=[KEEPS])


@pytest.mark.parametrize("mode", ["shared", "delta"])
def test_a_mask_that_is_not_held_is_named(mode):
    payload = wire.encode(TINY, mask=KEEPS, base=KEEPS, mode=mode)
    with pytest.raises(WireError, match=f"needs mask {KEEPS.digest.hex()[:8]}, which this side"):
        wire.decode(payload, wire.Schema.of(TINY), masks=[BASE])


def test_a_held_mask_of_another_model_is_refused():
    digest = Mask.full({"v": (3,)})
    payload = changed(wire.encode(TINY, mask=KEEPS, mode="shared"), 16, digest.digest)
    with pytest.raises(WireError, match="mask is of another model"):
        wire.decode(payload, wire.Schema.of(TINY), masks=[KEEPS, digest])


def test_what_is_decoded_does_not_look_into_the_payload():
    payload = bytearray(FULL)
    decoded = wire.decode(payload, wire.Schema.of(TINY))
    payload[:] = bytes(len(payload))
    assert decoded.state["b"].tolist() == [0.5]
    assert decoded.state["w"][0, 1] == 1


@given(samples(), st.sampled_from(MODES), st.sampled_from(KINDS))
@PROPERTY
def test_kept_values_are_those_of_the_decoded_state_in_order(sample, mode, kind):
    if not len(sample.mask):
        return
    content = wire.encode(sample.state, mask=sample.mask, mode=mode, base=sample.mask, values=kind)
    schema = wire.Schema.of(sample.state)
    whole = wire.decode(content, schema, masks=(sample.mask,)).state
    kept = wire.decode_kept(content, schema, sample.mask)
    assert list(kept) == list(whole)
    for name, value in kept.items():
        expected = whole[name][sample.mask[name]] if name in sample.mask else whole[name]
        assert bits(value) == bits(expected)


def test_kept_values_of_another_mask_are_refused():
    state, mask = large(0.1)
    other = Mask.from_arrays({n: np.roll(b, 1) for n, b in mask.items()})
    schema = wire.Schema.of(state)
    for mode in ("full", "shared"):
        with pytest.raises(WireError, match="mask"):
            wire.decode_kept(wire.encode(state, mask=other, mode=mode), schema, mask)
    with pytest.raises(WireError, match="mask"):
        wire.decode_kept(wire.encode(state), schema, mask)
    with pytest.raises(WireError, match="mask"):
        wire.decode_kept(wire.encode(state, mask=mask), schema, None)
