"""Clients that attack, and what the server says of each: in rows, in the report, on any grid."""

import numpy as np
import pytest

from fedsparse import wire
from fedsparse.runs import RunFolder
from fedsparse.sparsity import Mask
from simulations.experiment import resume_experiment
from simulations.report import write_report
from tests.strategies.stage import payload, play, reply, stage
from tests.tiny_runs import model_bytes, run, run_and_interrupt

STATIC = ("strategy.name=static", "fleet.clients=5", "attack.clients=2")
REASONS = {
    "not-finite": "NaN or infinity",
    "oversize": "bytes; at most",
    "wrong-mask": "masked unlike the model that was sent",
    "stale": "the reply is of round 1; this is round 2",
    "scaled": "times as long as the round's median one; robust.max_norm = 5",
    "gaussian": "times as long as the round's median one; robust.max_norm = 5",
}


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("updates", REASONS)
def test_a_broken_reply_is_refused_with_its_reason(updates, dense):
    more = ("strategy.name=fedavg", "strategy.density=1.0") if dense else ()
    attack = (f"attack.updates={updates}", "attack.scale=100", "robust.max_norm=5")
    strategy, grid = stage(*STATIC, *more, *attack)
    strategy.prepare(grid)
    for number in (1, 2):
        play(strategy, grid, number)
    assert list(strategy.failures) == [2]
    assert REASONS[updates] in strategy.failures[2]


def test_a_turned_update_is_as_long_as_it_was_and_passes_the_checks():
    strategy, grid = stage(
        *STATIC, "attack.updates=sign-flip", "attack.scale=1", "robust.max_norm=2"
    )
    strategy.prepare(grid)
    play(strategy, grid, 1)
    assert strategy.failures == {}


def test_too_many_samples_are_refused():
    strategy, grid = stage("strategy.name=static", "robust.max_examples=28")
    strategy.prepare(grid)
    play(strategy, grid, 1)
    assert strategy.failures == {
        client: f"the reply tells {samples} samples; 28 are allowed"
        for client, samples in ((0, 31), (2, 29))
    }


def test_a_record_that_nobody_asked_for_is_refused():
    strategy, grid = stage("strategy.name=static")
    strategy.prepare(grid)
    asked = list(strategy.configure_train(1, strategy.arrays(), None, grid))
    replies = grid.send_and_receive(asked)
    more = reply(strategy, 0, b"x").content["arrays"]
    replies[0].content["ballast"] = more
    strategy.aggregate_train(1, replies)
    assert strategy.failures == {0: "the reply holds a record 'ballast' that nobody asked for"}


def test_who_attacks_by_updates_plants_no_backdoor():
    planted, honest = (
        stage("attack.clients=1", *more)[0].task.data.client(1).train.x
        for more in ((), ("attack.updates=sign-flip",))
    )
    assert (planted != honest).any()


def test_the_run_folder_and_the_report_name_every_rejected_reply(tmp_path):
    run(tmp_path / "run", *STATIC, "model.name=mlp", "attack.updates=not-finite")
    rows = RunFolder.open(tmp_path / "run").clients()
    bad = [row for row in rows if row["kind"] == "train" and row["client"] == 2]
    assert {row["status"] for row in bad} == {"rejected"}
    assert all("NaN" in row["reason"] for row in bad)
    assert {r["status"] for r in rows if r["client"] != 2} == {"ok"}
    page = write_report([tmp_path / "run"]).read_text()
    assert "Every rejected reply" in page
    assert page.count("NaN or infinity") >= len(bad)


def test_a_run_without_rejected_replies_has_no_such_table(tmp_path):
    run(tmp_path / "run", "model.name=mlp", "run.rounds=1")
    assert "Every rejected reply" not in write_report([tmp_path / "run"]).read_text()


def test_an_attack_under_a_rule_ends_in_the_same_bits_after_an_interruption(tmp_path, monkeypatch):
    """What a stale client sent last is in its own state, which a checkpoint holds."""
    attack = (*STATIC, "model.name=mlp", "attack.updates=stale", "robust.rule=trust")
    run(tmp_path / "whole", *attack)
    run_and_interrupt(monkeypatch, tmp_path / "cut", 3, *attack)
    resume_experiment(tmp_path / "cut")
    assert model_bytes(tmp_path / "cut") == model_bytes(tmp_path / "whole")
    rejected = [r for r in RunFolder.open(tmp_path / "cut").clients() if r["status"] == "rejected"]
    assert [(row["round"], row["client"]) for row in rejected] == [(2, 2), (3, 2)]


def test_what_cannot_be_attacked_so_says_it():
    attack = ("attack.clients=0", "attack.updates=scaled")
    strategy, grid = stage("strategy.name=pfedgate", "strategy.density=0.5", *attack)
    strategy.prepare(grid)
    play(strategy, grid, 1)
    assert "send no model that could be changed so" in strategy.failures[0]


def test_a_payload_is_refused_from_the_first_byte_that_no_honest_one_has():
    strategy, grid = stage("strategy.name=static")
    strategy.prepare(grid)
    most = strategy.schema.most_bytes
    for extra, reason in ((0, "this is no fedsparse payload"), (1, f"{most} fit")):
        bad = reply(strategy, 1, bytes(most + extra))
        good = [reply(strategy, k, payload(strategy, 1.0)) for k in (0, 2)]
        strategy.aggregate_train(1, [good[0], bad, good[1]])
        assert reason in strategy.failures[1]


@pytest.mark.parametrize("values", ["f32", "f16", "int8"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.4, 1.0])
def test_no_honest_payload_is_too_long(kept, values):
    strategy, _ = stage("strategy.name=static")
    rng = np.random.default_rng(0)
    state = {n: rng.normal(size=s).astype(np.float32) for n, s in strategy.schema.tensors}
    mask = Mask.from_arrays({n: rng.random(s) < kept for n, s in strategy.task.shapes.items()})
    for sent in (None, mask):
        length = len(wire.encode(state, mask=sent, values=values))
        assert length <= strategy.schema.most_bytes
