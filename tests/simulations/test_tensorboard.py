"""TensorBoard reads back what the metrics say."""

import pytest
from run_folders import make_run
from timed_runs import make_timed_run

from simulations.tensorboard import write_events

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder):
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(e.step, round(e.value, 6)) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_every_number_of_every_round_is_there(tmp_path):
    run = make_run(tmp_path / "run", rounds=3)
    found = scalars(write_events(run))
    assert found["accuracy"] == [(r["round"], round(r["accuracy"], 6)) for r in run.metrics()]
    assert [step for step, _ in found["train_loss"]] == [1, 2, 3]
    assert found["layer_density/fc.weight"][-1] == (3, 0.2)


def test_the_clock_and_the_energy_of_devices_are_there(tmp_path):
    run = make_timed_run(tmp_path / "run", rounds=3, asynchronous=True)
    found = scalars(write_events(run))
    for key in ("simulated_seconds", "energy_joules", "clients_late", "clients_dropped"):
        assert found[key] == [(r["round"], pytest.approx(r[key], rel=1e-6)) for r in run.metrics()]
    assert [step for step, _ in found["staleness"]] == [1, 2, 3]
    accuracy = {r["simulated_seconds"]: r["accuracy"] for r in run.metrics()}
    assert found["accuracy_by_second"] == [
        (int(second), pytest.approx(value, rel=1e-6)) for second, value in accuracy.items()
    ]


def test_writing_again_replaces_and_never_doubles(tmp_path):
    run = make_run(tmp_path / "run", rounds=2)
    first = scalars(write_events(run.path))
    run.append_metrics({"round": 3, "accuracy": 0.5})
    events = write_events(run.path)
    again = scalars(events)
    assert len(list(events.iterdir())) == 1
    assert again["accuracy"] == [*first["accuracy"], (3, 0.5)]
    assert not [p.name for p in run.path.iterdir() if p.name.startswith(".events")]
