"""Plain measures of what a model says of samples, the paper's attacker, and the ROC of scores."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsparse import seeds
from fedsparse.data import Dataset
from simulations.evidence import membership, roc
from simulations.evidence.measures import (
    Answers,
    accuracy,
    confidence,
    outputs,
    true_confidence,
    unlearning_accuracy,
)

Attack = membership.Attack


def answers(p_true, classes=3, y=1):
    """Return answers of which the true label's probabilities are given, the rest spread evenly."""
    p_true = np.asarray(p_true, float)
    p = np.repeat(((1 - p_true) / (classes - 1))[:, None], classes, axis=1)
    p[:, y] = p_true
    return Answers(np.log(p), np.full(len(p_true), y))


NONE = Answers(np.empty((0, 3)), np.empty(0, np.int64))


def test_unlearning_accuracy_is_the_share_that_is_wrong():
    found = answers([0.9, 0.8, 0.1, 0.2])
    assert accuracy(found) == 0.5
    assert unlearning_accuracy(answers([0.9, 0.8, 0.7, 0.2])) == 0.25
    assert accuracy(NONE) is unlearning_accuracy(NONE) is confidence(NONE) is None


def test_confidence_is_that_of_the_true_label():
    found = confidence(answers([0.1, 0.5, 0.9]))
    assert (found.mean, found.median) == pytest.approx((0.5, 0.5))
    assert (found.low, found.high) == pytest.approx((0.18, 0.82))


def test_a_model_is_asked_in_evaluation_mode_and_in_parts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).train()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1100, 4)).astype(np.float32)
    data = Dataset(x, np.zeros(1100, np.int64), 3)
    found = outputs(model, data)
    assert model.training
    with torch.no_grad():
        wanted = torch.softmax(model[1](torch.from_numpy(x)), 1).numpy()
    assert np.exp(found.log_p) == pytest.approx(wanted, abs=1e-6)
    assert outputs(model, data.take(np.empty(0, np.int64))).log_p.shape == (0, 3)


def test_the_attacker_tells_by_confidence():
    rng = np.random.default_rng(0)
    sure, unsure = (answers(rng.uniform(*bounds, 60)) for bounds in ((0.9, 1.0), (0.4, 0.6)))
    draw = seeds.stream(0, 0, 0, "test")
    assert membership.attack(sure, unsure, answers([0.5] * 9), draw) == Attack(1.0, 1.0)
    assert membership.attack(sure, unsure, answers([0.95] * 9), draw) == Attack(0.0, 1.0)
    assert membership.attack(sure, unsure, answers([0.5, 0.95, 0.96, 0.97]), draw).efficacy == 0.25
    assert membership.attack(sure, NONE, answers([0.5]), draw) is None
    alike = membership.attack(sure, sure, answers([0.5]), draw)
    assert alike.success == 0.5


def test_the_area_counts_pairs_in_order_and_ties_as_half():
    members, others = np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0])
    assert roc.auc(members, others) == pytest.approx((2 + 1.5 + 1) / 6)
    assert roc.auc(others, members) == pytest.approx(1 - (2 + 1.5 + 1) / 6)


def test_the_curve_runs_through_every_threshold():
    fpr, tpr = roc.curve(np.array([4.0, 3.0, 1.0]), np.array([3.0, 0.0]))
    assert fpr.tolist() == pytest.approx([0, 0, 0.5, 0.5, 1])
    assert tpr.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert roc.tpr_at(fpr, tpr, 0.01) == pytest.approx(1 / 3)
    assert roc.tpr_at(fpr, tpr, 0.5) == 1


def test_the_interval_holds_the_area_and_narrows_with_samples():
    rng = np.random.default_rng(0)
    few, many = (
        roc.roc(rng.normal(0.3, 1, n), rng.normal(0, 1, n), seeds.stream(0, 0, 0, "b"))
        for n in (40, 1000)
    )
    for found in (few, many):
        assert found.low < found.auc < found.high
    assert many.high - many.low < (few.high - few.low) / 3
    assert many.low > 0.5  # 0.3 standard deviations apart: 58 %
    # Hanley and McNeil (1982): the standard error of an area of a half is sqrt((2n + 1) / 12 n n).
    assert few.high - few.low == pytest.approx(2 * 1.96 * np.sqrt(81 / 12 / 1600), rel=0.2)


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    rng = np.random.default_rng(0)
    found = roc.roc(rng.random(3000), rng.random(3000), seeds.stream(0, 0, 0, "b"))
    assert len(found.fpr) == len(found.tpr) <= roc.MOST_POINTS
    assert (found.fpr[0], found.tpr[0], found.fpr[-1], found.tpr[-1]) == (0, 0, 1, 1)
    short = roc.roc(np.array([3.0, 2.0]), np.array([1.0, 0.0]), seeds.stream(0, 0, 0, "b"))
    assert list(zip(short.fpr, short.tpr, strict=True)) == [(0, 0), (0, 1), (1, 1)]


def test_true_confidence_is_by_sample():
    assert true_confidence(answers([0.2, 0.7])) == pytest.approx([0.2, 0.7])
