"""Partitions: each position once, minima kept, the same draw for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse import data
from fedsparse.config import DataConfig
from fedsparse.data import partitions
from fedsparse.errors import DataError

seeds = st.integers(0, 2**31)
counts = st.integers(1, 12)
alphas = st.sampled_from([1e-3, 0.05, 0.5, 1.0, 100.0])


def deal(kind, labels, clients, alpha, least, seed):
    rng = np.random.default_rng(seed)
    if kind == "iid":
        return partitions.iid(len(labels), clients, rng)
    if kind == "dirichlet":
        return partitions.dirichlet(labels, clients, alpha, least, rng)
    if kind == "quantity":
        return partitions.quantity(len(labels), clients, alpha, least, rng)
    return partitions.shards(labels, clients, least, rng)


def some_labels(samples: int, classes: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, classes, samples)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity", "shards"])
@given(clients=counts, alpha=alphas, least=st.integers(1, 5), extra=st.integers(0, 60), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_each_position_is_dealt_once_and_minima_hold(kind, clients, alpha, least, extra, seed):
    labels = some_labels(clients * least + extra)
    parts = deal(kind, labels, clients, alpha, least, seed)
    assert len(parts) == clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert all(len(part) >= least for part in parts)
    assert all(np.all(np.diff(part) > 0) and part.dtype == np.int64 for part in parts)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity", "shards"])
def test_the_generator_alone_decides(kind):
    labels = some_labels(200)
    first, again, other = (deal(kind, labels, 7, 0.5, 2, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_iid_sizes_differ_by_one_at_most():
    sizes = [len(p) for p in partitions.iid(103, 10, np.random.default_rng(0))]
    assert sorted(set(sizes)) == [10, 11]


def skew(alpha: float, seed: int) -> float:
    """Mean distance of the clients' class shares from the whole's, 0 to 1."""
    labels = np.repeat(np.arange(10), 200)
    parts = partitions.dirichlet(labels, 10, alpha, 2, np.random.default_rng(seed))
    shares = np.stack([np.bincount(labels[p], minlength=10) / len(p) for p in parts])
    return float(np.abs(shares - 0.1).sum(1).mean() / 2)


def test_dirichlet_skew_grows_as_alpha_falls():
    means = [np.mean([skew(alpha, seed) for seed in range(3)]) for alpha in (100, 1, 0.1, 0.01)]
    assert means == sorted(means)
    assert means[0] < 0.1
    assert means[-1] > 0.6


def test_quantity_skew_grows_as_alpha_falls_and_classes_stay_mixed():
    spreads = []
    for alpha in (100.0, 0.2):
        parts = partitions.quantity(4000, 10, alpha, 2, np.random.default_rng(0))
        spreads.append(np.std([len(p) for p in parts]))
        largest = max(parts, key=len)
        assert largest.mean() == pytest.approx(2000, rel=0.1)
    assert spreads[0] < spreads[1]


@pytest.mark.parametrize("each", [1, 2, 3])
def test_shards_that_divide_the_classes_hold_one_class_each(each):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
    parts = partitions.shards(labels, 10, each, np.random.default_rng(1))
    assert max(len(np.unique(labels[part])) for part in parts) <= each


@given(each=st.integers(1, 4), seed=seeds)
@settings(max_examples=20, deadline=None)
def test_a_shard_no_larger_than_a_class_holds_two_classes_at_most(each, seed):
    labels = np.repeat(np.arange(4), [40, 50, 60, 71])
    parts = partitions.shards(labels, 6, each, np.random.default_rng(seed))
    assert max(len(np.unique(labels[part])) for part in parts) <= 2 * each


def test_more_shards_than_samples_are_refused():
    with pytest.raises(DataError, match=r"shards_per_client = 3: 4 clients need 12"):
        partitions.shards(some_labels(11), 4, 3, np.random.default_rng(0))


def test_natural_gives_each_value_of_the_column_its_client():
    column = np.array(["b", "a", "c", "a", "b", "b"])
    parts = partitions.natural(column, 3)
    assert [part.tolist() for part in parts] == [[1, 3], [0, 4, 5], [2]]


def test_natural_needs_a_column_with_as_many_values_as_clients():
    with pytest.raises(DataError, match=r"data\.column"):
        partitions.natural(None, 3)
    with pytest.raises(DataError, match=r"set fleet\.clients = 2"):
        partitions.natural(np.array([1, 1, 2]), 3)


@pytest.mark.parametrize("deal_to", [partitions.dirichlet, partitions.quantity])
def test_too_few_samples_for_the_minimum_are_refused(deal_to):
    first = some_labels(9) if deal_to is partitions.dirichlet else 9
    with pytest.raises(DataError, match=r"9 samples do not give 5 clients 2 each"):
        deal_to(first, 5, 0.5, 2, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("sizes", "least", "levelled"),
    [
        ([0, 3, 5, 5], 2, [2, 3, 3, 5]),  # the first of the largest gives
        ([0, 0, 5, 3], 2, [2, 2, 2, 2]),  # 2 of client 2, then 1 of client 2 and 1 of client 3
        ([1, 9, 0], 3, [3, 4, 3]),
        ([2, 2, 7], 2, [2, 2, 7]),
    ],
)
def test_who_lacks_samples_takes_them_from_the_largest(sizes, least, levelled):
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    dealt = partitions._levelled(parts, least, np.random.default_rng(0))
    assert [len(part) for part in dealt] == levelled
    assert np.array_equal(np.sort(np.concatenate(dealt)), np.arange(sum(sizes)))


def largest_by_looking_at_all(parts, least, rng):
    """Level in the plainest way, whose time grows with the square of the clients."""
    dealt = list(parts)
    for poor in range(len(dealt)):
        while len(dealt[poor]) < least:
            rich = int(np.argmax([len(part) for part in dealt]))
            take = min(least - len(dealt[poor]), len(dealt[rich]) - least)
            mixed = rng.permutation(dealt[rich])
            dealt[poor] = np.concatenate([dealt[poor], mixed[:take]])
            dealt[rich] = mixed[take:]
    return dealt


@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=20), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_levelling_takes_whom_a_look_at_all_clients_would_find(sizes, seed):
    least = sum(sizes) // len(sizes)
    parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    found = partitions._levelled(parts, least, np.random.default_rng(seed))
    plain = largest_by_looking_at_all(parts, least, np.random.default_rng(seed))
    assert all(np.array_equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize("kind", ["dirichlet", "quantity"])
def test_twenty_thousand_clients_are_levelled(kind):
    parts = deal(kind, some_labels(60_000), 20_000, 0.5, 2, 0)
    assert min(map(len, parts)) == 2
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(60_000))


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards", "quantity"])
def test_too_many_clients_are_refused_with_the_remedy(kind):
    with pytest.raises(DataError, match=r"fleet\.clients = 1000 .* there are 1438; lower"):
        data.load(DataConfig(partition=kind), clients=1000, seed=0)
