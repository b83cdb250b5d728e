"""Shamir's shares, keys, fixed point and masks: what secure aggregation stands on."""

import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse import wire
from fedsparse.config import resolve
from fedsparse.errors import (
    ConfigError,
    MissingExtraError,
    SecureAggregationError,
    TrainingError,
)
from fedsparse.secure import keys, letters, masks, shamir
from fedsparse.secure.fixed_point import DIGIT, DIGITS, HEAD, Figures, FixedPoint

secrets_of_32 = st.binary(min_size=32, max_size=32)
QUICK = settings(max_examples=40, deadline=None)


def fixed(**secure):
    return FixedPoint.of(resolve({"secure": secure, "fleet": {"clients": 10}}))


# -- Shamir ------------------------------------------------------------------------------


def test_the_modulus_is_a_prime():
    odd, twos = shamir.PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):  # Miller and Rabin
        powers = [pow(base, odd << n, shamir.PRIME) for n in range(twos)]
        assert powers[0] == 1 or shamir.PRIME - 1 in powers


@QUICK
@given(secret=secrets_of_32, data=st.data())
def test_any_shares_enough_give_the_secret_back_and_fewer_do_not(secret, data):
    count = data.draw(st.integers(2, 12))
    threshold = data.draw(st.integers(2, count))
    shares = dict(enumerate(shamir.split(secret, threshold, count), 1))
    order = data.draw(st.permutations(sorted(shares)))
    assert shamir.combine({place: shares[place] for place in order[:threshold]}) == secret
    assert shamir.combine({place: shares[place] for place in order}) == secret
    assert not_given_back({place: shares[place] for place in order[: threshold - 1]}, secret)


def not_given_back(shares, secret):
    try:
        return shamir.combine(shares) != secret
    except SecureAggregationError:
        return True


def test_one_share_of_two_fits_every_secret():
    share = shamir.split(bytes(32), 2, 3)[0]
    for other in (bytes(32), b"\xff" * 32, bytes(range(32))):
        # the line through (0, other) and (1, share) is one that could have been drawn
        value, secret = shamir.read(share), int.from_bytes(other, "little")
        second = (secret + 2 * (value - secret)) % shamir.PRIME
        assert shamir.combine({1: share, 2: second.to_bytes(shamir.SHARE, "little")}) == other


@pytest.mark.parametrize("largest", [bytes(32), b"\xff" * 32])
def test_the_largest_and_smallest_secrets_are_shared(largest):
    shares = dict(enumerate(shamir.split(largest, 3, 5), 1))
    assert shamir.combine({n: shares[n] for n in (5, 2, 3)}) == largest


@pytest.mark.parametrize(
    "shares",
    [{}, {1: b"short"}, {1: b"\xff" * 33}, {0: bytes(33)}, {1: bytes(34)}],
    ids=["none", "short", "too large", "at no place", "long"],
)
def test_what_is_no_share_is_refused(shares):
    with pytest.raises(SecureAggregationError):
        shamir.combine(shares)


@pytest.mark.parametrize(("secret", "threshold"), [(b"", 2), (bytes(33), 2), (bytes(32), 4)])
def test_what_cannot_be_shared_is_refused(secret, threshold):
    with pytest.raises(SecureAggregationError):
        shamir.split(secret, threshold, 3)


@given(st.floats(0.51, 1), st.integers(2, 200))
def test_it_takes_more_than_half_of_the_neighbours(threshold, neighbours):
    found = letters.needed(threshold, neighbours)
    assert neighbours / 2 < found <= neighbours
    assert found >= threshold * neighbours - 1e-6


# -- keys --------------------------------------------------------------------------------


def test_two_parties_agree_and_others_and_other_purposes_do_not():
    one, two, three = keys.fresh(), keys.fresh(), keys.fresh()
    public = keys.public_of(two)
    both = keys.agreed(one, public, b"a")
    assert keys.agreed(two, keys.public_of(one), b"a") == both
    assert keys.agreed(one, public, b"b") != both
    assert keys.agreed(three, public, b"a") != both


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), b"short"])
def test_a_public_key_of_which_the_shared_secret_is_known_is_refused(public):
    with pytest.raises(SecureAggregationError, match="public key"):
        keys.agreed(keys.fresh(), public, b"a")


def test_what_is_sealed_opens_unchanged_or_not_at_all():
    key = keys.fresh()
    sealed = keys.seal(key, b"shares", b"round 1")
    assert keys.unseal(key, sealed, b"round 1") == b"shares"
    assert keys.seal(key, b"shares", b"round 1") != sealed, "no nonce is used twice"
    damaged = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for content, bound in ((damaged, b"round 1"), (sealed, b"round 2"), (b"", b"round 1")):
        with pytest.raises(SecureAggregationError, match="cannot be opened"):
            keys.unseal(key, content, bound)


def keystream(seed, size, kind):
    """Return the first words of a seed's keystream."""
    words = np.zeros(size, kind)
    keys.add_keystream(words, seed, 1)
    return words


def test_the_keystream_is_chacha20_s():
    stream = keystream(bytes(32), 4, np.uint32)  # draft-agl-tls-chacha20poly1305-04, 7
    assert stream.tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"


def test_the_keystream_of_long_words_is_the_same_bytes():
    short, long = keystream(b"s" * 32, 80_000, np.uint32), keystream(b"s" * 32, 40_000, np.uint64)
    assert short.tobytes() == long.tobytes()
    assert len(np.unique(short)) > 79_000, "no block is like another"
    keys.add_keystream(short, b"s" * 32, -1)
    assert not short.any()


# -- fixed point -------------------------------------------------------------------------


@QUICK
@given(bits=st.sampled_from([24, 32, 40, 48]), seed=st.integers(0, 2**32 - 1))
def test_a_sum_is_that_of_the_words_and_within_half_a_unit_a_client(bits, seed):
    point = fixed(bits=bits, max_examples=100, clip=2.0)
    rng = np.random.default_rng(seed)
    values = rng.uniform(-2, 2, (10, 7)).astype(np.float32)
    samples = rng.integers(1, 101, 10)
    told = [Figures(int(n), 0, 0.25, 0.5, float(10**9 + n)) for n in samples]
    words = [point.encode(v, t) for v, t in zip(values, told, strict=True)]
    sent = [point.unpack(point.pack(w), HEAD + 7) for w in words]
    total = np.sum(sent, axis=0, dtype=point.kind)
    found, figures = point.decode(total)
    each = [point.decode(w)[0] for w in words]
    np.testing.assert_array_equal(found, np.sum(each, axis=0))
    wanted = (values.astype(np.float64) * samples[:, None]).sum(0)
    assert np.abs(found * point.unit - wanted).max() <= 10 * point.unit / 2
    assert figures.samples == samples.sum()
    assert figures.flops == sum(t.flops for t in told)
    assert figures.loss == pytest.approx(0.25 * samples.sum(), abs=10 * point.unit)
    assert figures.accuracy == pytest.approx(0.5 * samples.sum(), abs=10 * point.unit)


@pytest.mark.parametrize("bits", [24, 32, 40, 48])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sum_fits(bits, sign):
    point = fixed(bits=bits, max_examples=100, clip=2.0)
    largest = Figures(100, 0, sign * 2.0, 0.0, 1e300)
    words = point.encode(np.full(3, sign * 1e9, np.float32), largest)
    found, figures = point.decode(sum([words] * 10, np.zeros_like(words)))
    np.testing.assert_array_equal(found * point.unit, np.full(3, sign * 2000.0))
    assert figures.samples == 1000
    assert figures.clipped == 30, "values out of range are cut, and counted"
    assert figures.loss == sign * 2000
    assert figures.flops == 10 * (2.0 ** (DIGIT * DIGITS) - 2**10)


@QUICK
@given(st.sampled_from([24, 32, 40, 48]), st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_words_travel_in_as_many_bits_as_are_asked_for(bits, size, seed):
    point = fixed(bits=bits, max_examples=100, clip=2.0)
    words = np.random.default_rng(seed).integers(0, 2**bits, size, np.uint64).astype(point.kind)
    content = point.pack(words)
    assert len(content) == size * bits // 8
    np.testing.assert_array_equal(point.unpack(content, size), words)
    with pytest.raises(SecureAggregationError, match="were asked for"):
        point.unpack(content + b"\0", size)


def test_what_would_be_too_coarse_is_refused_up_front():
    with pytest.raises(ConfigError, match=r"secure\.bits = 24.*too coarse; raise bits"):
        fixed(bits=24)
    with pytest.raises(ConfigError, match=r"secure\.max_examples = 1000000"):
        fixed(max_examples=10**6)
    with pytest.raises(ConfigError, match=r"secure\.clip = 1e\+06"):
        fixed(clip=1e6)


def test_values_that_no_number_stands_for_and_too_many_samples_are_refused():
    point = fixed()
    for value in (np.nan, np.inf):
        with pytest.raises(TrainingError, match="NaN or infinity"):
            point.encode(np.array([value], np.float32), Figures(1, 0, 0.0, 0.0, 0.0))
    with pytest.raises(
        SecureAggregationError, match=r"^no samples, or more than .* = 10000; raise"
    ):
        point.encode(np.zeros(1, np.float32), Figures(10_001, 0, 0.0, 0.0, 0.0))


# -- masks -------------------------------------------------------------------------------


def masked_sum(clients, plain, kind):
    """Return the sum of masked words, and the masked words of the first client."""
    private = {i: keys.fresh() for i in clients}
    own = {i: keys.fresh() for i in clients}
    total, first = np.zeros(len(plain[clients[0]]), kind), None
    for i in clients:
        words = plain[i].copy()
        masks.add_own(words, own[i])
        others = {j: keys.public_of(private[j]) for j in clients if j != i}
        seeds = {j: masks.pair_seed(private[i], p, b"session") for j, p in others.items()}
        masks.add_pairs(words, i, seeds)
        total += words
        first = words if first is None else first
    for i in clients:
        masks.add_own(total, own[i], -1)
    return total, first


@QUICK
@given(count=st.integers(2, 6), kind=st.sampled_from([np.uint32, np.uint64]), data=st.data())
def test_masks_cancel_in_the_sum(count, kind, data):
    clients = data.draw(st.permutations(range(0, 10 * count, 10)))
    rng = np.random.default_rng(count)
    plain = {i: rng.integers(0, np.iinfo(kind).max, 33, kind, endpoint=True) for i in clients}
    total, first = masked_sum(clients, plain, kind)
    np.testing.assert_array_equal(total, sum(plain.values(), np.zeros(33, kind)))
    assert (first != plain[clients[0]]).sum() >= 30


def test_masks_of_a_pair_that_do_not_cancel_are_seen_in_the_sum(monkeypatch):
    right = masks.add_pairs

    def wrong(words, client, seeds, sign=1):
        right(words, client, {j: s for j, s in seeds.items() if (client, j) != (1, 2)}, sign)

    monkeypatch.setattr(masks, "add_pairs", wrong)
    plain = {i: np.arange(33, dtype=np.uint32) for i in (1, 2, 3)}
    total, _ = masked_sum([1, 2, 3], plain, np.uint32)
    assert (total != sum(plain.values(), np.zeros(33, np.uint32))).all()


def chi_square(words):
    """Return the statistic of bytes against equal counts: 255 degrees of freedom."""
    counts = np.bincount(words.view(np.uint8), minlength=256)
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


def test_one_client_s_masked_words_look_uniform():
    plain = {i: np.full(50_000, 7, np.uint32) for i in range(3)}
    _, first = masked_sum([0, 1, 2], plain, np.uint32)
    # mean 255, deviation 22.6; beyond nine of them less than once in 10^13
    assert chi_square(first) < 255 + 9 * 22.6
    assert chi_square(plain[0]) > 10_000


# -- messages ----------------------------------------------------------------------------

SCHEMA = wire.Schema((("w", (4, 3)), ("b", (4,))))


def test_a_masked_model_is_of_one_round_one_model_and_one_mask():
    sent = letters.write_masked(b"words", 32, b"s" * 16, SCHEMA, None)
    assert letters.read_masked(sent, 32, b"s" * 16, SCHEMA, None) == b"words"
    other = wire.Schema((("w", (4, 3)),))
    for bits, session, schema in (
        (24, b"s" * 16, SCHEMA),
        (32, b"t" * 16, SCHEMA),
        (32, b"s" * 16, other),
    ):
        with pytest.raises(SecureAggregationError, match="another round, model or mask"):
            letters.read_masked(sent, bits, session, schema, None)
    for broken, reason in ((sent[:-1] + b"\0", "damaged"), (sent[:40], "holds no masked model")):
        with pytest.raises(SecureAggregationError, match=reason):
            letters.read_masked(broken, 32, b"s" * 16, SCHEMA, None)


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(content):
    for read in (
        letters.read_peers,
        letters.read_wants,
        lambda c: letters.read_masked(c, 32, bytes(16), SCHEMA, None),
        lambda c: fixed().unpack(c, 12),
        lambda c: letters.pieces(c, 33, 3, "shares"),
    ):
        with suppress(SecureAggregationError):
            read(content)


def test_lists_name_a_client_once():
    peer = letters.Peer(3, bytes(32), bytes(32))
    assert letters.read_peers(letters.write_peers([peer])) == [peer]
    with pytest.raises(SecureAggregationError, match="twice"):
        letters.read_peers(letters.write_peers([peer, peer]))
    seed = letters.Want(3, letters.SEED_SHARE, bytes(letters.SEALED))
    with pytest.raises(SecureAggregationError, match="twice"):
        letters.read_wants(letters.write_wants([seed, seed._replace(kind=letters.KEY_SHARE)]))


def test_without_the_package_for_keys_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtraError, match=r"secure\.aggregation needs.*fedsparse\[deploy\]"):
        keys.require()
