"""LiRA and RMIA: right by hand, blind to retrained models, and not to originals."""

import numpy as np
import pytest

from simulations.evidence import attacks, lira, rmia
from simulations.evidence.examine import examine
from simulations.evidence.measures import Answers
from tests.evidence.digits_models import SAMPLES, original, retrained, world


def test_the_logit_of_a_nearly_certain_model_keeps_its_digits():
    logits = np.array([[60.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-50.0, 0.0, 0.0]])
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    found = lira.logit(Answers(log_p, np.zeros(3, np.int64)))
    assert found == pytest.approx([60 - np.log(2), -np.log(2), -50 - np.log(2)])


def test_few_references_share_a_variance_and_many_have_one_each():
    few = np.array([[0.0, 0.0], [2.0, 4.0]])  # variances 2 and 8, mean 5
    assert lira.scores(np.array([3.0, 7.0]), few) == pytest.approx([2 / 5**0.5, 5 / 5**0.5])
    many = np.repeat(few, lira.PER_SAMPLE // 2, axis=0)
    own = many.std(0, ddof=1)
    assert lira.scores(np.array([3.0, 7.0]), many) == pytest.approx([2 / own[0], 5 / own[1]])
    assert lira.scores(np.array([3.0, 7.0]), few[:1]) == pytest.approx([3.0, 7.0])


def test_members_and_others_are_matched_by_label():
    rng = np.random.default_rng(0)
    members = np.array([0] * 7 + [1] * 3 + [5] * 4)
    others = np.array([0] * 20 + [1] * 9 + [2] * 6)
    ours, theirs = lira.matched(members, others, rng)
    assert np.bincount(members[ours]).tolist() == [7, 3]
    assert np.bincount(others[theirs]).tolist() == [14, 6]  # two for each: 20 // 7 = 2, 9 // 3 = 3
    assert len(set(ours.tolist())) == 10
    ours, theirs = lira.matched(others, members, rng)
    assert np.bincount(others[ours]).tolist() == [14, 6]
    nothing = lira.matched(np.array([1]), np.array([2]), rng)
    assert [len(each) for each in nothing] == [0, 0]


def test_a_sample_scores_by_the_population_that_it_surpasses():
    a = rmia.OFFLINE
    references = np.array([[0.5, 0.5], [0.7, 0.1]])
    assert rmia.prior(references) == pytest.approx(
        [((1 + a) * 0.6 + 1 - a) / 2, ((1 + a) * 0.3 + 1 - a) / 2]
    )
    known = np.full((2, 4), 0.5)
    population = np.array([0.2, 0.4, 0.6, 0.8])
    found = rmia.scores(np.array([0.5, 0.9]), np.full((2, 2), 0.5), population, known)
    assert found == pytest.approx([0.5, 1.0])


@pytest.fixture(scope="module")
def attacked():
    """Originals and retrained models under attack by six retrained models that are none of them."""
    task, found = world(SAMPLES)

    def told(subject):
        return examine(task, found, subject)

    references = [told(retrained(SAMPLES, seed)) for seed in range(1, 7)]
    models = {f"original {seed}": told(original(SAMPLES, seed)) for seed in (200, 201, 202)}
    models |= {f"retrained {seed}": told(retrained(SAMPLES, seed)) for seed in (200, 201, 202)}
    return attacks.attack(found, models, told(retrained(SAMPLES, 101)), references)


@pytest.mark.parametrize("kind", ["lira", "rmia"])
def test_a_retrained_model_gives_nothing_away_and_the_original_does(attacked, kind):
    areas = {name: curve.auc for name, curve in attacked.curves[kind].items()}
    originals = [areas.pop(f"original {seed}") for seed in (200, 201, 202)]
    assert list(areas.values()) == pytest.approx([0.5] * 4, abs=0.06)
    assert min(originals) > max(areas.values()) + 0.02
    assert np.mean(originals) > 0.54


def test_each_retrained_model_is_attacked_by_all_others(attacked):
    assert set(attacked.retrained) == {"lira_auc", "lira_tpr_1", "lira_tpr_5", "rmia_auc"}
    assert all(len(values) == 7 for values in attacked.retrained.values())
    assert attacked.retrained["lira_auc"][0] == attacked.curves["lira"]["retrained"].auc
    assert np.mean(attacked.retrained["lira_auc"]) == pytest.approx(0.5, abs=0.05)


def test_without_retrained_models_there_is_no_attack():
    task, found = world(SAMPLES)
    alone = {"original": examine(task, found, original(SAMPLES))}
    assert attacks.attack(found, alone, None, []).curves == {}
    only = examine(task, found, retrained(SAMPLES, 1))
    both = attacks.attack(found, alone, only, [])
    assert set(both.curves["lira"]) == {"original"}  # the only one is the reference itself
    assert both.retrained == {}
