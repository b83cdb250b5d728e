"""Relearn time, and how far a model is from the retrained one."""

import numpy as np
import pytest

from fedsparse import seeds
from fedsparse.sparsity import Mask
from simulations.evidence import distance, relearn
from simulations.evidence.examine import relearn_steps
from simulations.evidence.measures import Answers
from tests.evidence.digits_models import CLASS, SAMPLES, original, retrained, train, world


def test_a_model_that_knows_needs_no_step_and_one_that_never_did_needs_some():
    task, found = world(CLASS)
    steps, goal = relearn_steps(task, found, original(CLASS))
    assert (steps, goal) == (0, 1.0)
    fresh, before = relearn_steps(task, found, retrained(CLASS, 1), goal)
    assert before == 0.0
    assert 1 <= fresh < relearn.MOST_STEPS
    # A model that merely saw less of the class than the original is there sooner.
    labels = task.data.train.y
    known = np.append(np.flatnonzero(labels != 3), np.flatnonzero(labels == 3)[:10])
    partly, _ = relearn_steps(task, found, train(task, task.data.train.take(known), 1), goal)
    assert 0 < partly <= fresh
    assert relearn_steps(task, found, retrained(CLASS, 1), goal)[0] == fresh


def test_relearning_stops_at_its_bound(monkeypatch):
    monkeypatch.setattr(relearn, "MOST_STEPS", 2)
    task, found = world(CLASS)
    assert relearn_steps(task, found, retrained(CLASS, 1), 1.0)[0] == 2


def test_relearning_that_diverges_has_no_time():
    task, found = world(SAMPLES)
    rng = seeds.stream(0, 0, 0, "relearn")
    shown, test = relearn.shown(found.forgotten, rng)
    wild = task.config.client.model_copy(update={"lr": 1e30})
    model = task.backend.load(retrained(SAMPLES, 1).state)
    assert relearn.steps(model, shown, test, wild, 1.0, rng) is None


def test_weights_are_compared_relative_to_the_retrained_ones():
    ours = {"a": np.array([3.0, 0.0]), "b": np.array([4.0]), "running": np.array([9.0])}
    theirs = {"a": np.array([0.0, 0.0]), "b": np.array([2.0]), "running": np.array([1.0])}
    assert distance.weights(ours, theirs, ["a", "b"]) == pytest.approx(np.sqrt(9 + 4) / 2)
    assert distance.weights(ours, {**theirs, "b": np.array([0.0])}, ["a", "b"]) is None


def test_predictions_that_share_nothing_are_a_bit_apart():
    sure = np.log(np.array([[1 - 2e-12, 1e-12, 1e-12]]))
    other = sure[:, ::-1]
    even = np.log(np.array([[0.5, 0.25, 0.25]]))
    assert distance.divergence(sure, other) == pytest.approx([1.0], abs=1e-9)
    assert distance.divergence(even, even) == pytest.approx([0.0], abs=1e-12)
    # M = (.75, .125, .125): KL(P|M) = log2(4/3), KL(Q|M) = .5 log2(2/3) + .5 log2(2)
    wanted = 0.5 * np.log2(4 / 3) + 0.5 * (0.5 * np.log2(2 / 3) + 0.5)
    assert distance.divergence(sure, even) == pytest.approx([wanted], abs=1e-9)
    assert distance.disagreement(np.concatenate([sure, even]), np.concatenate([other, sure])) == 0.5


def test_masks_overlap_by_what_both_keep():
    first, second = (
        Mask.from_arrays({"w": np.array(bits, bool)}) for bits in ([1, 1, 0, 0], [0, 1, 1, 0])
    )
    assert distance.overlap(first, second) == pytest.approx(1 / 3)
    assert distance.overlap(first, None) == distance.overlap(None, first) == 0.5
    assert distance.overlap(None, None) is None


def test_what_cannot_be_compared_is_left_out():
    none = Answers(np.empty((0, 3)), np.empty(0, np.int64))
    state = {"a": np.ones(2, np.float32)}
    found = distance.distance((state, state), (None, None), (none, none), ["a"])
    assert (found.weights, found.divergence, found.disagreement, found.overlap) == (
        0.0,
        None,
        None,
        None,
    )
