"""What every method that forgets keeps to: the same bits however it is run, and honest figures."""

import random
from functools import cache

import numpy as np
import pytest

from clients import job
from fedsparse import data, registry, wire
from fedsparse.config import StrategySettings
from fedsparse.runs import RunFolder
from simulations import experiment
from simulations.experiment import resume_experiment
from simulations.grid import CohortGrid, InlineExecutor
from strategies.addressing import MeteredGrid
from strategies.base import SparseStrategy
from strategies.unlearning.base import Unlearning
from tests.tiny_runs import model_bytes, rows, run, run_and_interrupt, tiny
from tests.unlearning.forgetting import METHODS, QUICK, child, dense, method, model_of, sparse

FLAT = ("model.name=mlp", *QUICK)
ROUNDS = "run.rounds=3"


def world(name):
    """Return a small world in which a method works."""
    return QUICK if name == "discriminative-pruning" else FLAT


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """Return a parent for a world, made when it is first asked for."""

    @cache
    def made(where, *strategy):
        out = tmp_path_factory.mktemp("parent") / "run"
        run(out, *where, ROUNDS, *(strategy or dense()))
        return out

    return made


@pytest.fixture(scope="module")
def finished(parent, tmp_path_factory):
    """Return a finished run of a method, made when it is first asked for."""

    @cache
    def made(name):
        out = tmp_path_factory.mktemp(name) / "run"
        child(out, name, parent(world(name)), *world(name), ROUNDS)
        return out

    return made


def result(out):
    """Return all that a run found: model, rows, and clients' rows."""
    summary = RunFolder.open(out).summary()
    return {
        "model": model_bytes(out),
        "rows": rows(out),
        "clients": RunFolder.open(out).clients(),
        "summary": {k: v for k, v in summary.items() if k not in ("wall_seconds", "run")},
    }


class Restless(InlineExecutor):
    """Clients in any order, each as if in a process of its own: nothing a worker holds is left."""

    def run(self, tasks, timeout, reader=None):
        tasks = list(tasks)
        random.Random(len(tasks)).shuffle(tasks)
        for task in tasks:
            for kept in (job._model, job._backend, job._decode, job._initial):
                kept.cache_clear()
            yield from super().run([task], timeout, None)


@pytest.mark.parametrize("name", METHODS)
def test_resumed_on_other_workers_in_any_order_it_ends_with_the_same_bits(
    finished, parent, tmp_path, monkeypatch, name
):
    def restless(task, on, session):
        app = experiment.CLIENT_APP
        clients = task.config.fleet.clients
        with CohortGrid(app, clients=clients, executor=Restless(app)) as grid:
            return on(grid)

    settings = method(name, parent(world(name)), *world(name), ROUNDS)
    expected = result(finished(name))
    run_and_interrupt(monkeypatch, tmp_path / "run", 3, *settings)
    monkeypatch.setattr(experiment, "_carriers", lambda: {"inline": restless})
    resume_experiment(tmp_path / "run")
    assert result(tmp_path / "run") == expected


@pytest.mark.parametrize("name", ["distillation", "salun", "influence", "discriminative-pruning"])
def test_what_travels_beside_the_model_is_counted(parent, tmp_path, monkeypatch, name):
    sent = {"up": 0, "down": 0}
    plain = MeteredGrid.send_and_receive

    def watched(self, messages, **options):
        asked = list(messages)
        replies = plain(self, asked, **{**options, "reader": None})
        for way, found in (("down", asked), ("up", replies)):
            for message in found:
                for record in message.content.array_records.values():
                    sent[way] += wire.record_bytes(record)
        return replies

    found = parent(world(name), *sparse())
    monkeypatch.setattr(MeteredGrid, "send_and_receive", watched)
    summary = child(tmp_path / "run", name, found, *world(name), "run.rounds=2")
    assert (summary["bytes_up"], summary["bytes_down"]) == (sent["up"], sent["down"])


@pytest.mark.parametrize("name", METHODS)
def test_a_sparse_parent_stays_sparse_costs_less_and_may_travel_rounded(
    finished, parent, tmp_path, name
):
    found, out = parent(world(name), *sparse()), tmp_path / "run"
    summary = child(out, name, found, *world(name), ROUNDS, "strategy.values=int8")
    assert all(row["status"] == "ok" for row in RunFolder.open(out).clients())
    (_, before), (state, mask) = model_of(found), model_of(out)
    assert (mask & before) == mask
    assert (mask == before) == (name not in ("discriminative-pruning", "prune-finetune"))
    assert summary["density"] == pytest.approx(mask.density)
    for tensor, bits in mask.items():
        assert not state[tensor][~bits].any()
        assert state[tensor].any()
    most = 1.01 if name == "prune-finetune" else 0.75
    whole = rows(finished(name))[1:]
    for dense_row, sparse_row in zip(whole, rows(out)[1:], strict=True):
        assert 0 < sparse_row["train_flops"] < most * dense_row["train_flops"]
        assert sparse_row["bytes_up"] < dense_row["bytes_up"]


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"federaser"}))
def test_clients_of_one_sample_or_one_class_end_no_run(parent, tmp_path, name):
    odd = ("data.alpha=0.02", "data.min_per_client=1", "data.samples=120", "client.batch_size=64")
    few = (*world(name), *odd)
    child(tmp_path / "run", name, parent(few), *few, "run.rounds=2")
    told = RunFolder.open(tmp_path / "run").clients()
    assert all(row["status"] == "ok" for row in told)
    assert np.isfinite([row["train_loss"] for row in rows(tmp_path / "run")[1:]]).all()


SAMPLE = sorted(set(METHODS) - {"federaser", "discriminative-pruning"})


@pytest.mark.parametrize("name", SAMPLE)
def test_one_sample_can_be_forgotten(parent, tmp_path, name):
    where = world(name)
    sample = int(data.of(tiny(*where)).ids(2)[0])
    target = f"forget.samples={sample}"
    found = parent(where)
    child(tmp_path / "run", name, found, *where, "run.rounds=2", target=target)
    told = RunFolder.open(tmp_path / "run").clients()
    assert all(row["status"] == "ok" for row in told)
    if registry.load("methods", name).needs_forgotten and name in ("salun", "gradient-ascent"):
        first = [row for row in told if row["round"] == 1]
        assert [(row["client"], row["examples"]) for row in first] == [(2, 1)]


@pytest.mark.parametrize("name", METHODS)
def test_every_key_of_its_own_says_what_it_is_and_has_bounds(name):
    cls = registry.load("methods", name)
    assert issubclass(cls, Unlearning)
    assert issubclass(cls, SparseStrategy)
    for key in set(cls.Settings.model_fields) - set(StrategySettings.model_fields):
        field = cls.Settings.model_fields[key]
        assert field.metadata or "Literal" in str(field.annotation), key
        assert field.description, key
    if cls.knob:
        assert cls.knob in cls.Settings.model_fields
        for strength in cls.grid:
            cls.Settings.model_validate({"name": name, cls.knob: strength})
