"""Each fault of a simulated grid, and what the round loop makes of it."""

import pytest

from fedsparse import messages
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Silent
from simulations import faults
from simulations.experiment import CLIENT_APP
from simulations.faults import FaultyGrid, Schedule
from strategies import foreign
from strategies.execute import execute
from strategies.task import Task
from tests.tiny_runs import model_bytes, tiny

SETTING = (
    *("model.name=mlp", "model.width=0.25", "data.samples=160", "data.public_samples=40"),
    *("data.test_samples=40", "run.rounds=3", "strategy.name=static", "strategy.density=0.2"),
    *("strategy.pretrain_epochs=1",),
)
HURT = 1


def carried(out, found, shuffled=True, *more):
    """Run under some faults; return the folder."""
    config = tiny(*SETTING, *more)
    task = Task.of(config)
    folder = RunFolder.create(out, config, command="faults")
    schedule = Schedule(1, found, shuffled)
    with FaultyGrid(CLIENT_APP, clients=4, schedule=schedule) as grid, folder.lock():
        execute(task, foreign.make(task), grid, folder, Silent())
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return carried(tmp_path_factory.mktemp("clean") / "run", {}, False)


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The run in which client 1 just does not reply in round 2."""
    place = (messages.TRAIN, 2, HURT)
    return carried(tmp_path_factory.mktemp("without") / "run", {place: faults.LOST}, False)


REASONS = {
    faults.UNASKED: "no reply in time",
    faults.LOST: "no reply in time",
    faults.LATE: "no reply in time",
    faults.MISDIRECTED: "no reply in time",
    faults.RAISES: "ValueError: client 1 broke",
    faults.DIES: "client 1's process ended",
    faults.FLIPPED: "the payload is damaged",
    faults.CUT: "the payload is damaged",
    faults.NAN: "the payload holds NaN",
    faults.BARE: "the reply lacks 'arrays'",
    faults.UNLABELLED: "the reply lacks 'metrics'",
}


def test_every_fault_is_looked_at_here():
    assert {*REASONS, *faults.HARMLESS} == set(faults.KINDS)


@pytest.mark.parametrize("fault", REASONS)
def test_a_reply_that_cannot_count_is_named_and_left_out(tmp_path, without, clean, fault):
    folder = carried(tmp_path / "run", {(messages.TRAIN, 2, HURT): fault})
    failed = [row for row in folder.clients() if row["status"] != "ok"]
    assert [(row["round"], row["client"]) for row in failed] == [(2, HURT)]
    assert failed[0]["reason"].startswith(REASONS[fault])
    assert model_bytes(folder.path) == model_bytes(without.path) != model_bytes(clean.path)


@pytest.mark.parametrize("fault", sorted(faults.HARMLESS))
def test_a_reply_that_comes_twice_or_by_a_wrong_clock_counts_once(tmp_path, clean, fault):
    folder = carried(tmp_path / "run", {(messages.TRAIN, 2, k): fault for k in range(4)})
    assert model_bytes(folder.path) == model_bytes(clean.path)


@pytest.mark.parametrize("values", ["f32", "f16"])
def test_a_late_reply_does_not_stand_for_the_client_in_the_next_round(tmp_path, values):
    """It comes ahead of the client's own one, and is of a model that is over."""
    late = {(messages.TRAIN, 1, k): faults.LATE for k in (0, 3)}
    lost = dict.fromkeys(late, faults.LOST)
    more = (f"strategy.values={values}",)
    folders = [carried(tmp_path / n, f, False, *more) for n, f in (("late", late), ("lost", lost))]
    assert model_bytes(folders[0].path) == model_bytes(folders[1].path)
    up = [[row["bytes_up"] for row in folder.metrics()] for folder in folders]
    assert up[0] == up[1]


def test_a_late_reply_of_a_client_that_is_not_asked_again_is_nobodys(tmp_path):
    """Rounds of two of four clients: whoever is late is often not in the next cohort."""
    late = {(messages.TRAIN, n, k): faults.LATE for n in (1, 2) for k in (0, 1)}
    more = ("fleet.clients_per_round=2", "fleet.min_replies=0.01", "run.seed=3")
    runs = []
    for name, found in (("late", late), ("lost", dict.fromkeys(late, faults.LOST))):
        config_folder = carried(tmp_path / name, found, False, *more)
        runs.append((model_bytes(config_folder.path), config_folder.clients()))
    assert runs[0] == runs[1]


def test_a_schedule_is_what_its_seed_says():
    def drawn(seed):
        return Schedule.of(seed, rounds=3, clients=4, rate=0.5)

    assert drawn(7) == drawn(7)
    assert drawn(7).faults != drawn(8).faults
    assert {f for seed in range(50) for f in drawn(seed).faults.values()} == set(faults.KINDS)
