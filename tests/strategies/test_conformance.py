"""What every registered strategy keeps to, whatever its method is.

It resumes to the same bits, whoever carries its messages; what it counts is what was sent; its
densities are those of the masks; what it does not know it refuses in one line.
"""

import random
from functools import cache

import numpy as np
import pytest

from clients import job
from fedsparse import registry, wire
from fedsparse.errors import ConfigError
from fedsparse.runs import RunFolder
from simulations import experiment
from simulations.experiment import resume_experiment
from simulations.grid import CohortGrid, InlineExecutor
from simulations.personal_models import Personaliser
from strategies.addressing import MeteredGrid
from strategies.base import SparseStrategy
from tests.tiny_runs import model_bytes, rows, run, run_and_interrupt, tiny

ASYNCHRONOUS = {"fedasync", "fedbuff"}
"""They take replies one by one, by a simulated clock; `test_asynchronous.py` is theirs.

Methods of unlearning begin with another run's model; `tests/unlearning` is theirs.
"""

REGRESSION = {"nldp", "ldp-iht"}
"""They make linear models of numbers, and their clients test nothing; `test_ldp.py` is theirs."""

NAMES = sorted(
    set(registry.BUILTIN["strategies"]) - ASYNCHRONOUS - REGRESSION - set(registry.METHODS)
)
DENSE = {name for name in NAMES if registry.load("strategies", name).Settings().density == 1.0}
PRUNES_DOWN = {"lotteryfl", "sub-fedavg"}
"""Their clients start with the whole model and prune it until it has the density asked for."""

FEW = (
    "run.rounds=3",
    "fleet.clients=6",
    "fleet.clients_per_round=4",
    "data.client_test_fraction=0.3",
)


def settings(name, *more):
    """Return a tiny run of a strategy: each client is asked in some rounds, not in all."""
    density = () if name in DENSE else ("strategy.density=0.3",)
    return (*FEW, f"strategy.name={name}", *density, *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a finished run of a strategy, made when it is first asked for."""

    @cache
    def made(name):
        out = tmp_path_factory.mktemp(name) / "run"
        run(out, *settings(name))
        return out

    return made


def result(out):
    """Return all that a run found: model, rows, clients' rows, and what clients keep."""
    summary = RunFolder.open(out).summary()
    return {
        "model": model_bytes(out),
        "rows": rows(out),
        "clients": RunFolder.open(out).clients(),
        "summary": {k: v for k, v in summary.items() if k not in ("wall_seconds", "run")},
    }


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_and_resumed_it_ends_with_the_same_bits(finished, tmp_path, monkeypatch, name):
    run_and_interrupt(monkeypatch, tmp_path / "run", 3, *settings(name))
    resume_experiment(tmp_path / "run")
    assert result(tmp_path / "run") == result(finished(name))


class Restless(InlineExecutor):
    """Clients in any order, each as if in a process of its own: nothing a worker holds is left."""

    def run(self, tasks, timeout, reader=None):
        tasks = list(tasks)
        random.Random(len(tasks)).shuffle(tasks)
        for task in tasks:
            for kept in (job._model, job._backend, job._decode, job._initial):
                kept.cache_clear()
            yield from super().run([task], timeout, None)


@pytest.mark.parametrize("name", NAMES)
def test_any_order_and_any_worker_gives_the_same_bits(finished, tmp_path, monkeypatch, name):
    def restless(task, on, session):
        app = experiment.CLIENT_APP
        clients = task.config.fleet.clients
        with CohortGrid(app, clients=clients, executor=Restless(app)) as grid:
            return on(grid)

    monkeypatch.setattr(experiment, "_carriers", lambda: {"inline": restless})
    run(tmp_path / "run", *settings(name))
    assert result(tmp_path / "run") == result(finished(name))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fedem"])
def test_personal_models_made_afterwards_are_those_that_clients_tested(finished, name):
    """fedem's clients use a mixture, which is no single model."""
    made = Personaliser(finished(name))
    found = {row.client: row.accuracy_personal for row in made.make(range(6))}
    made.close()
    tested = {
        row["client"]: row["accuracy"]
        for row in RunFolder.open(finished(name)).clients()
        if row["kind"] == "evaluate"
    }
    assert found == tested


@pytest.mark.parametrize("name", NAMES)
def test_every_byte_that_is_counted_was_sent(tmp_path, monkeypatch, name):
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

    monkeypatch.setattr(MeteredGrid, "send_and_receive", watched)
    summary = run(tmp_path / "run", *settings(name))
    assert (summary["bytes_up"], summary["bytes_down"]) == (sent["up"], sent["down"])


SLOW = {"pfedgate": ("run.rounds=8", "client.lr=0.2", "strategy.gate_start=0.95")}
"""What a method needs to learn something on so little."""


@pytest.mark.parametrize("name", NAMES)
def test_values_may_travel_rounded(tmp_path, name):
    summary = run(tmp_path / "run", *settings(name, "strategy.values=int8", "run.rounds=1"))
    assert summary["rounds"] == 1
    assert all(row["status"] == "ok" for row in RunFolder.open(tmp_path / "run").clients())


@pytest.mark.parametrize("name", NAMES)
def test_its_clients_are_tested_and_learn(finished, tmp_path, name):
    if name in SLOW:
        summary = run(tmp_path / "run", *settings(name, *SLOW[name]))
    else:
        summary = RunFolder.open(finished(name)).summary()
    assert 0.15 < summary["accuracy_personal_mean"] <= 1
    assert 0 <= summary["accuracy_personal_p10"] <= 1
    has_one = registry.load("strategies", name).global_model
    assert (summary["accuracy"] is None) != has_one


@pytest.mark.parametrize("name", NAMES)
def test_density_is_that_which_was_asked_for(finished, name):
    before = 1.0
    for row in rows(finished(name)):
        if name in DENSE:
            assert 0 < row["density"] <= 1
        elif name in PRUNES_DOWN:
            assert 0.3 - 1e-3 <= row["density"] <= before
            before = row["density"]
        else:
            assert 0 < row["density"] <= 0.3 + 1e-3
        for density in row["layer_density"].values():
            assert 0 < density <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("density", ["0", "1.5", "nan", "true", "'much'"])
def test_a_density_out_of_range_is_refused_in_one_line(name, density):
    with pytest.raises(ConfigError, match=r"strategy\.density = ") as refused:
        tiny(f"strategy.name={name}", f"strategy.density={density}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_key_is_refused_with_the_nearest(name):
    with pytest.raises(ConfigError, match=r"unknown key 'strategy\.vales'; did you mean"):
        tiny(f"strategy.name={name}", "strategy.vales=f16")


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_its_own_says_what_it_is_and_has_bounds(name):
    cls = registry.load("strategies", name)
    assert issubclass(cls, SparseStrategy)
    assert cls.__doc__
    for key, field in cls.Settings.model_fields.items():
        bounded = (
            field.metadata or field.annotation in (bool,) or "Literal" in str(field.annotation)
        )
        assert bounded or key == "name", key


@pytest.mark.parametrize("name", NAMES)
def test_a_client_of_one_sample_or_one_class_ends_no_run(tmp_path, name):
    out = tmp_path / "run"
    summary = run(
        out,
        *settings(name),
        "data.alpha=0.02",
        "data.min_per_client=1",
        "data.samples=120",
        "client.batch_size=64",
        "fleet.min_replies=0.1",
    )
    assert summary["rounds"] == 3
    assert np.isfinite([row["train_loss"] for row in rows(out)[1:]]).all()
