"""The audit: the right samples, every measure of every model, and runs that do not fit refused."""

import json
import shutil

import numpy as np
import pytest
from tiny_runs import run, tiny

from fedsparse import data
from fedsparse.errors import DataError, RunFolderError
from fedsparse.runs import RunFolder
from simulations.evidence.audit import audit, evidence
from simulations.evidence.examine import MEASURES
from simulations.evidence.record import Evidence
from simulations.evidence.samples import samples
from tests.evidence.digits_models import CLASS, PLAIN, SAMPLES, configs, original, retrained, world


def rows(found):
    return {each.tobytes() for each in found.x}


# -- the samples that are looked at ------------------------------------------------------


def test_a_forgotten_class_is_looked_at_in_training_and_test():
    _, found = world(CLASS)
    assert found.kind == "class"
    assert set(found.forgotten.y.tolist()) == set(found.test_forgotten.y.tolist()) == {3}
    assert 3 not in found.retained.y
    assert 3 not in found.test.y
    parent = data.of(configs(CLASS)[0])
    assert len(found.forgotten) + len(found.retained) == len(parent.train)
    assert found.compared is found.test_forgotten


def test_of_a_forgotten_client_all_samples_are_looked_at_and_the_test_set_is_whole():
    _, found = world(SAMPLES)
    federated = data.of(configs(SAMPLES)[0])
    own = np.concatenate([federated.client(k).train.x for k in (0, 1)])
    assert rows(found.forgotten) == {each.tobytes() for each in own}
    assert not rows(found.forgotten) & rows(found.retained)
    assert (len(found.test), len(found.test_forgotten)) == (359, 0)


def test_what_was_forgotten_before_is_no_part_of_the_target():
    once, twice = (
        tiny(*PLAIN, "forget.classes=3"),
        tiny(*PLAIN, "forget.classes=3", "forget.clients=0"),
    )
    found = samples(once, twice)
    assert found.kind == "client"
    own = data.of(tiny(*PLAIN)).client(0).train
    assert len(found.forgotten) == np.count_nonzero(own.y != 3) < len(own)
    assert 3 not in found.forgotten.y
    with pytest.raises(DataError, match="nothing to audit"):
        samples(once, once)


def test_sets_are_bounded_and_the_same_each_time():
    for case in (SAMPLES, CLASS):
        first, second = (samples(*configs(case), most=50) for _ in range(2))
        sizes = first.sizes()
        assert sizes["retained"] == sizes["test"] == 50
        assert sizes["forgotten"] <= 50
        assert rows(first.retained) == rows(second.retained)
        assert not rows(first.forgotten) & rows(first.retained)


def test_a_regression_has_no_audit():
    plain = ("data.name=synthetic-regression", "data.partition=iid", "model.name=linear")
    with pytest.raises(DataError, match="these targets are numbers"):
        samples(tiny(*plain), tiny(*plain, "forget.clients=0"))


# -- the evidence ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found():
    """Of a class: an unlearned model that is a retrained one, beside three retrained ones."""
    task, looked_at = world(CLASS)
    models = {"original": original(CLASS), "unlearned": retrained(CLASS, 9)}
    references = [retrained(CLASS, seed) for seed in (2, 3)]
    return evidence(task, looked_at, models, retrained(CLASS, 9), references)


def test_the_original_is_far_from_retraining_and_a_retrained_model_is_not(found):
    ua = found.measures["ua"]
    assert ua.original < 0.05
    assert ua.unlearned == ua.retrained == 1.0
    assert found.gaps["unlearned"] == 0.0
    assert found.gaps["original"] > 0.3  # of UA, RA and TA: the attacker guesses
    assert found.measures["mia"].retrained >= 0.99
    assert found.measures["lira_auc"].original > found.measures["lira_auc"].retrained


def test_every_measure_that_applies_is_there_and_named(found):
    assert set(found.measures) == set(MEASURES) - {"backdoor", "rmia_auc"}
    for name, measured in found.measures.items():
        assert measured.spread.models == 3, name
        assert measured.gap == pytest.approx(abs(measured.unlearned - measured.retrained))


def test_bits_and_distances_say_that_two_models_are_one(found):
    assert found.identical_to_retrained is True
    assert found.identical_to_original is False
    same, reference = found.distances["unlearned"], found.distances["reference"]
    assert (same.weights, same.disagreement) == (0.0, 0.0)
    assert same.divergence < 1e-12
    assert reference.weights > 0.5
    assert 1e-4 < reference.divergence < 0.2


def test_evidence_goes_to_json_and_back(found):
    text = json.dumps(found.plain(), allow_nan=False)
    assert Evidence.read(json.loads(text)) == found
    broken = json.loads(text)
    del broken["measures"]["ua"]["gap"]
    with pytest.raises(RunFolderError, match="evidence is damaged"):
        Evidence.read(broken)


def test_without_a_retrained_model_of_this_seed_the_others_mean_stands_for_it(found):
    task, looked_at = world(CLASS)
    models = {"original": original(CLASS), "unlearned": retrained(CLASS, 9)}
    alone = evidence(task, looked_at, models, None, [retrained(CLASS, 2), retrained(CLASS, 3)])
    ra = alone.measures["ra"]
    assert ra.retrained is None
    assert ra.spread.models == 2
    assert ra.gap == pytest.approx(abs(ra.unlearned - ra.spread.mean))
    assert alone.distances == {}
    assert alone.identical_to_retrained is None
    nothing = evidence(task, looked_at, models, None, [])
    assert nothing.gaps == nothing.attacks == {}
    assert nothing.measures["ua"].unlearned == 1.0


# -- run folders -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run with a backdoor of client 0, the run without that client, and one of another seed."""
    home = tmp_path_factory.mktemp("runs")
    plain = ("data.seed=0", "attack.clients=0", "attack.label=1", "strategy.name=fedavg")
    forget = (*plain, "forget.clients=0")
    run(home / "parent", *plain)
    run(home / "again", *forget)
    run(home / "other", *forget, "run.seed=5")
    run(home / "elsewhere", *forget, "data.seed=1", "run.rounds=1")
    return {path.name: RunFolder.open(path) for path in home.iterdir()}


def test_runs_are_audited_from_their_folders(folders):
    before = {
        path: path.read_bytes() for path in folders["parent"].path.rglob("*") if path.is_file()
    }
    found = audit(folders["parent"], folders["again"], folders["again"], [folders["other"]])
    assert (found.kind, found.references) == ("client", 1)
    assert found.identical_to_retrained is True
    triggered = np.count_nonzero(data.of(folders["parent"].config).test.y != 1)
    assert found.samples["triggered"] == triggered
    assert 0 <= found.measures["backdoor"].unlearned <= 1
    assert found.measures["backdoor"].retrained == found.measures["backdoor"].unlearned
    ta = folders["again"].summary()["accuracy"]
    assert found.measures["ta"].unlearned == pytest.approx(ta)
    after = {
        path: path.read_bytes() for path in folders["parent"].path.rglob("*") if path.is_file()
    }
    assert before == after


def test_bits_of_runs_that_did_other_work_are_not_compared(folders):
    found = audit(folders["parent"], folders["again"], folders["other"])
    assert found.identical_to_retrained is None
    assert found.measures["ua"].retrained is not None


def test_runs_that_do_not_fit_are_refused(folders):
    with pytest.raises(RunFolderError, match=r"another \[data\]"):
        audit(folders["parent"], folders["again"], folders["elsewhere"])
    with pytest.raises(RunFolderError, match="forgets nothing"):
        audit(folders["parent"], folders["parent"])


def test_a_damaged_model_is_refused(folders, tmp_path):
    copy = tmp_path / "damaged"
    shutil.copytree(folders["again"].path, copy)
    (copy / "model.safetensors").write_bytes(b"x")
    with pytest.raises(RunFolderError, match="missing or damaged"):
        audit(folders["parent"], RunFolder.open(copy))
