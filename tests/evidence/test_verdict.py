"""The verdict: no more than certificate and tests bear out, and over-forgetting is flagged."""

from dataclasses import replace

import pytest

from simulations.evidence.spread import spread
from simulations.evidence.verdict import tolerance, verdict
from tests.evidence.made_evidence import USUAL, evidence, measured


def without_retrained(found):
    """Return evidence as it is where no retrained model was made."""
    alone = {
        k: replace(m, retrained=None, spread=None, gap=None) for k, m in found.measures.items()
    }
    return replace(found, measures=alone, references=0, attacks={})


def test_a_model_like_retrained_ones_is_not_called_exact():
    found = verdict(evidence(), "approximate")
    assert (found.outcome, found.flags) == ("alike", ())
    assert "cannot be told from retraining by these tests" in found.headline
    assert "no proof" in found.headline
    assert "exact" not in found.headline.lower()
    assert "2 of other seeds" in found.rests_on


@pytest.mark.parametrize(
    "changes",
    [
        {"ua": measured(0.0, (0.05, 0.06, 0.055))},
        {"mia": measured(0.0, (0.10, 0.12, 0.11))},
        {"lira_auc": measured(0.62, (0.50, 0.51, 0.49))},
        {"backdoor": measured(0.5, (0.02, 0.03, 0.02))},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_still_remembered_is_said(changes):
    found = verdict(evidence(**changes), "approximate")
    assert (found.outcome, found.flags) == ("remembers", ("remembers",))
    assert [f.measure for f in found.findings if f.says == "remembers"] == list(changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ua": measured(0.30, (0.05, 0.06, 0.055))}, "over-forgets"),
        ({"mia": measured(0.60, (0.10, 0.12, 0.11))}, "over-forgets"),
        ({"lira_auc": measured(0.38, (0.50, 0.51, 0.49))}, "over-forgets"),
        ({"ta": measured(0.80, (0.94, 0.945, 0.94))}, "damaged"),
        ({"ra": measured(0.80, (0.99, 0.995, 0.99))}, "damaged"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_over_forgetting_is_flagged_as_is_what_was_to_stay(changes, says):
    found = verdict(evidence(**changes), "approximate")
    assert (found.outcome, found.flags) == ("over-forgets", ("over-forgets",))
    assert [f.measure for f in found.findings if f.says == says] == list(changes)


def test_a_model_may_remember_and_over_forget_at_once():
    found = verdict(
        evidence(ua=measured(0.3, (0.05, 0.06, 0.055)), lira_auc=measured(0.7, (0.5, 0.51, 0.49))),
        "approximate",
    )
    assert found.flags == ("remembers", "over-forgets")
    assert found.outcome == "remembers"
    assert "still remembers" in found.headline
    assert "over-forgets" in found.headline


def test_a_weak_backdoor_and_a_better_test_accuracy_are_no_fault():
    found = verdict(
        evidence(backdoor=measured(0.0, (0.2, 0.21, 0.2)), ta=measured(0.999, (0.94, 0.945, 0.94))),
        "approximate",
    )
    assert found.outcome == "alike"


def test_an_attack_that_its_own_samples_leave_open_accuses_nobody():
    found = evidence(lira_auc=measured(0.56, (0.50, 0.50, 0.50)))
    assert verdict(found, "approximate").outcome == "remembers"  # 51 to 61 %
    wide = {"lira": {"unlearned": replace(found.attacks["lira"]["unlearned"], low=0.45)}}
    assert verdict(replace(found, attacks=wide), "approximate").outcome == "alike"


def test_a_measure_is_held_against_where_one_more_retrained_model_would_lie():
    values = (0.05, 0.09, 0.07)
    found = spread(values)
    assert found.mean == pytest.approx(0.07)
    # s = 0.02, t(0.975; 2) = 4.3027: half the interval of the mean, and of one more.
    assert found.ci95 == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-4)
    assert found.next95 == pytest.approx(4.3027 * 0.02 * (4 / 3) ** 0.5, rel=1e-4)
    assert tolerance("ua", measured(0.0, values)) == (found.next95, True)
    assert tolerance("ua", measured(0.0, (0.05, 0.05, 0.05))) == (0.02, True)
    assert tolerance("ua", measured(0.0, (0.05, 0.09))) == (0.05, False)
    assert spread([0.3, None]).next95 is None
    assert spread([None]) is None


def test_tests_that_are_too_coarse_say_so_and_decide_nothing():
    apart = (0.1, 0.5, 0.9)
    found = verdict(evidence(ua=measured(0.0, apart)), "approximate")
    assert found.outcome == "alike"
    assert "Too coarse to tell here: Unlearning accuracy (UA)" in found.headline
    all_coarse = {name: measured(0.0, apart) for name in ("ua", "mia", "lira_auc")}
    assert verdict(evidence(**all_coarse), "approximate").outcome == "undecided"


def test_without_a_retrained_model_nothing_is_called_forgotten():
    found = verdict(without_retrained(evidence()), "approximate")
    assert (found.outcome, found.flags) == ("not-compared", ())
    assert "No retrained model" in found.rests_on


@pytest.mark.parametrize(("ua", "outcome"), [(0.6, "remembers"), (1.0, "not-compared")])
def test_a_class_that_is_still_named_is_remembered_whatever_there_is_to_compare(ua, outcome):
    found = without_retrained(evidence("class", ua=measured(ua)))
    assert verdict(found, "approximate").outcome == outcome


def test_an_exact_rerun_is_exact_where_its_bits_do_not_say_otherwise():
    same = replace(evidence(), identical_to_retrained=True)
    assert "bit for bit" in verdict(same, "exact-rerun").headline
    assert "decide nothing" in verdict(same, "exact-rerun").rests_on
    unknown = verdict(evidence(), "exact-rerun")
    assert unknown.outcome == "exact"
    assert "There was no fresh run" in unknown.headline
    other = replace(evidence(), identical_to_retrained=False)
    assert verdict(other, "exact-rerun").outcome == "contradicted"


def test_a_no_op_is_one_only_where_the_model_is_unchanged():
    same = replace(evidence(), identical_to_original=True)
    assert verdict(same, "no-op-unused").outcome == "unused"
    assert verdict(evidence(), "no-op-unused").outcome == "contradicted"


def test_identical_bits_make_no_approximate_method_exact():
    same = replace(evidence(), identical_to_retrained=True)
    assert verdict(same, "approximate").outcome == "alike"


def test_without_evidence_only_the_certificate_speaks():
    outcomes = {c: verdict(None, c).outcome for c in ("exact-rerun", "no-op-unused", "approximate")}
    assert list(outcomes.values()) == ["exact", "unused", "not-compared"]
    assert set(USUAL) == {f.measure for f in verdict(evidence(), "approximate").findings}


def test_an_attacker_that_guesses_is_not_listened_to():
    """MIA is 0 against 100 %, but the attacker cannot tell what it learnt from either."""
    apart = {"mia": measured(0.0, (1.0, 1.0, 1.0))}
    guessing = {**apart, "mia_success": measured(0.51, (0.5, 0.5, 0.5))}
    for changes, says in ((apart, "remembers"), (guessing, "coarse")):
        found = verdict(evidence(**changes), "approximate").findings
        assert [f.says for f in found if f.measure == "mia"] == [says]
