"""The sampled partition: any number of clients, each with samples of its own, drawn when asked."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse import data
from fedsparse.config import DataConfig
from fedsparse.data import partitions
from fedsparse.errors import DataError

LABELS = np.random.default_rng(0).integers(0, 10, 1400)
REGRESSION = {"name": "synthetic-regression", "samples": 50, "public_samples": 0}


def sampled(clients=1_000_000, each=32, alpha=0.5, seed=0, labels=LABELS):
    return partitions.Sampled(labels, clients, each, alpha, seed)


def load(clients, **changes):
    return data.load(DataConfig(partition="sampled", **changes), clients=clients, seed=0)


@given(
    client=st.integers(0, 10**6 - 1),
    each=st.integers(1, 90),
    alpha=st.sampled_from([1e-300, 1e-3, 0.5, 100.0]),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
)
@settings(max_examples=200, deadline=None)
def test_a_client_has_its_number_of_samples_each_as_rarely_as_can_be(client, each, alpha, sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    own = sampled(each=each, alpha=alpha, labels=labels)[client]
    assert len(own) == each
    assert own.dtype == np.int64
    times = np.bincount(own, minlength=len(labels))
    assert len(times) == len(labels)
    assert times.max() - times.min() <= 1
    assert np.array_equal(own, np.sort(own))


def test_seed_and_client_alone_decide():
    first, more, other = sampled(10), sampled(), sampled(seed=1)
    later = [more[client] for client in reversed(range(10))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, later, strict=True))
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], other[0])


def largest_share(alpha):
    """Return the mean share of a client's main class."""
    parts = sampled(alpha=alpha)
    return np.mean([np.bincount(LABELS[parts[c]]).max() / 32 for c in range(0, 10**6, 5000)])


def test_classes_are_mixed_less_as_alpha_falls():
    shares = [largest_share(alpha) for alpha in (100.0, 1.0, 0.1, 1e-3)]
    assert shares == sorted(shares)
    assert shares[0] < 0.25
    assert shares[-1] > 0.97


def test_all_samples_are_drawn_alike_in_the_whole():
    drawn = np.bincount(np.concatenate(list(sampled(2000))), minlength=len(LABELS))
    per_class = np.bincount(LABELS, weights=drawn)
    assert per_class.min() > 0.8 * per_class.max()
    assert drawn.min() > 0


def test_without_classes_samples_are_drawn_uniformly():
    parts = list(sampled(1000, 5, labels=np.linspace(0, 1, 50, dtype=np.float32)))
    drawn = np.bincount(np.concatenate(parts), minlength=50)
    assert drawn == pytest.approx(np.full(50, 100), rel=0.4)
    assert all(len(np.unique(own)) == 5 for own in parts)


def test_it_is_a_sequence():
    parts = sampled(7)
    assert len(parts) == 7
    assert np.array_equal(parts[-1], parts[6])
    assert [len(own) for own in parts[2:4]] == [32, 32]
    with pytest.raises(IndexError):
        parts[7]


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "quantity", "sampled"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.99])
def test_sizes_are_told_without_the_samples(partition, fraction):
    federated = data.load(
        DataConfig(partition=partition, client_test_fraction=fraction), clients=30, seed=0
    )
    trained = [len(federated.client(client).train) for client in range(30)]
    assert federated.train_sizes.tolist() == trained
    assert [federated.train_samples(client) for client in range(30)] == trained
    assert federated.sizes.tolist() == [len(own) for own in federated.partition]


def test_digits_serve_a_million_clients():
    federated = load(1_000_000)
    assert federated.clients == 1_000_000
    assert len(federated.client(999_999).train) == 29
    assert federated.train_sizes.sum() == 29_000_000
    assert len(federated.train) == 1438 - 100
    counts = np.array(data.partition_counts(federated))
    assert counts.shape == (data.MOST_COUNTED, 10)
    assert (counts.sum(1) == 32).all()


def test_regression_is_sampled_too():
    federated = load(1000, samples_per_client=7, **REGRESSION)
    assert len(federated.partition[999]) == 7
    assert data.partition_counts(federated) == [[7]] * 1000


def test_only_public_samples_can_leave_too_few():
    assert len(load(10, public_samples=1437).partition[0]) == 32
    with pytest.raises(DataError, match=r"public_samples = 1438 of 1438 .* lower data\.public"):
        load(10, public_samples=1438)
