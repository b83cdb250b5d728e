"""Fit or refuse: who holds the training, who gets less of it, what is said before round 1."""

import json
import re

import numpy as np
import pytest

from fedsparse import devices
from fedsparse.errors import ConfigError
from fedsparse.messages import Plan
from fedsparse.runs import RunFolder
from simulations.clock import ClockedGrid
from simulations.enrolment import Enrolment
from simulations.experiment import CLIENT_APP
from simulations.grid import CohortGrid
from strategies import foreign
from strategies.addressing import Directory
from strategies.seats import FULL, Seat
from strategies.task import Task
from tests.device_files import fleet_file, profile_file
from tests.tiny_runs import run, tiny

MLP = ("model.name=mlp", "fleet.evaluate_clients=0", "strategy.name=fedavg")
BOTH = frozenset({"batch", "density"})


def enrolment(*assignments: str) -> Enrolment:
    config = tiny(*MLP, *assignments)
    return Enrolment(Task.of(config), devices.load(config.fleet, config.run.seed))


@pytest.fixture
def small_and_large(tmp_path):
    """Some devices have 25 kB and others plenty; the dense training needs 55 kB."""
    return fleet_file(tmp_path, {"share": 0.73, "memory_bytes": 25e3}, {"share": 0.27})


def test_the_foreseen_price_is_what_clients_report(tmp_path):
    path = profile_file(tmp_path)
    run(tmp_path / "run", *MLP, f"fleet.profile={path}")
    found = enrolment(f"fleet.profile={path}")
    for row in RunFolder.open(tmp_path / "run").clients():
        price = found.price(row["client"], Plan(), None)
        assert price.flops == row["train_flops"]
        assert price.memory.total == row["memory_bytes"]


def test_all_clients_counted_as_columns_are_those_refused_one_by_one(tmp_path):
    path = fleet_file(
        tmp_path,
        {"share": 1.0, "memory_bytes": 5.5e4},
        {"share": 0.5, "storage_bytes": 5e3},
        {"share": 0.5, "battery_joules": 1.0},
        memory=0.4,
    )
    found = enrolment(f"fleet.profile={path}", "fleet.clients=40", "data.samples=1400")
    alone = [found.seat(client, Plan(), None, frozenset()) for client in range(40)]
    refusals = found.refusals(Plan(), None, frozenset())
    assert refusals.total == found.refused(Plan(), None, frozenset()) == alone.count(None)
    assert all(refusals.reasons.values())
    assert sum(refusals.profiles.values()) == refusals.total < 40


def test_a_client_gets_the_largest_seat_that_its_device_holds(small_and_large):
    found = enrolment(f"fleet.profile={small_and_large}", "fleet.fit=both")
    seats = {found.seat(client, Plan(), None, BOTH)[0] for client in range(4)}
    reduced = next(seat for seat in seats if seat != FULL)
    assert FULL in seats
    offered = list(found.seats(BOTH))
    assert offered[:4] == [FULL, Seat(batch_size=8), Seat(batch_size=4), Seat(batch_size=2)]
    assert {seat.share for seat in offered[4:]} == {0.5, 0.25, 0.125, 0.0625, 0.03125}
    small = next(c for c in range(4) if found.seat(c, Plan(), None, BOTH)[0] == reduced)
    larger = offered[: offered.index(reduced)]
    assert all(found.price(small, Plan(), None, seat).memory.total > 25e3 for seat in larger)
    assert found.price(small, Plan(), None, reduced).memory.total <= 25e3


def test_who_cannot_hold_the_training_is_never_asked_and_the_run_says_so(tmp_path, small_and_large):
    summary = run(tmp_path / "run", *MLP, f"fleet.profile={small_and_large}", "fleet.clients=8")
    said = json.loads((tmp_path / "run" / "devices.json").read_text())
    refused = said["refused"]["memory"]
    assert 0 < refused < 8
    assert summary["clients_refused"] == refused
    assert said["refused_by_profile"] == {"kind-0": refused}
    rows = RunFolder.open(tmp_path / "run").clients()
    assert {row["device"] for row in rows} == {"kind-1"}
    assert len({row["client"] for row in rows}) == 8 - refused
    assert all(row["memory_bytes"] <= 1e9 for row in rows)


def test_with_a_smaller_part_of_the_model_all_take_part(tmp_path, small_and_large):
    settings = (*MLP, f"fleet.profile={small_and_large}", "fleet.clients=8", "run.rounds=6")
    summary = run(tmp_path / "run", *settings, "fleet.fit=both")
    rows = RunFolder.open(tmp_path / "run").clients()
    assert len({row["client"] for row in rows}) == 8
    assert all(row["memory_bytes"] <= 25e3 for row in rows if row["device"] == "kind-0")
    up = {
        kind: [r["bytes_up"] for r in rows if r["device"] == kind] for kind in ("kind-0", "kind-1")
    }
    assert max(up["kind-0"]) < min(up["kind-1"])
    assert summary["clients_refused"] == 0
    assert json.loads((tmp_path / "run" / "devices.json").read_text())["reduced"]["density"] > 0
    assert summary["accuracy"] > 0.5


def test_a_smaller_batch_is_really_trained_with(tmp_path):
    path = profile_file(tmp_path, memory_bytes=45e3)
    settings = (*MLP, f"fleet.profile={path}")
    with pytest.raises(ConfigError, match="no client holds"):
        run(tmp_path / "refused", *settings)
    run(tmp_path / "run", *settings, "fleet.fit=batch")
    rows = RunFolder.open(tmp_path / "run").clients()
    assert {row["status"] for row in rows} == {"ok"}
    assert max(row["memory_bytes"] for row in rows) <= 45e3
    run(tmp_path / "plain", *settings[:-1], "client.batch_size=16")
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() != (
        tmp_path / "run" / "model.safetensors"
    ).read_bytes()


def test_a_fleet_that_holds_nothing_says_which_density_would_fit_and_it_does(tmp_path):
    path = profile_file(tmp_path, memory_bytes=20e3)
    with pytest.raises(ConfigError, match="no client holds the training of 'mlp'") as refusal:
        run(tmp_path / "run", *MLP, f"fleet.profile={path}")
    assert not (tmp_path / "run").exists()
    fits = float(re.search(r"strategy\.density=([0-9.e-]+)", str(refusal.value))[1])
    assert 0.05 < fits < 0.5
    sparse = (*MLP[:-1], "strategy.name=static", f"fleet.profile={path}")
    run(tmp_path / "fits", *sparse, f"strategy.density={fits}")
    with pytest.raises(ConfigError, match="no client holds"):
        run(tmp_path / "larger", *sparse, f"strategy.density={fits * 1.05}")


def test_the_advised_density_fits_where_the_largest_device_has_the_most_samples(tmp_path):
    """Memory and samples are drawn apart: what fits is sought over pairs of both."""
    path = fleet_file(tmp_path, {"share": 1.0, "memory_bytes": 9e3}, memory=0.3)
    unlike = ("client.batch_size=64", "data.alpha=0.1", "fleet.min_replies=0.1")
    sparse = ("strategy.name=static", "strategy.density=0.9", f"fleet.profile={path}")
    settings = (*MLP[:-1], *unlike, *sparse)
    with pytest.raises(ConfigError, match="no client holds") as refusal:
        run(tmp_path / "run", *settings)
    fits = float(re.search(r"strategy\.density=([0-9.e-]+)", str(refusal.value))[1])
    run(tmp_path / "fits", *settings, f"strategy.density={fits}")


@pytest.mark.parametrize(
    ("lacks", "said"),
    [({"storage_bytes": 2e3}, "bytes of storage"), ({"battery_joules": 1.0}, "joules of battery")],
)
def test_what_lacks_is_named(tmp_path, lacks, said):
    path = profile_file(tmp_path, **lacks)
    with pytest.raises(ConfigError, match=rf"it needs [\d,]+ {said} at least") as refusal:
        run(tmp_path / "run", *MLP, f"fleet.profile={path}")
    assert "--set strategy.name=static --set strategy.density=0.0" in str(refusal.value)


@pytest.mark.parametrize(
    "settings",
    [
        ("strategy.name=fedbuff", "strategy.density=0.1", "strategy.start_density=0.9"),
        ("strategy.alpha=1.0", "strategy.stop_round=100", "strategy.granularity=model"),
        ("strategy.name=static", "strategy.criterion=snip", "strategy.scored_by=clients"),
    ],
    ids=["the first mask", "the largest adjustment", "scoring the dense model"],
)
def test_a_methods_heaviest_demand_is_looked_at_before_the_run(tmp_path, settings):
    """Each trains within 19.5 kB, and asks for more at some time."""
    path = profile_file(tmp_path, memory_bytes=19.5e3)
    with pytest.raises(ConfigError, match="no client holds the training"):
        run(tmp_path / "run", *MLP[:-1], *settings, f"fleet.profile={path}")
    assert not (tmp_path / "run").exists()
    plain = ("strategy.name=static", f"fleet.profile={path}", "run.rounds=1")
    assert run(tmp_path / "plain", *MLP[:-1], *plain)["clients_refused"] == 0


def test_weights_are_scored_by_clients_that_hold_the_dense_model(small_and_large):
    settings = ("strategy.name=static", "strategy.criterion=snip", "strategy.scored_by=clients")
    config = tiny(*MLP[:-1], *settings, f"fleet.profile={small_and_large}", "fleet.clients=8")
    task, fleet = Task.of(config), devices.load(config.fleet, config.run.seed)
    inner = CohortGrid(CLIENT_APP, clients=8)
    grid = ClockedGrid(inner, Directory.of(inner, 8), task=task, fleet=fleet)
    strategy = foreign.make(task)
    trained = grid.cohort(0, Plan(), None, frozenset())
    scored = grid.cohort(0, strategy.scoring_plan, None, frozenset())
    assert len(trained) == 8
    assert {fleet.device(client).profile for client in scored} == {"kind-1"}


def test_where_activations_alone_are_too_much_no_density_is_promised(tmp_path):
    path = profile_file(tmp_path, memory_bytes=2e3)
    with pytest.raises(ConfigError, match=r"no density would fit: lower client\.batch_size"):
        run(tmp_path / "run", *MLP, f"fleet.profile={path}")


def test_a_microcontroller_trains_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot train at all \(memory_bytes = 0\)"):
        run(tmp_path / "run", *MLP, "fleet.profile=microcontroller")


def test_fedtinys_bounded_buffer_stands_beside_the_dense_gradient(tmp_path):
    """METHODS G4: at density 0.01 the buffer is at most 0.02 of PruneFL's dense gradient."""
    run(tmp_path / "run", "strategy.density=0.01", "fleet.profile=laptop", "run.rounds=1")
    memory = json.loads((tmp_path / "run" / "devices.json").read_text())["memory_by_method"]
    fedtiny = next(v for k, v in memory.items() if k.startswith("FedTiny"))
    prunefl = next(v for k, v in memory.items() if k.startswith("PruneFL"))
    assert 0 < fedtiny["buffer"] <= 0.02 * prunefl["buffer"]
    assert np.isclose(fedtiny["parameters"], prunefl["parameters"])
