"""The simulated clock: seconds and joules worked out by hand, and who is late, lost or away."""

import json
import math
from collections import defaultdict

import pytest

from fedsparse.errors import ConfigError, GridError, RunFolderError, TooFewRepliesError
from fedsparse.runs import RunFolder
from simulations.experiment import resume_experiment
from strategies.trips import Trip
from tests.device_files import fleet_file, profile_file
from tests.test_resume import run_and_kill
from tests.tiny_runs import model_bytes, rows, run, tiny

QUICK = ("model.name=mlp", "data.samples=240", "fleet.evaluate_clients=0")
SPREAD = {"compute": 0.6, "bandwidth": 0.6}


def clients(out, number=None):
    """Return the rows of clients, of one round or of all."""
    found = RunFolder.open(out).clients()
    return [row for row in found if number is None or row["round"] == number]


# -- arithmetic ---------------------------------------------------------------------------


def test_a_clients_seconds_and_joules_are_those_worked_out_by_hand(tmp_path):
    path = profile_file(tmp_path)
    run(tmp_path / "run", *QUICK, "strategy.name=fedavg", f"fleet.profile={path}")
    found = clients(tmp_path / "run")
    assert len(found) == 12
    for row in found:
        assert row["device"] == "plain"
        assert row["download_seconds"] == pytest.approx(0.25 + row["bytes_down"] / 4e4, abs=1e-9)
        assert row["compute_seconds"] == pytest.approx(row["train_flops"] / 1e5, abs=1e-9)
        assert row["upload_seconds"] == pytest.approx(0.25 + row["bytes_up"] / 1e4, abs=1e-9)
        radio = row["download_seconds"] + row["upload_seconds"]
        assert row["energy_joules"] == pytest.approx(
            2.0 * row["compute_seconds"] + 0.5 * radio, abs=1e-9
        )


def test_a_sparse_model_computes_at_the_devices_sparse_speed(tmp_path):
    """Density by FLOPs is about 0.1 and sparse kernels reach half of 1e5 FLOP/s."""
    path = profile_file(tmp_path)
    run(tmp_path / "run", *QUICK, "strategy.name=static", f"fleet.profile={path}")
    for row in clients(tmp_path / "run"):
        assert row["compute_seconds"] == pytest.approx(row["train_flops"] / 5e4, abs=1e-9)


def test_a_round_lasts_as_long_as_its_slowest_client_and_rounds_follow_each_other(tmp_path):
    path = fleet_file(tmp_path, {"share": 1.0}, **SPREAD)
    summary = run(tmp_path / "run", *QUICK, f"fleet.profile={path}")
    table = rows(tmp_path / "run")
    began = table[0]["simulated_seconds"]
    assert began > 0
    for number in (1, 2, 3):
        of_round = clients(tmp_path / "run", number)
        assert {row["started"] for row in of_round} == {began}
        ends = [
            row["started"] + row["download_seconds"] + row["compute_seconds"]
            + row["upload_seconds"]
            for row in of_round
        ]  # fmt: skip
        assert len(set(ends)) > 1
        assert table[number]["simulated_seconds"] == pytest.approx(max(ends), abs=1e-9)
        assert table[number]["energy_joules"] == pytest.approx(
            math.fsum(row["energy_joules"] for row in of_round), abs=1e-9
        )
        began = table[number]["simulated_seconds"]
    assert summary["simulated_seconds"] == began
    assert summary["energy_joules"] == math.fsum(row["energy_joules"] for row in table)


def test_the_exchanges_before_round_1_take_time_and_energy(tmp_path):
    """Selection sends candidates and takes forward passes, which clients report."""
    path = profile_file(tmp_path)
    run(tmp_path / "run", *QUICK, "model.name=cnn", f"fleet.profile={path}")
    first = rows(tmp_path / "run")[0]
    assert first["simulated_seconds"] > 4 * 0.25
    assert first["energy_joules"] > 0


TRIP = Trip(3, "plain", 10.0, 2.0, 4.0, 1.0, compute_watts=3.0, radio_watts=0.5, bytes_down=100)


def test_an_upload_that_never_began_has_no_bytes():
    """Even where it would have taken no time."""
    trip = Trip(0, "plain", 0.0, 1.0, 4.0, 0.0, bytes_down=100, bytes_up=70)
    assert trip.cut(3.0, "late", "too late").bytes_up == 0
    assert trip.cut(5.0, "late", "too late").bytes_up == 70


@pytest.mark.parametrize(
    ("end", "seconds", "joules", "down"),
    [(10.0, (0, 0, 0), 0.0, 0), (11.0, (1, 0, 0), 0.5, 50), (12.0, (2, 0, 0), 1.0, 100),
     (15.0, (2, 3, 0), 10.0, 100), (16.5, (2, 4, 0.5), 13.25, 100), (99, (2, 4, 1), 13.5, 100)],
)  # fmt: skip
def test_a_trip_that_is_cut_counts_what_was_done_by_then(end, seconds, joules, down):
    cut = TRIP.cut(end, "late", "too late")
    assert (cut.download_seconds, cut.compute_seconds, cut.upload_seconds) == seconds
    assert cut.energy_joules == pytest.approx(joules, abs=1e-12)
    assert cut.bytes_down == down
    assert (cut.status, cut.reason) == ("late", "too late")


# -- a clock with infinite resources changes nothing ---------------------------------------


@pytest.mark.parametrize(
    "strategy", ["fedavg", "static", "fedtiny", "flwr.serverapp.strategy:FedAvg"]
)
def test_with_infinite_resources_the_bits_are_those_without_a_clock(tmp_path, strategy):
    part = ("fleet.clients=6", "fleet.clients_per_round=3", f"strategy.name={strategy}")
    run(tmp_path / "plain", *QUICK, *part)
    summary = run(tmp_path / "ideal", *QUICK, *part, "fleet.profile=ideal")
    assert model_bytes(tmp_path / "ideal") == model_bytes(tmp_path / "plain")
    assert summary["simulated_seconds"] == summary["energy_joules"] == 0
    clock = {"simulated_seconds", "waited_seconds", "energy_joules"}
    plain, ideal = (
        [{k: v for k, v in row.items() if k not in clock} for row in rows(tmp_path / name)]
        for name in ("plain", "ideal")
    )
    assert plain == ideal


# -- deadlines, over-selection, drop-outs --------------------------------------------------

UNLIKE = ("fleet.clients=12", "fleet.clients_per_round=6", "run.rounds=4", "strategy.name=static")


def test_replies_after_the_deadline_are_not_learnt_from(tmp_path):
    path = fleet_file(tmp_path, {"share": 1.0}, **SPREAD)
    limits = ("fleet.deadline=1.34", "fleet.min_replies=0.1")
    run(tmp_path / "run", *QUICK, *UNLIKE, f"fleet.profile={path}", *limits)
    found = clients(tmp_path / "run")
    late = [row for row in found if row["status"] == "late"]
    assert 0 < len(late) < len(found)
    for row in found:
        took = row["download_seconds"] + row["compute_seconds"] + row["upload_seconds"]
        assert took <= 1.34 + 1e-9
        assert (row["status"] == "late") == (row["loss"] is None)
    for row in late:
        assert row["reason"].startswith("late")
    for number, row in enumerate(rows(tmp_path / "run")[1:], 1):
        assert row["clients_late"] == sum(r["round"] == number for r in late)
        assert row["bytes_up"] == sum(r["bytes_up"] for r in clients(tmp_path / "run", number))


def test_a_late_clients_link_carried_what_it_could_until_the_deadline(tmp_path):
    path = fleet_file(tmp_path, {"share": 1.0}, **SPREAD)
    limits = ("fleet.deadline=1.34", "fleet.min_replies=0.1")
    run(tmp_path / "cut", *QUICK, *UNLIKE, f"fleet.profile={path}", *limits)
    run(tmp_path / "whole", *QUICK, *UNLIKE, f"fleet.profile={path}")
    full = {row["client"]: row for row in clients(tmp_path / "whole", 1)}
    begun = 0
    for row in clients(tmp_path / "cut", 1):
        whole = full[row["client"]]
        share = row["upload_seconds"] / whole["upload_seconds"]
        begun += 0 < share < 1
        assert row["bytes_up"] == pytest.approx(share * whole["bytes_up"], abs=1)
        assert row["energy_joules"] <= whole["energy_joules"]
    assert begun


def test_over_selection_takes_the_first_replies_and_leaves_the_rest(tmp_path):
    path = fleet_file(tmp_path, {"share": 1.0}, **SPREAD)
    run(tmp_path / "run", *QUICK, *UNLIKE, f"fleet.profile={path}", "fleet.over_selection=0.5")
    for number in (1, 2, 3, 4):
        of_round = clients(tmp_path / "run", number)
        assert len(of_round) == 9
        ok = [row for row in of_round if row["status"] == "ok"]
        assert len(ok) == 6
        ends = {
            row["client"]: row["started"] + row["download_seconds"] + row["compute_seconds"]
            + row["upload_seconds"]
            for row in of_round
        }  # fmt: skip
        assert rows(tmp_path / "run")[number]["simulated_seconds"] == pytest.approx(
            max(ends[row["client"]] for row in ok)
        )


def test_over_selection_waits_for_no_more_than_it_wants_even_where_all_are_equally_fast(tmp_path):
    path = profile_file(tmp_path)
    extra = ("data.partition=iid", "fleet.over_selection=0.5", f"fleet.profile={path}")
    run(tmp_path / "run", *QUICK, *UNLIKE, *extra)
    assert {row["clients_replied"] for row in rows(tmp_path / "run")[1:]} == {6}


def test_clients_are_lost_before_during_and_after_training(tmp_path):
    path = profile_file(tmp_path)
    lossy = ("fleet.dropout=0.4", "fleet.min_replies=0.1", "run.rounds=6")
    run(
        tmp_path / "run",
        *QUICK,
        *UNLIKE[:2],
        "strategy.name=static",
        f"fleet.profile={path}",
        *lossy,
    )
    by_reason = defaultdict(list)
    for row in clients(tmp_path / "run"):
        by_reason[row["reason"]].append(row)
    lost = {reason: found for reason, found in by_reason.items() if reason}
    assert set(lost) == {
        "lost before training", "lost during training", "lost after training, with its reply"
    }  # fmt: skip
    assert {row["status"] for found in lost.values() for row in found} == {"dropped"}
    assert all(
        row["energy_joules"] == 0 == row["bytes_down"] for row in lost["lost before training"]
    )
    for row in lost["lost during training"]:
        assert row["bytes_down"] > 0 == row["bytes_up"]
        assert row["compute_seconds"] > 0 == row["upload_seconds"]
    for row in lost["lost after training, with its reply"]:
        assert row["bytes_up"] > 0
        assert row["upload_seconds"] > 0
    share = sum(map(len, lost.values())) / 36
    assert 0.2 < share < 0.6


def test_too_few_replies_in_time_stop_the_run_with_a_reason(tmp_path):
    path = profile_file(tmp_path)
    with pytest.raises(TooFewRepliesError, match=r"0 of 4 clients replied.*fleet\.deadline"):
        run(tmp_path / "run", *QUICK, f"fleet.profile={path}", "fleet.deadline=0.1")


# -- who is there --------------------------------------------------------------------------


def test_clients_that_are_away_are_not_asked(tmp_path):
    """Half are there in each window of half a second, which is less than a round."""
    there = {"fraction": 0.5, "amplitude": 0.0, "peak_hour": 0.0, "window_seconds": 0.5}
    path = profile_file(tmp_path, availability=there)
    twelve = ("fleet.clients=12", "fleet.min_replies=0.2", "run.rounds=5")
    run(tmp_path / "run", *QUICK, *twelve, "strategy.name=static", f"fleet.profile={path}")
    asked = [row["clients_asked"] for row in rows(tmp_path / "run")[1:]]
    assert 5 * 12 * 0.3 < sum(asked) < 5 * 12 * 0.7
    assert len(set(asked)) > 1


def test_the_server_waits_in_simulated_time_until_clients_are_there(tmp_path):
    trace = tmp_path / "hours.json"
    trace.write_text(
        json.dumps({"0": {"active": [5000], "inactive": [9000], "finish_time": 10000}})
    )
    path = profile_file(tmp_path)
    run(tmp_path / "run", *QUICK, "strategy.name=static", f"fleet.profile={path}", "run.rounds=1",
        f"fleet.availability_trace={trace}")  # fmt: skip
    starts = {row["started"] for row in clients(tmp_path / "run", 1)}
    assert starts == {5400.0}
    assert rows(tmp_path / "run")[1]["waited_seconds"] == 5400.0


def test_a_fleet_that_is_never_there_is_given_up(tmp_path):
    never = {"fraction": 1e-9, "amplitude": 0.0, "peak_hour": 0.0, "window_seconds": 86400.0}
    path = profile_file(tmp_path, availability=never)
    with pytest.raises(GridError, match="14 simulated days"):
        run(tmp_path / "run", *QUICK, "strategy.name=static", f"fleet.profile={path}")


def test_a_network_trace_slows_transfers_down(tmp_path):
    trace = tmp_path / "network.csv"
    trace.write_text("seconds,up_bytes_per_second,down_bytes_per_second\n0,1000,1000\n1,1e6,1e6\n")
    path = profile_file(tmp_path, latency_seconds=0.0)
    run(tmp_path / "run", *QUICK, "strategy.name=static", f"fleet.profile={path}", "run.rounds=1",
        f"fleet.network_trace={trace}")  # fmt: skip
    for row in clients(tmp_path / "run", 1):
        assert row["started"] == 0
        assert row["bytes_down"] > 1000
        assert row["download_seconds"] == pytest.approx(
            1 + (row["bytes_down"] - 1000) / 1e6, abs=1e-9
        )


# -- the same on every engine, and after a kill --------------------------------------------

HARD = (
    *QUICK,
    "fleet.clients=8",
    "fleet.clients_per_round=4",
    "fleet.over_selection=0.5",
    "fleet.dropout=0.15",
    "fleet.deadline=2.0",
    "fleet.min_replies=0.2",
)


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hard")
    path = fleet_file(folder, {"share": 1.0}, **SPREAD)
    settings = (*HARD, f"fleet.profile={path}")
    summary = run(folder / "run", *settings)
    statuses = {row["status"] for row in clients(folder / "run")}
    assert statuses == {"ok", "late", "dropped"}
    return folder / "run", settings, summary


def test_the_clock_is_the_same_with_workers(hard, tmp_path):
    """Flower's engine starts slowly; the queue, which runs by this clock, is tested on it."""
    reference, settings, summary = hard
    out = tmp_path / "run"
    other = run(out, *settings, "engine.name=ray", "engine.workers=2")
    assert model_bytes(out) == model_bytes(reference)
    assert rows(out) == rows(reference)
    assert clients(out) == clients(reference)
    assert other["simulated_seconds"] == summary["simulated_seconds"]
    assert other["energy_joules"] == summary["energy_joules"]


@pytest.mark.parametrize(("seam", "nth"), [("save_checkpoint", 2), ("append_metrics", 3)])
def test_a_killed_run_goes_on_at_the_clock_where_it_was(hard, tmp_path, seam, nth):
    reference, settings, _ = hard
    out = tmp_path / "run"
    run_and_kill(out, seam, nth, *settings)
    resume_experiment(out)
    assert model_bytes(out) == model_bytes(reference)
    assert rows(out) == rows(reference)
    assert clients(out) == clients(reference)


def test_devices_that_were_changed_meanwhile_stop_a_resumed_run(tmp_path):
    out, path = tmp_path / "run", profile_file(tmp_path)
    run_and_kill(out, "save_checkpoint", 2, *QUICK, f"fleet.profile={path}")
    profile_file(tmp_path, memory_bytes=2e9)
    with pytest.raises(RunFolderError, match="are not those that the run began with"):
        resume_experiment(out)
    profile_file(tmp_path)
    assert resume_experiment(out)["rounds"] == 3


def test_a_flower_strategy_does_not_wait_in_real_time_for_clients_that_are_away(tmp_path):
    there = {"fraction": 0.5, "amplitude": 0.0, "peak_hour": 0.0, "window_seconds": 0.5}
    path = profile_file(tmp_path, availability=there)
    flower = ("strategy.name=flwr.serverapp.strategy:FedAvg", "fleet.clients=12")
    run(tmp_path / "run", *QUICK, *flower, f"fleet.profile={path}")
    assert all(6 <= row["clients_asked"] <= 11 for row in rows(tmp_path / "run")[1:])


@pytest.mark.parametrize("setting", ["fleet.over_selection=0.3", "fleet.fit=batch"])
def test_what_a_flower_strategy_takes_no_notice_of_is_refused(tmp_path, setting):
    flower = ("strategy.name=flwr.serverapp.strategy:FedAvg", "fleet.profile=ideal", setting)
    with pytest.raises(ConfigError, match="does nothing with strategy"):
        run(tmp_path / "run", *QUICK, *flower)


# -- what it took to a target --------------------------------------------------------------


def test_the_summary_says_what_it_took_to_the_target(tmp_path):
    path = profile_file(tmp_path)
    settings = (*QUICK, "strategy.name=fedavg", f"fleet.profile={path}", "run.rounds=8")
    summary = run(tmp_path / "run", *settings, "run.target_accuracy=0.5")
    table = rows(tmp_path / "run")
    number = next(row["round"] for row in table if row["accuracy"] >= 0.5)
    assert 0 < number < 8
    assert summary["rounds_to_target"] == number
    assert summary["seconds_to_target"] == table[number]["simulated_seconds"]
    until = table[: number + 1]
    assert summary["bytes_to_target"] == sum(r["bytes_up"] + r["bytes_down"] for r in until)
    assert summary["joules_to_target"] == math.fsum(r["energy_joules"] for r in until)


def test_a_target_that_was_not_reached_has_no_figures(tmp_path):
    summary = run(tmp_path / "run", *QUICK, "run.rounds=1", "run.target_accuracy=1.0")
    assert summary["target_accuracy"] == 1.0
    assert [v for k, v in summary.items() if k.endswith("_to_target")] == [None] * 4


def test_the_configuration_needs_devices_for_what_only_a_clock_gives(tmp_path):
    with pytest.raises(ConfigError, match=r"fleet\.deadline = 5\.0 does nothing without devices"):
        run(tmp_path / "run", "fleet.deadline=5.0")
    assert not (tmp_path / "run").exists()
    assert tiny("fleet.profile=phones", "fleet.deadline=5.0").fleet.deadline == 5.0
