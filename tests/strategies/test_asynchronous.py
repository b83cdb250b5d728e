"""FedAsync and FedBuff: their formulas by hand, what becomes of old updates, and their clock."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsparse.errors import ConfigError, TooFewRepliesError
from fedsparse.runs import RunFolder
from fedsparse.sparsity import Mask
from simulations.experiment import resume_experiment
from strategies.asynchronous import Flight, covered, mapped
from strategies.base import Reply
from strategies.seats import FULL, Seat
from tests.device_files import fleet_file, profile_file
from tests.strategies.stage import stage
from tests.test_resume import run_and_kill
from tests.tiny_runs import model_bytes, rows, run

QUICK = ("model.name=mlp", "data.samples=240", "fleet.evaluate_clients=0")
DENSE = "strategy.density=1.0"


def strategy_of(name: str, *assignments: str):
    """Return a prepared strategy of the mlp."""
    strategy, grid = stage(f"strategy.name={name}", "fleet.profile=ideal", *assignments)
    strategy.prepare(grid)
    return strategy


def update(strategy, value: float, mask: Mask | None = None, examples: int = 10) -> Reply:
    """Return an update whose every kept value is `value`."""
    counts = {} if mask is None else mask.layer_kept()
    kept = {
        name: np.full(counts.get(name, shape), value, np.float32)
        for name, shape in strategy.task.schema.tensors
    }
    return Reply(0, examples, kept, 0.5, None, None, mask)


def fill(strategy, value: float) -> None:
    """Set every kept value of the strategy's model."""
    strategy.state = {n: np.full_like(v, value) for n, v in strategy.state.items()}
    if strategy.mask is not None:
        strategy.mask.apply_(strategy.state)


# -- FedAsync, Algorithm 1 ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("strategy.staleness=constant",), {0: 0.6, 3: 0.6, 8: 0.6}),
        (("strategy.staleness=polynomial",), {0: 0.6, 3: 0.3, 8: 0.2}),
        (
            ("strategy.staleness=hinge", "strategy.exponent=10.0", "strategy.grace=2"),
            {0: 0.6, 2: 0.6, 3: 0.6 / 11, 8: 0.6 / 61},
        ),
    ],
)
def test_an_old_update_weighs_less(settings, expected):
    """alpha s(t - tau), section 5.2: (1 + x)^-a, and 1 / (a (x - b) + 1) beyond b."""
    strategy = strategy_of("fedasync", *settings)
    for staleness, weight in expected.items():
        assert strategy.weight(staleness) == pytest.approx(weight, abs=1e-12)


def test_fedasync_mixes_each_update_in():
    """0.4 * 1 + 0.6 * 2 = 1.6, then staleness 3: 0.7 * 1.6 + 0.3 * 4.6 = 2.5."""
    strategy = strategy_of("fedasync", DENSE)
    fill(strategy, 1.0)
    strategy.absorb(update(strategy, 2.0), Flight(0, FULL, None), 0)
    assert np.allclose(strategy.state["fc1.weight"], 1.6)
    strategy.absorb(update(strategy, 4.6), Flight(0, FULL, None), 3)
    assert np.allclose(strategy.state["fc1.weight"], 2.5)
    assert strategy.version == 2


# -- FedBuff, Algorithm 1 -------------------------------------------------------------------


def test_fedbuff_takes_a_step_when_its_buffer_is_full():
    """1 + 0.5 * ((2 - 1) + (5 - 1) / sqrt(1 + 3)) / 2 = 1.75."""
    strategy = strategy_of("fedbuff", DENSE, "strategy.buffer_size=2", "strategy.server_lr=0.5")
    fill(strategy, 1.0)
    strategy.states = {0: strategy.state}
    strategy.absorb(update(strategy, 2.0), Flight(0, FULL, None), 0)
    assert strategy.version == 0
    assert np.all(strategy.state["fc1.weight"] == 1)
    strategy.absorb(update(strategy, 5.0), Flight(0, FULL, None), 3)
    assert strategy.version == 1
    assert np.allclose(strategy.state["fc1.weight"], 1.75)


def test_an_update_counts_from_the_model_that_its_client_started_with():
    """The server is at 3, the client went from 1 to 2: 3 + (2 - 1) = 4."""
    strategy = strategy_of("fedbuff", DENSE, "strategy.buffer_size=1")
    fill(strategy, 1.0)
    strategy.states = {0: strategy.state}
    fill(strategy, 3.0)
    strategy.absorb(update(strategy, 2.0), Flight(0, FULL, None), 0)
    assert np.allclose(strategy.state["fc1.weight"], 4.0)


def test_fedbuff_weighs_by_samples_where_asked_to():
    """1 + (30 * 1 + 10 * 5) / 40 = 3."""
    strategy = strategy_of("fedbuff", DENSE, "strategy.buffer_size=2", "strategy.weights=samples")
    fill(strategy, 1.0)
    strategy.states = {0: strategy.state}
    flight = Flight(0, FULL, None)
    strategy.absorb(update(strategy, 2.0, examples=30), flight, 0)
    strategy.absorb(update(strategy, 6.0, examples=10), flight, 0)
    assert np.allclose(strategy.state["fc1.weight"], 3.0)


def test_with_infinite_resources_fedbuff_is_fedavg(tmp_path):
    """All start together and arrive at once; the mean of round 1 is the same but for rounding.

    Who has arrived starts again at once, before the buffer is full: stale by one in round 2.
    """
    settings = (*QUICK, "fleet.profile=ideal", "run.rounds=2")
    run(tmp_path / "fedavg", *settings, "strategy.name=fedavg")
    buffer = ("strategy.buffer_size=4", "strategy.weights=samples", DENSE)
    run(tmp_path / "fedbuff", *settings, "strategy.name=fedbuff", *buffer)
    left, right = rows(tmp_path / "fedavg"), rows(tmp_path / "fedbuff")
    assert [row["staleness"] for row in right[1:]] == [0, 0.75]
    losses = [[row["loss"] for row in table[:2]] for table in (left, right)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


# -- updates under older masks --------------------------------------------------------------


def bits(*kept: int) -> Mask:
    array = np.zeros(6, bool)
    array[list(kept)] = True
    return Mask.from_arrays({"w": array})


def test_an_update_counts_where_both_masks_keep_and_nowhere_else():
    reply = Reply(0, 1, {"w": np.array([10, 20, 30], np.float32)}, 0.0, None, None, bits(0, 1, 2))
    present = {"w": np.array([0, 2, 3, 4, 0, 0], np.float32)}
    values, where = mapped(reply, present, bits(1, 2, 3))
    assert values["w"].tolist() == [0, 20, 30, 4, 0, 0]
    assert where["w"].tolist() == [False, True, True, False, False, False]


@given(old=hnp.arrays(np.bool_, 6), new=hnp.arrays(np.bool_, 6), seed=st.integers(0, 99))
def test_what_only_one_mask_keeps_never_moves_the_model(old, new, seed):
    own, now = Mask.from_arrays({"w": old}), Mask.from_arrays({"w": new})
    rng = np.random.default_rng(seed)
    present = {"w": np.where(new, rng.standard_normal(6), 0).astype(np.float32)}
    trained = rng.standard_normal(own.kept).astype(np.float32)
    reply = Reply(0, 1, {"w": trained}, 0.0, None, None, own)
    values, where = mapped(reply, present, now)
    assert np.array_equal(values["w"][~(old & new)], present["w"][~(old & new)])
    assert np.array_equal(where["w"], old & new)
    assert np.all(values["w"][~new] == 0)


@pytest.mark.parametrize(
    ("old", "new", "share"),
    [(bits(0, 1), bits(0, 1), 1.0), (bits(0, 1, 2), bits(2, 3), 0.5), (bits(0), bits(1), 0.0),
     (None, bits(1), 1.0), (bits(0, 1, 2), None, 0.5), (None, None, 1.0)],
)  # fmt: skip
def test_how_much_of_the_present_mask_an_older_one_covers(old, new, share):
    assert covered(old, new) == share


def test_an_update_too_old_or_under_too_unlike_a_mask_is_dropped():
    strategy = strategy_of("fedbuff", "strategy.max_staleness=2", "strategy.min_overlap=0.5")
    kept = strategy.mask
    other = Mask.full(strategy.task.shapes) - kept
    assert strategy.judge(Flight(0, FULL, kept), 2) is None
    assert "3 updates old, strategy.max_staleness = 2" in strategy.judge(Flight(0, FULL, kept), 3)
    assert "covers 0.00 of the present one" in strategy.judge(Flight(0, FULL, other), 0)
    half = Seat(share=0.5)
    part = kept & Mask.from_arrays(
        {n: np.arange(b.size).reshape(b.shape) % 2 == 0 for n, b in kept.items()}
    )
    assert strategy.judge(Flight(0, half, part), 0) is None


def test_a_mask_that_gets_sparser_on_the_way_maps_what_arrives(tmp_path):
    path = fleet_file(tmp_path, {"share": 1.0}, compute=1.0, bandwidth=1.0)
    settings = ("fleet.clients=8", "fleet.clients_per_round=4", "strategy.buffer_size=2")
    prune = ("strategy.start_density=0.8", "strategy.density=0.2", "strategy.prune_until=6")
    run(tmp_path / "run", *QUICK, *settings, *prune, "strategy.name=fedbuff",
                  "run.rounds=10", f"fleet.profile={path}", "strategy.min_overlap=0.0")  # fmt: skip
    density = [row["density"] for row in rows(tmp_path / "run")]
    assert density[0] == pytest.approx(0.8, abs=1e-3)
    assert density == sorted(density, reverse=True)
    assert density[6:] == pytest.approx([0.2] * 5, abs=1e-3)
    assert max(row.get("staleness") or 0 for row in rows(tmp_path / "run")) > 0
    from safetensors.numpy import load_file

    mask = Mask.load(tmp_path / "run" / "mask.safetensors")
    model = load_file(tmp_path / "run" / "model.safetensors")
    assert all(not model[name][~kept].any() for name, kept in mask.items())


# -- the event queue ------------------------------------------------------------------------

UNLIKE = (
    *QUICK,
    "fleet.clients=10",
    "fleet.clients_per_round=4",
    "run.rounds=6",
    "fleet.dropout=0.1",
    "strategy.density=0.3",
)


@pytest.fixture(scope="module", params=["fedbuff", "fedasync"])
def event_run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    path = fleet_file(folder, {"share": 1.0}, compute=0.8, bandwidth=0.8)
    settings = (*UNLIKE, f"fleet.profile={path}", f"strategy.name={request.param}")
    settings += ("strategy.buffer_size=3",) if request.param == "fedbuff" else ()
    run(folder / "run", *settings)
    return folder / "run", settings


def arrivals(out) -> list[dict]:
    return [row for row in RunFolder.open(out).clients() if row["status"] in ("ok", "dropped")]


def end_of(row: dict) -> float:
    took = row["download_seconds"] + row["compute_seconds"] + row["upload_seconds"]
    return row["started"] + took


def test_clients_arrive_in_the_order_of_the_clock(event_run):
    out, _ = event_run
    ends = [end_of(row) for row in arrivals(out)]
    assert ends == sorted(ends)
    assert rows(out)[-1]["simulated_seconds"] == pytest.approx(ends[-1], abs=1e-9)
    assert len({row["client"] for row in arrivals(out)}) > 4


def test_never_more_are_under_way_than_asked_for_and_places_are_filled_at_once(event_run):
    out, _ = event_run
    found = RunFolder.open(out).clients()
    moments = sorted({row["started"] for row in found})
    for moment in moments:
        under_way = sum(row["started"] <= moment < end_of(row) for row in found)
        assert under_way <= 4
    finished = {end_of(row) for row in found}
    assert all(m == 0 or any(abs(m - end) < 1e-9 for end in finished) for m in moments)


def test_staleness_is_the_number_of_updates_since_the_start(event_run):
    out, settings = event_run
    found = [row for row in RunFolder.open(out).clients() if row["status"] == "ok"]
    step = 3 if "strategy.buffer_size=3" in settings else 1
    for row in found:
        before = sum(end_of(r) < end_of(row) for r in found) // step
        at_start = sum(end_of(r) <= row["started"] for r in found) // step
        assert row["staleness"] == before - at_start


def test_what_was_under_way_at_the_end_is_written_down(event_run):
    out, _ = event_run
    left = [row for row in RunFolder.open(out).clients() if row["status"] == "late"]
    assert 0 < len(left) <= 4
    assert {row["reason"] for row in left} == {"late: the run ended before its reply was in"}
    assert all(end_of(row) <= rows(out)[-1]["simulated_seconds"] + 1e-9 for row in left)


@pytest.mark.parametrize(("engine", "workers"), [("ray", 2), ("flower", 2)])
def test_the_queue_is_the_same_on_every_engine(event_run, tmp_path, engine, workers):
    reference, settings = event_run
    if engine == "flower" and "strategy.name=fedasync" in settings:
        pytest.skip(
            "Flower's engine takes long to start; one asynchronous strategy stands for both"
        )
    run(tmp_path / "run", *settings, f"engine.name={engine}", f"engine.workers={workers}")
    assert model_bytes(tmp_path / "run") == model_bytes(reference)
    assert rows(tmp_path / "run") == rows(reference)


@pytest.mark.parametrize(("seam", "nth"), [("save_checkpoint", 3), ("append_clients", 4)])
def test_a_killed_run_goes_on_with_those_under_way(event_run, tmp_path, seam, nth):
    reference, settings = event_run
    run_and_kill(tmp_path / "run", seam, nth, *settings)
    resume_experiment(tmp_path / "run")
    assert model_bytes(tmp_path / "run") == model_bytes(reference)
    assert rows(tmp_path / "run") == rows(reference)
    assert RunFolder.open(tmp_path / "run").clients() == RunFolder.open(reference).clients()


def test_a_client_that_takes_longer_than_the_deadline_is_given_up(tmp_path):
    path = fleet_file(tmp_path, {"share": 1.0}, compute=0.8, bandwidth=0.8)
    run(tmp_path / "run", *UNLIKE, f"fleet.profile={path}", "strategy.name=fedbuff",
        "strategy.buffer_size=3", "fleet.deadline=4.0", "fleet.min_replies=0.2")  # fmt: skip
    found = RunFolder.open(tmp_path / "run").clients()
    late = [row for row in found if row["status"] == "late" and "round" in row["reason"]]
    assert late
    for row in late:
        assert end_of(row) - row["started"] == pytest.approx(4.0, abs=1e-9)


@pytest.mark.parametrize("concurrency", [1, 3, 20])
def test_few_clients_start_again_until_a_round_has_its_updates(tmp_path, concurrency):
    few = ("fleet.clients=3", "strategy.buffer_size=5", f"strategy.concurrency={concurrency}")
    run(tmp_path / "run", *QUICK, *few, "strategy.name=fedbuff", "fleet.profile=ideal",
        "run.rounds=3", DENSE)  # fmt: skip
    table = rows(tmp_path / "run")
    assert [row["clients_replied"] for row in table] == [0, 5, 5, 5]
    assert all(a["loss"] != b["loss"] for a, b in pairwise(table))
    found = RunFolder.open(tmp_path / "run").clients()
    for number in (1, 2, 3):
        own = [r for r in found if r["round"] == number and r["status"] == "ok"]
        assert len({(r["client"], r["loss"]) for r in own}) == 5


def test_when_checkpoints_are_written_changes_nothing(tmp_path):
    """Many are lost in training: who is to be heard of next must not depend on who worked off."""
    path = fleet_file(tmp_path, {"share": 1.0}, compute=0.8, bandwidth=0.8)
    settings = (*QUICK, "fleet.clients=30", "fleet.clients_per_round=10", "fleet.dropout=0.4",
                "fleet.min_replies=0.1", "strategy.name=fedasync", f"fleet.profile={path}",
                "data.samples=400", "run.rounds=5", "strategy.updates=6")  # fmt: skip
    run(tmp_path / "often", *settings)
    run(tmp_path / "once", *settings, "run.checkpoint_every=5")
    assert model_bytes(tmp_path / "often") == model_bytes(tmp_path / "once")
    assert arrivals(tmp_path / "often") == arrivals(tmp_path / "once")
    ends = [end_of(row) for row in arrivals(tmp_path / "often")]
    assert ends == sorted(ends)


def test_a_large_ideal_fleet_waits_for_nobody(tmp_path):
    many = ("fleet.clients=150", "fleet.clients_per_round=140", "data.samples=900")
    summary = run(tmp_path / "run", *QUICK, *many, "strategy.name=fedasync", "run.rounds=2",
                  "fleet.profile=ideal", "data.min_per_client=1")  # fmt: skip
    assert summary["simulated_seconds"] == 0


def test_the_last_test_is_sent_what_its_clients_can_read(tmp_path):
    """Those still under way at the end hold the mask that they left with."""
    path = fleet_file(tmp_path, {"share": 1.0}, compute=0.8, bandwidth=0.8)
    prune = ("strategy.start_density=0.5", "strategy.density=0.2", "strategy.prune_until=6")
    run(tmp_path / "run", "model.name=mlp", "data.samples=240", *UNLIKE[3:5], *prune,
        "fleet.dropout=0.1", "run.rounds=6", "strategy.name=fedbuff", "strategy.buffer_size=3",
        f"fleet.profile={path}")  # fmt: skip
    tests = [r for r in RunFolder.open(tmp_path / "run").clients() if r["kind"] == "evaluate"]
    assert len(tests) == 10
    assert {row["status"] for row in tests} == {"ok"}


# -- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedasync", "fedbuff"])
def test_an_asynchronous_strategy_needs_a_clock(tmp_path, name):
    with pytest.raises(ConfigError, match=r"needs a simulated clock; set fleet\.profile"):
        run(tmp_path / "run", *QUICK, f"strategy.name={name}")
    assert not (tmp_path / "run").exists()


def test_over_selection_has_no_meaning_without_rounds():
    with pytest.raises(ConfigError, match=r"fleet\.over_selection = 0\.3: an asynchronous"):
        strategy_of("fedasync", "fleet.over_selection=0.3")


def test_a_mask_does_not_get_denser(tmp_path):
    with pytest.raises(
        ConfigError, match=r"start_density = 0\.1 is below strategy\.density = 0\.3"
    ):
        strategy_of("fedbuff", "strategy.density=0.3", "strategy.start_density=0.1")


def test_a_run_that_loses_most_updates_stops(tmp_path):
    path = profile_file(tmp_path)
    with pytest.raises(TooFewRepliesError, match=r"0 of the last 20 updates could be used"):
        run(tmp_path / "run", *QUICK, "strategy.name=fedbuff", f"fleet.profile={path}",
            "fleet.deadline=0.3", "strategy.buffer_size=2")  # fmt: skip
