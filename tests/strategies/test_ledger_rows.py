"""What a run writes into its ledger, on every kind of loop, killed and resumed or not."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from fedsparse.runs import RunFolder, merkle
from fedsparse.runs.ledger import KEY, NAME, Ledger
from simulations.experiment import CLIENT_APP, resume_experiment
from simulations.grid import CohortGrid
from strategies.ledger_rows import trained_ids, trained_positions
from strategies.task import Task
from tests.device_files import fleet_file
from tests.strategies.stage import QUICK
from tests.strategies.test_rounds import Failing, carry
from tests.tiny_runs import run, run_and_interrupt, tiny

SETTING = (
    *QUICK,
    "strategy.name=static",
    "strategy.density=0.5",
    "fleet.clients=6",
    "fleet.clients_per_round=3",
    "run.rounds=4",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of four rounds, each of three of six clients."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out, *SETTING)
    return out


def entries(out):
    return Ledger(out).verified()


def rows_by_round(out):
    found = {}
    for row in RunFolder.open(out).clients():
        if row["kind"] == "train":
            found.setdefault(row["round"], []).append(row)
    return found


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_entry_names_who_was_asked_in_a_round_and_who_counted(whole):
    first, start, *rounds = entries(whole)
    assert (first["clients"], first["begins"]) == (6, 0)
    assert (start["round"], start["asked"], start["counted"]) == (0, [], [])
    for entry in rounds:
        own = rows_by_round(whole)[entry["round"]]
        assert entry["asked"] == entry["counted"] == [row["client"] for row in own]
    assert [entry["round"] for entry in rounds] == [1, 2, 3, 4]


def test_hashes_are_those_of_the_files_that_the_run_left(whole):
    found = entries(whole)[1:]
    assert found[-1]["model"] == digest(whole / "model.safetensors")
    assert {entry["mask"] for entry in found} == {digest(whole / "mask.safetensors")}
    assert len({entry["model"] for entry in found}) == 5
    assert [after["mask_before"] for _, after in pairwise(found)] == [e["mask"] for e in found[:-1]]


def test_a_clients_samples_enter_once_with_the_root_over_their_ids(whole):
    told = {}
    for entry in entries(whole)[1:]:
        assert not told.keys() & entry["samples"].keys()
        told |= entry["samples"]
        assert {int(client) for client in told} >= set(entry["counted"])
    key, data = bytes.fromhex((whole / KEY).read_text()), Task.of(tiny(*SETTING)).data
    assert len(told) > 3
    for client, (root, count) in told.items():
        ids = data.ids(int(client))
        assert count == len(ids) == data.train_samples(int(client))
        assert root == merkle.root(merkle.leaves(key, int(client), ids)).hex()


def test_what_is_forgotten_is_not_among_the_samples():
    data = Task.of(tiny(*SETTING)).data
    (gone, *_), label = data.ids(2).tolist(), 3
    less = Task.of(tiny(*SETTING, f"forget.samples={gone}", f"forget.classes={label}")).data
    kept = [
        i for i in trained_positions(data, 2) if data.train.y[i] != label and data.rows[i] != gone
    ]
    assert 0 < len(kept) < len(data.ids(2))
    assert trained_ids(less, 2).tolist() == data.rows[kept].tolist()
    assert np.array_equal(less.client(2).train.x, data.train.x[kept])
    assert np.array_equal(trained_ids(data, 2), data.ids(2))


@pytest.mark.parametrize("row", [1, 2, 4])
def test_killed_and_resumed_it_has_the_same_bytes(whole, tmp_path, monkeypatch, row):
    run_and_interrupt(monkeypatch, tmp_path / "run", row, *SETTING)
    resume_experiment(tmp_path / "run")
    assert (tmp_path / "run" / NAME).read_bytes() == (whole / NAME).read_bytes()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", [2, 5])
def test_a_kill_around_an_entry_does_not_show(whole, tmp_path, monkeypatch, nth, when):
    plain, seen = Ledger.append, []

    def killed(self, entry):
        seen.append(entry)
        if len(seen) == nth and when == "after":
            plain(self, entry)
        if len(seen) == nth:
            raise KeyboardInterrupt
        plain(self, entry)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", *SETTING)
    with (tmp_path / "run" / NAME).open("a") as file:
        file.write('{"entry": "round", "rou')
    resume_experiment(tmp_path / "run")
    assert (tmp_path / "run" / NAME).read_bytes() == (whole / NAME).read_bytes()


def test_a_run_that_began_without_a_ledger_goes_on_and_says_from_where(tmp_path, monkeypatch):
    run_and_interrupt(monkeypatch, tmp_path / "run", 4, *SETTING)
    (tmp_path / "run" / NAME).unlink()
    (tmp_path / "run" / KEY).unlink()
    begun = RunFolder.open(tmp_path / "run").checkpoints()[-1] + 1
    resume_experiment(tmp_path / "run")
    first, *rounds = entries(tmp_path / "run")
    assert first["begins"] == begun > 1
    assert [entry["round"] for entry in rounds] == list(range(begun, 5))


def test_clients_that_failed_or_never_replied_were_asked_and_did_not_count(tmp_path):
    config = tiny(*QUICK, "strategy.name=fedavg", "fleet.clients=4")
    folder = carry(tmp_path / "run", config, Failing(CLIENT_APP, clients=4))
    (entry,) = entries(folder.path)[2:]
    assert (entry["asked"], entry["counted"]) == ([0, 1, 2, 3], [0, 3])
    assert sorted(entry["samples"]) == ["0", "3"]


def test_what_clients_did_before_training_is_round_0_with_its_bytes(tmp_path):
    config = tiny("run.rounds=1", "fleet.clients=5", "fleet.clients_per_round=3")
    folder = carry(tmp_path / "run", config, CohortGrid(CLIENT_APP, clients=5))
    start = entries(folder.path)[1]
    row = folder.metrics()[0]
    assert len(start["counted"]) == 3 == len(start["asked"])
    assert [int(client) for client in start["bytes"]] == start["asked"]
    ways = np.array(list(start["bytes"].values())).sum(0).tolist()
    assert ways == [row["bytes_up"], row["bytes_down"]]
    assert min(ways) > 0


def test_clients_that_come_late_were_asked_and_did_not_count(tmp_path):
    fleet = fleet_file(tmp_path, {"share": 0.5, "dense_flops": 1e4}, {"share": 0.5})
    run(tmp_path / "run", *SETTING, f"fleet.profile={fleet}", "fleet.over_selection=1.0")
    lost = 0
    for entry in entries(tmp_path / "run")[2:]:
        own = rows_by_round(tmp_path / "run")[entry["round"]]
        assert entry["asked"] == [row["client"] for row in own]
        assert entry["counted"] == [row["client"] for row in own if row["status"] == "ok"]
        lost += len(entry["asked"]) - len(entry["counted"])
    assert lost > 0


def test_an_asynchronous_update_counts_where_it_lands_and_was_asked_where_it_started(tmp_path):
    setting = (*SETTING, "strategy.name=fedbuff", "strategy.buffer_size=2", "fleet.profile=ideal")
    run(tmp_path / "run", *setting, "strategy.concurrency=4")
    found, own = entries(tmp_path / "run")[2:], rows_by_round(tmp_path / "run")
    started = set()
    for entry in found:
        landed = {row["client"] for row in own[entry["round"]] if row["status"] == "ok"}
        assert set(entry["counted"]) == landed
        started |= set(entry["asked"])
        assert landed <= started
    assert len(found[0]["asked"]) > len(found[0]["counted"]) > 0
    again = tmp_path / "again"
    run(again, *setting, "strategy.concurrency=4")
    assert (again / NAME).read_bytes() == (tmp_path / "run" / NAME).read_bytes()


def test_clients_that_are_never_asked_cost_nothing(tmp_path, monkeypatch):
    from fedsparse.data import FederatedData

    looked, plain = set(), FederatedData.ids
    monkeypatch.setattr(FederatedData, "ids", lambda self, k: (looked.add(k), plain(self, k))[1])
    many = ("data.partition=sampled", "fleet.clients=1000000", "fleet.evaluate_clients=0")
    run(tmp_path / "run", *SETTING, *many)
    asked = {client for entry in entries(tmp_path / "run")[1:] for client in entry["asked"]}
    assert looked == asked
    assert len(asked) == 12
    assert (tmp_path / "run" / NAME).stat().st_size < 10_000
