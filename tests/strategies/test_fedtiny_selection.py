"""FedTiny's adaptive BatchNorm selection (gate G5, unit part), and its sums by hand."""

import math

import numpy as np
import pytest
import torch

from fedsparse import models, wire
from fedsparse.errors import TooFewRepliesError
from fedsparse.runs import RunFolder, checkpoint
from fedsparse.sparsity import Mask
from fedsparse.training import batchnorm, local
from simulations.grid import CohortGrid
from strategies.base import Answer
from strategies.replies import Reply
from strategies.sums import weighted_mean
from strategies.task import Task, masked
from tests.strategies.stage import payload, play, reply, stage
from tests.tiny_runs import model_bytes, rows, run

CNN = ("model.name=cnn", "strategy.pretrain_epochs=0", "strategy.development_samples=2000")


def selected(*assignments):
    """Return a prepared pool: (strategy, dense model, masks, chosen, its statistics)."""
    strategy, grid = stage(*CNN, *assignments)
    dense = strategy.task.pretrain(0, 0.0)
    pool = strategy.candidate_pool(dense)
    return strategy, dense, pool, *strategy.select(grid, dense, pool)


def samples_of(task: Task) -> list[torch.Tensor]:
    """Return the training samples of each client."""
    return [local.tensors(task.data.client(k).train)[0] for k in range(task.config.fleet.clients)]


def pooled(strategy, dense, mask) -> dict[str, np.ndarray]:
    """Return the statistics of a candidate on the samples of all clients together."""
    models.load_state(strategy.task.model, masked(dense, mask))
    return batchnorm.measure(strategy.task.model, torch.cat(samples_of(strategy.task)))


def variances(statistics):
    return {name: value for name, value in statistics.items() if name.endswith("running_var")}


# -- statistics ---------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["average", "total"])
def test_statistics_of_iid_clients_are_those_of_their_pooled_samples(rule):
    strategy, dense, pool, chosen, merged = selected(
        "data.samples=1400", "data.partition=iid", f"strategy.variance_rule={rule}"
    )
    expected = pooled(strategy, dense, pool[chosen])
    assert list(merged) == list(expected)
    for name, value in variances(expected).items():
        np.testing.assert_allclose(merged[name], value, rtol=0.02)
        mean = name.replace("var", "mean")
        assert (np.abs(merged[mean] - expected[mean]) < 0.02 * np.sqrt(value)).all()


@pytest.mark.parametrize(("rule", "variance"), [("average", 1.75), ("total", 4.75)])
def test_statistics_of_unlike_clients_lack_the_spread_of_their_means(rule, variance):
    """1 and 3 samples: mean (0 + 3 * 4) / 4 = 3, variance (1 + 3 * 2) / 4 = 1.75.

    The total one adds sum_k p_k (mu_k - mu)^2 = (1 * 9 + 3 * 1) / 4 = 3.
    """
    strategy, _ = stage(*CNN, f"strategy.variance_rule={rule}")
    like = batchnorm.statistics(strategy.task.model)

    def told(mean, var):
        return [
            {n: np.full_like(v, mean if n.endswith("mean") else var) for n, v in like.items()}
        ] * 2

    merged = strategy.merge_statistics([Answer(0, 1, told(0, 1)), Answer(1, 3, told(4, 2))])
    assert len(merged) == 2
    for name, value in merged[1].items():
        assert (value == (3.0 if name.endswith("mean") else variance)).all()


def test_the_variance_rules_make_different_runs(tmp_path):
    for rule in ("average", "total"):
        run(
            tmp_path / rule, "run.rounds=1", "data.alpha=0.1", "strategy.stop_round=0",
            f"strategy.variance_rule={rule}",
        )  # fmt: skip
    assert rows(tmp_path / "average")[0]["loss"] != rows(tmp_path / "total")[0]["loss"]
    assert model_bytes(tmp_path / "average") != model_bytes(tmp_path / "total")


# -- choice -------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", ["adaptive", "vanilla"])
def test_the_choice_is_the_least_loss_under_the_statistics_of_its_kind(selection):
    """In this world of six candidates, adapted statistics turn the choice around."""
    strategy, dense, pool, chosen, _ = selected(
        "run.seed=4", "data.samples=400", "data.alpha=0.1", "strategy.candidates=6",
        "strategy.noise=0.9", f"strategy.selection={selection}",
        "strategy.variance_rule=average",
    )  # fmt: skip
    task = strategy.task
    clients = [task.data.client(k).train for k in range(4)]
    n = np.array([len(own) for own in clients])
    losses = []
    for mask in pool:
        state = masked(dense, mask)
        if selection == "adaptive":
            models.load_state(task.model, state)
            measured = [batchnorm.measure(task.model, x) for x in samples_of(task)]
            for name in measured[0]:
                state[name] = np.tensordot(n / n.sum(), np.stack([m[name] for m in measured]), 1)
        models.load_state(task.model, state)
        losses.append(n @ [local.evaluate(task.model, own).loss for own in clients])
    assert chosen == int(np.argmin(losses)) == {"adaptive": 4, "vanilla": 1}[selection]


def test_losses_are_weighted_by_samples_or_not_at_all():
    """By samples: 5 + 9 < 0 + 18, candidate 0; uniform: 5 + 1 > 0 + 2, candidate 1."""
    answers = [Answer(0, 1, [5.0, 0.0]), Answer(1, 9, [1.0, 2.0])]
    by_samples, _ = stage(*CNN)
    uniform, _ = stage(*CNN, "strategy.loss_weights=uniform")
    assert by_samples.cheapest(answers) == 0
    assert uniform.cheapest(answers) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_candidate_without_a_finite_loss_is_not_chosen(bad):
    strategy, _ = stage(*CNN)
    assert strategy.cheapest([Answer(0, 5, [bad, 3.0, 2.0]), Answer(1, 5, [1.0, 3.0, 2.0])]) == 2


def test_the_chosen_candidate_keeps_its_adapted_statistics():
    strategy, _, pool, chosen, merged = selected()
    prepared, grid = stage(*CNN)
    prepared.prepare(grid)
    assert prepared.mask == pool[chosen]
    for name, value in merged.items():
        np.testing.assert_array_equal(prepared.state[name], value)
        assert not np.array_equal(value, strategy.task.pretrain(0, 0.0)[name])


def test_where_every_candidate_has_a_loss_that_is_not_finite_the_least_of_those_decides():
    """Candidate 1 lacks the loss of 2 samples, the others of 3; 0 has 2 * 9 for it, no more."""
    strategy, _ = stage(*CNN)
    nan = math.nan
    answers = [Answer(0, 2, [9.0, nan, nan]), Answer(1, 3, [nan, 9.0, nan])]
    assert strategy.cheapest(answers) == 1
    strategy, _ = stage(*CNN, "strategy.loss_weights=uniform")
    assert strategy.cheapest([*answers, Answer(2, 1, [8.0, 9.0, 0.0])]) == 0


@pytest.mark.parametrize("losses", [[math.nan] * 3, [math.inf, -math.inf, math.nan], [10**400] * 3])
def test_a_client_without_any_finite_loss_is_left_out(losses):
    """Its say would be the same of all candidates, and so none."""

    class Blind(CohortGrid):
        blind = (1,)

        def send_and_receive(self, messages, *, timeout=None):
            replies = list(super().send_and_receive(messages, timeout=timeout))
            if replies[0].metadata.message_type == "query.losses":
                for client in self.blind:
                    replies[client].content["metrics"]["losses"] = losses
            return replies

    strategy, grid = stage(*CNN, grid=Blind)
    strategy.prepare(grid)
    assert strategy.failures == {1: "the reply holds no finite loss of any candidate"}
    nobody, grid = stage(*CNN, grid=type("Nobody", (Blind,), {"blind": (0, 1, 2, 3)}))
    with pytest.raises(TooFewRepliesError, match="0 of 4 clients replied"):
        nobody.prepare(grid)


class Judging(CohortGrid):
    """A grid on which client 1 tells a loss too few, and client 2 fails."""

    def send_and_receive(self, messages, *, timeout=None):
        """Spoil the losses."""
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if replies[0].metadata.message_type == "query.losses":
            metrics = replies[1].content["metrics"]
            metrics["losses"] = list(metrics["losses"])[:-1]
            del replies[2].content["metrics"]
        return replies


def test_losses_that_cannot_be_read_are_left_out_by_name():
    strategy, grid = stage(*CNN, grid=Judging)
    strategy.prepare(grid)
    assert set(strategy.failures) == {1, 2}
    assert "there are 3 candidates" in strategy.failures[1]
    strict, grid = stage(*CNN, "fleet.min_replies=0.75", grid=Judging)
    with pytest.raises(TooFewRepliesError, match=r"2 of 4 clients replied.*asks for 3; client 1"):
        strict.prepare(grid)
    assert (strict.mask, strict.state) == (None, {})


def test_a_model_without_batchnorm_is_chosen_by_its_losses_alone():
    strategy, grid = stage("strategy.pretrain_epochs=0")
    strategy.prepare(grid)
    play(strategy, grid, 1)
    assert strategy.mask.kept == 144


# -- growth -------------------------------------------------------------------------------


def test_gradients_that_a_client_did_not_send_count_as_zero():
    """(1 * 8 + 3 * 0) / 4 = 2 and (1 * 0 + 3 * 4) / 4 = 3."""
    strategy, _ = stage()
    name = strategy.task.prunable[-1]
    replies = []
    for client, examples, place, value in ((0, 1, 5, 8.0), (1, 3, 9, 4.0)):
        gradient = np.zeros(strategy.task.shapes[name], np.float32)
        gradient.reshape(-1)[place] = value
        replies.append(Reply(client, examples, {}, 0.0, None, {name: gradient}))
    mean = strategy.mean_gradients({name: 1}, replies)[name].reshape(-1)
    assert (mean[5], mean[9]) == (2.0, 3.0)
    assert np.count_nonzero(mean) == 2


def test_a_client_that_sends_no_gradients_when_asked_is_left_out():
    strategy, grid = stage("strategy.selection=none")
    strategy.prepare(grid)
    asked = strategy.configure_train(1, strategy.arrays(), None, grid)
    replies = list(grid.send_and_receive(asked))
    replies[2] = reply(strategy, 2, payload(strategy, 1.0))
    _, metrics = strategy.aggregate_train(1, replies)
    assert strategy.failures == {2: "the reply lacks 'growth'"}
    assert metrics["clients"] == 3


def growing(strategy, grid, client, change):
    """Play an adjustment round in which one client's gradients are changed on their way."""
    asked = strategy.configure_train(1, strategy.arrays(), None, grid)
    replies = list(grid.send_and_receive(asked))
    schema = wire.Schema(tuple(strategy.task.shapes.items())[-len(strategy.asked) :])
    sent = wire.decode(wire.unpack(replies[client].content["growth"]), schema).state
    (name,) = sent
    change(name, sent[name].reshape(-1))
    replies[client].content["growth"] = wire.pack(wire.encode(sent))
    _, metrics = strategy.aggregate_train(1, replies)
    return name, metrics["clients"]


def test_gradients_beyond_those_asked_for_are_refused():
    """One more, or one where the weight is kept already, would move the mask its own way."""
    strategy, grid = stage("strategy.selection=none")
    strategy.prepare(grid)
    kept = strategy.mask

    def one_more(name, gradient):
        free = np.flatnonzero((gradient == 0) & ~kept[name].reshape(-1))
        gradient[free[0]] = 1.0

    def one_kept(name, gradient):
        gradient[np.flatnonzero(gradient)[0]] = 0.0
        gradient[np.flatnonzero(kept[name].reshape(-1))[0]] = 1.0

    name, clients = growing(strategy, grid, 2, one_more)
    count = strategy.asked[name]
    reason = f"the reply holds {count + 1} gradients of '{name}'; {count} were asked for"
    assert strategy.failures == {2: reason}
    assert clients == 3
    strategy, grid = stage("strategy.selection=none")
    strategy.prepare(grid)
    name, clients = growing(strategy, grid, 2, one_kept)
    assert strategy.failures == {2: f"the reply holds gradients of weights that '{name}' keeps"}
    assert clients == 3


def test_fewer_gradients_than_asked_for_are_taken():
    strategy, grid = stage("strategy.selection=none")
    strategy.prepare(grid)

    def fewer(name, gradient):
        gradient[np.flatnonzero(gradient)[1:]] = 0.0

    assert growing(strategy, grid, 2, fewer)[1] == 4


def test_after_the_mask_changed_batchnorm_is_measured_again_on_the_servers_data():
    """Statistics of the mask before do not fit the weights of the one after."""
    strategy, grid = stage(*CNN, "strategy.selection=none", "strategy.granularity=model")
    strategy.prepare(grid)
    before = strategy.mask
    play(strategy, grid, 1)
    assert strategy.mask != before
    task = strategy.task
    found = {name: strategy.state[name] for name in batchnorm.statistics(task.model)}
    models.load_state(task.model, strategy.state)
    measured = batchnorm.measure(task.model, local.tensors(task.public)[0])
    assert len(measured) == 2 * len(batchnorm.norms(task.model)) > 0
    for name, value in measured.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("setting", ["strategy.reestimate=none", "strategy.adjust_every=2"])
def test_else_batchnorm_statistics_are_the_mean_of_the_clients(setting):
    strategy, grid = stage(*CNN, "strategy.selection=none", "strategy.granularity=model", setting)
    strategy.prepare(grid)
    mask = strategy.mask
    asked = strategy.configure_train(1, strategy.arrays(), None, grid)
    replies = grid.send_and_receive(asked)
    expected = weighted_mean([strategy.reader().read(k, reply) for k, reply in enumerate(replies)])
    strategy.aggregate_train(1, replies)
    assert (strategy.mask != mask) == ("reestimate" in setting)
    for name in batchnorm.statistics(strategy.task.model):
        np.testing.assert_array_equal(strategy.state[name], expected[name])


def test_grown_weights_start_at_zero_and_dropped_ones_are_zero(tmp_path):
    run(tmp_path / "run", "run.rounds=3", "strategy.granularity=model")
    folder = RunFolder.open(tmp_path / "run")
    task = Task.of(folder.config)
    saved = [
        checkpoint.load(folder.path / "checkpoints", r)["strategy"] for r in folder.checkpoints()
    ]
    masks = [Mask.from_packed(task.shapes, tree["mask"]) for tree in saved]
    grown = masks[1] - masks[0]
    dropped = masks[0] - masks[1]
    assert grown.kept == dropped.kept > 0
    for name in grown.names:
        assert not saved[1]["state"][name][grown[name] | dropped[name]].any()
    stayed = masks[2] & grown
    assert any(saved[2]["state"][name][stayed[name]].any() for name in stayed.names)


def test_the_next_mask_goes_down_with_the_next_model():
    strategy, grid = stage("strategy.selection=none", "strategy.granularity=model")
    strategy.prepare(grid)
    before = strategy.mask
    play(strategy, grid, 1)
    sent = wire.decode(wire.unpack(strategy.arrays()), strategy.task.schema)
    assert sent.mask == strategy.mask != before
