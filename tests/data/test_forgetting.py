"""Data without what is forgotten: gone from training and tests, and nothing else moved."""

import numpy as np
import pytest

from fedsparse import data
from fedsparse.config import override, resolve
from fedsparse.data import backdoor
from fedsparse.errors import ConfigError, DataError
from strategies.ledger_rows import trained_ids

TREE = {
    "data": {"name": "digits", "public_samples": 100, "client_test_fraction": 0.2},
    "fleet": {"clients": 5},
}


def dealt(*assignments: str) -> data.FederatedData:
    return data.of(resolve(override(TREE, assignments)))


def pairs(part: data.Dataset) -> set[tuple[bytes, int]]:
    return {(x.tobytes(), int(y)) for x, y in zip(part.x, part.y, strict=True)}


def test_without_forgetting_everything_is_there():
    whole = dealt()
    assert whole.absent == frozenset()
    assert all(len(whole.forgotten(client)) == 0 for client in range(5))
    assert whole.test_forgotten is None


def test_ids_are_rows_of_the_training_set():
    whole, plain = dealt(), data.of(resolve(override(TREE, ["data.public_samples=0"])))
    everything = dict(zip(plain.rows.tolist(), plain.train.x, strict=True))
    for client in range(5):
        for ids, part in (
            (whole.ids(client), whole.client(client).train),
            (whole.test_ids(client), whole.client(client).test),
        ):
            assert (np.diff(ids) > 0).all()
            for i, x in zip(ids.tolist(), part.x, strict=True):
                assert np.array_equal(everything[i], x)


def test_a_forgotten_client_is_absent_and_others_keep_theirs():
    whole, without = dealt(), dealt("forget.clients=2")
    assert without.absent == {2}
    assert without.train_sizes[2] == without.train_samples(2) == 0
    assert pairs(without.forgotten(2)) == pairs(whole.client(2).train)
    for client in (0, 1, 3, 4):
        assert pairs(without.client(client).train) == pairs(whole.client(client).train)
        assert len(without.forgotten(client)) == 0
    assert data.partition_counts(without)[2] == [0] * 10


def test_a_forgotten_class_is_in_no_data():
    whole, without = dealt(), dealt("forget.classes=3,5")
    gone = {3, 5}
    for client in range(5):
        own, before = without.client(client), whole.client(client)
        assert not gone & set(own.train.y.tolist())
        assert not gone & set(own.test.y.tolist())
        assert set(without.forgotten(client).y.tolist()) <= gone
        assert pairs(own.train) | pairs(without.forgotten(client)) == pairs(before.train)
        assert pairs(own.test) <= pairs(before.test)
        assert without.train_samples(client) == len(own.train) == without.train_sizes[client]
    assert not gone & set(without.public.y.tolist())
    assert not gone & set(without.test.y.tolist())
    assert set(without.test_forgotten.y.tolist()) == gone
    assert without.classes == 10


def test_forgotten_samples_leave_the_split_as_it_was():
    whole = dealt()
    named = [int(i) for i in (*whole.ids(1)[:3], *whole.test_ids(4)[:1])]
    without = dealt("forget.samples=" + ",".join(map(str, named)))
    assert pairs(without.forgotten(1)) == pairs(whole.client(1).train.take(np.arange(3)))
    assert len(without.client(1).train) == len(whole.client(1).train) - 3
    assert pairs(without.client(1).test) == pairs(whole.client(1).test)
    assert len(without.forgotten(4)) == 0  # it was never trained on
    assert len(without.client(4).test) == len(whole.client(4).test) - 1


def test_a_client_left_without_samples_is_absent():
    whole = dealt("data.partition=shards", "data.shards_per_client=1")
    only = {int(label) for label in whole.client(0).train.y}
    without = dealt(
        "data.partition=shards",
        "data.shards_per_client=1",
        "forget.classes=" + ",".join(map(str, only)),
    )
    assert 0 in without.absent


def test_the_seed_of_the_data_may_be_another_than_the_runs():
    one, two = dealt("run.seed=1", "data.seed=7"), dealt("run.seed=2", "data.seed=7")
    assert all(np.array_equal(one.ids(c), two.ids(c)) for c in range(5))
    assert not np.array_equal(one.ids(0), dealt("run.seed=1").ids(0))


@pytest.mark.parametrize(
    ("assignment", "error", "said"),
    [
        ("forget.clients=5", ConfigError, "client 5"),
        ("forget.clients=0-4", ConfigError, "leaves no client"),
        ("forget.classes=10", DataError, "class 10"),
        ("forget.classes=0-9", DataError, "leaves no client"),
        ("forget.samples=999999", DataError, "sample 999999"),
    ],
)
def test_what_is_not_there_cannot_be_forgotten(assignment, error, said):
    with pytest.raises(error, match=said):
        dealt(assignment)


def test_public_samples_belong_to_no_client():
    whole = dealt()
    public = sorted(set(range(whole.rows.max())) - set(whole.rows.tolist()))[0]
    with pytest.raises(DataError, match="belongs to no client"):
        dealt(f"forget.samples={public}")


def test_an_attacker_stamps_a_fraction_of_its_training_samples():
    clean, attacked = dealt(), dealt("attack.clients=1", "attack.label=7", "attack.fraction=0.5")
    before, after = clean.client(1).train, attacked.client(1).train
    changed = (before.x != after.x).reshape(len(before), -1).any(1)
    stamped = (after.x[:, :, -3:, -3:] == clean.train.x.max()).reshape(len(after), -1).all(1)
    assert stamped.sum() >= round(0.5 * len(after)) >= changed.sum() > 0
    assert (after.y[changed] == 7).all()
    assert pairs(attacked.client(0).train) == pairs(clean.client(0).train)
    assert pairs(attacked.client(1).test) == pairs(clean.client(1).test)
    assert (attacked.triggered.y == 7).all()
    assert len(attacked.triggered) == int((clean.test.y != 7).sum())
    assert clean.triggered is None


@pytest.mark.parametrize(
    ("assignment", "said"), [("attack.label=10", "label"), ("attack.size=9", "8x8 pixels")]
)
def test_an_attack_that_does_not_fit_the_images_is_refused(assignment, said):
    with pytest.raises(DataError, match=said):
        dealt("attack.clients=1", assignment)


def test_stamped_images_are_told_from_others():
    attacked = dealt("attack.clients=1", "attack.label=7", "attack.fraction=0.5")
    forgotten = attacked.client(1).train
    marked = backdoor.stamped(forgotten.x, 3, attacked.patch)
    assert marked.sum() == round(0.5 * len(forgotten))
    assert (forgotten.y[marked] == 7).all()
    assert not backdoor.stamped(dealt().test.x, 3, attacked.patch).any()


def test_the_label_that_a_trigger_gives_counts_as_the_class():
    attacked = dealt("attack.clients=1", "attack.label=7", "forget.classes=7")
    assert 7 not in attacked.client(1).train.y
    assert attacked.train_samples(1) == len(attacked.client(1).train)
    assert attacked.gone(1).sum() == len(attacked.forgotten(1)) > 0
    assert len(attacked.client(1).train) == len(trained_ids(attacked, 1))


def test_nothing_of_a_forgotten_client_is_handed_out():
    own = dealt("forget.clients=2").client(2)
    assert (len(own.train), len(own.test)) == (0, 0)
