"""Masks by vote: a minority grows nothing, chooses no candidate and scores no weight up."""

import numpy as np
import pytest

from fedsparse.sections import RobustConfig
from strategies import votes
from tests.strategies.stage import play, stage

ROBUST = RobustConfig(rule="median", hostile=0.2)


def vote(*values):
    return {"w": np.array(values, np.float32)}


def test_a_weight_grows_only_if_more_clients_name_it_than_may_be_hostile():
    honest = [vote(3, 4, 0), vote(3, 4, 0), vote(4, 3, 0), vote(0, 5, 0)]
    found = votes.grow_votes([*honest, vote(0, 0, 1e30)], 5, ROBUST)["w"]
    assert found.tolist() == pytest.approx([(3 + 3 + 4) / 5, (4 + 4 + 3 + 5) / 5, 0])


def test_a_client_s_gradients_count_no_more_than_the_median_client_s():
    found = votes.grow_votes([vote(3, 4), vote(3, 4), vote(300, -400)], 3, ROBUST)["w"]
    assert found.tolist() == pytest.approx([3, (4 + 4 - 4) / 3])


def test_the_median_loss_chooses():
    losses = np.array([[1, 2], [1, 2], [1e300, 0], [np.inf, -1e300], [1, 2]])
    assert votes.least_median(losses) == 0


def test_scores_are_shares_of_a_client_s_own_and_the_median_counts():
    found = votes.median_scores([vote(1, 3), vote(2, 6), vote(1e9, 0)])["w"]
    assert found.tolist() == [0.25, 0.75]


def growths(*more):
    """Return the mask after an adjustment in which one of five clients lies about gradients."""
    strategy, grid = stage("fleet.clients=5", "strategy.selection=none", *more)
    strategy.prepare(grid)
    before = strategy.mask
    play(strategy, grid, 1)
    return before, strategy.mask


def test_a_client_that_shouts_moves_the_mask_without_votes_and_not_with_them():
    attack = ("attack.clients=1", "attack.updates=scaled", "attack.scale=1e5")
    honest, loud = growths()[1], growths(*attack)[1]
    bounded, unmoved = growths("robust.rule=median", *attack)[1], growths("robust.rule=median")[1]
    assert loud.hamming(honest) > 0
    assert bounded.hamming(unmoved) < loud.hamming(honest)
