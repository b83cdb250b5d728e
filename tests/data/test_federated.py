"""The fleet's data: public samples, clients' own, and what each may train on."""

import weakref

import numpy as np
import pytest

from fedsparse import data
from fedsparse.config import DataConfig
from fedsparse.errors import ConfigError, DataError, UnknownNameError

DIGITS = DataConfig(partition="dirichlet", alpha=0.5, public_samples=0)
REGRESSION = DataConfig(
    name="synthetic-regression", samples=200, features=8, partition="iid", public_samples=0
)


def load(clients=10, seed=0, base=DIGITS, **changes):
    return data.load(base.model_copy(update=changes), clients=clients, seed=seed)


def rows(x: np.ndarray) -> set[bytes]:
    return {sample.tobytes() for sample in x}


def test_clients_hold_every_training_sample_once():
    federated = load()
    everything = np.sort(np.concatenate(federated.partition))
    assert np.array_equal(everything, np.arange(len(federated.train)))
    assert (federated.clients, federated.classes, federated.input_shape) == (10, 10, (1, 8, 8))


def test_public_samples_belong_to_no_client_and_to_no_test():
    federated = load(public_samples=100)
    assert len(federated.public) == 100
    assert len(federated.train) == 1438 - 100
    public = rows(federated.public.x)
    assert not public & rows(federated.train.x)
    assert not public & rows(federated.test.x)


@pytest.mark.parametrize("count", [10, 57, 100])
def test_public_samples_are_spread_over_the_classes(count):
    federated = load(public_samples=count)
    whole = np.bincount(load().train.y, minlength=10) / 1438
    public = np.bincount(federated.public.y, minlength=10)
    assert np.abs(public - count * whole).max() <= 1.5


def test_without_public_samples_the_server_has_none():
    assert len(load().public) == 0


def test_the_seed_decides_partition_public_samples_and_splits():
    first, other = load(seed=0, public_samples=20), load(seed=1, public_samples=20)
    data._load.cache_clear()
    again = load(seed=0, public_samples=20)
    assert again is not first
    assert np.array_equal(first.public.x, again.public.x)
    for client in range(10):
        assert np.array_equal(first.partition[client], again.partition[client])
        assert np.array_equal(first.client(client).test.x, again.client(client).test.x)
    assert not np.array_equal(first.public.x, other.public.x)
    assert any(
        not np.array_equal(a, b) for a, b in zip(first.partition, other.partition, strict=True)
    )


def test_loading_again_is_free():
    assert load(seed=5) is load(seed=5)


def test_the_method_of_training_does_not_change_who_holds_what():
    smaller, larger = load(client_test_fraction=0.1), load(client_test_fraction=0.5)
    for a, b in zip(smaller.partition, larger.partition, strict=True):
        assert np.array_equal(a, b)


def test_a_client_trains_and_tests_on_different_samples_of_its_own():
    federated = load(client_test_fraction=0.25, partition="iid")
    for client in range(10):
        own, parts = federated.partition[client], federated.client(client)
        assert len(parts.train) + len(parts.test) == len(own)
        assert len(parts.test) == round(0.25 * len(own))
        assert sorted(np.concatenate([parts.train.x, parts.test.x]).sum((1, 2, 3))) == sorted(
            federated.train.x[own].sum((1, 2, 3))
        )


def test_a_split_does_not_depend_on_which_client_was_asked_first():
    forwards = [load().client(i).test.x for i in range(10)]
    data._load.cache_clear()
    backwards = [load().client(i).test.x for i in reversed(range(10))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_a_clients_samples_are_let_go_with_who_asked_for_them():
    federated = load()
    own = federated.client(0)
    held = [weakref.ref(own.train.x), weakref.ref(own.test.x)]
    assert all(samples() is not None for samples in held)
    del own
    assert all(samples() is None for samples in held)


def test_a_client_keeps_one_sample_to_train_on():
    federated = load(clients=40, samples=40, min_per_client=1, client_test_fraction=0.99)
    for client in range(40):
        assert len(federated.client(client).train) >= 1


@pytest.mark.parametrize("client", [-1, 10])
def test_a_client_that_is_not_there_is_named(client):
    with pytest.raises(DataError, match=f"no client {client}; the run has 10"):
        load().client(client)


def test_sample_limits_keep_the_classes_in_proportion():
    federated = load(samples=200, test_samples=50, partition="iid")
    assert (len(federated.train), len(federated.test)) == (200, 50)
    assert np.bincount(federated.train.y, minlength=10).min() >= 17
    assert np.bincount(federated.test.y, minlength=10).min() >= 3


def test_limits_above_what_there_is_take_all():
    federated = load(samples=10_000, test_samples=10_000)
    assert (len(federated.train), len(federated.test)) == (1438, 359)


def test_public_samples_count_towards_the_limit():
    federated = load(samples=100, public_samples=30)
    assert (len(federated.train), len(federated.public)) == (70, 30)


def test_too_many_public_samples_are_refused():
    with pytest.raises(DataError, match=r"1420 public ones need 1440 samples, there are 1438"):
        load(public_samples=1420)


def test_partition_counts_add_up_to_the_classes():
    federated = load()
    counts = np.array(data.partition_counts(federated))
    assert counts.shape == (10, 10)
    assert np.array_equal(counts.sum(0), np.bincount(federated.train.y))
    assert counts.sum(1).tolist() == [len(part) for part in federated.partition]


def test_regression_counts_samples_in_one_column():
    federated = load(clients=4, base=REGRESSION)
    assert data.partition_counts(federated) == [[50]] * 4


@pytest.mark.parametrize("partition", ["dirichlet", "shards"])
def test_regression_has_no_classes_to_skew(partition):
    with pytest.raises(DataError, match=f"'{partition}' needs classes.*use 'iid' or 'quantity'"):
        load(clients=4, base=REGRESSION, partition=partition)


def test_regression_takes_quantity_and_public_samples():
    federated = load(clients=4, base=REGRESSION, partition="quantity", public_samples=20)
    assert (len(federated.public), len(federated.train)) == (20, 180)


def test_natural_without_a_column_is_refused():
    with pytest.raises(DataError, match=r"natural.*data\.column"):
        load(partition="natural")


def test_unknown_and_unimportable_datasets_are_named():
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        load(name="digit")
    with pytest.raises(ConfigError, match="cannot import"):
        load(name="no_such_package:source")
