"""The ClientApp: pure answers, sparse replies, typed errors, and what a client remembers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import nn

from clients.client_app import app
from fedsparse import messages, models, seeds, wire
from fedsparse.errors import WireError
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask
from fedsparse.training import batchnorm, local
from simulations import flower_internals as internals
from simulations.tasks import Task as Letter
from simulations.tasks import TaskResult, perform
from strategies.task import Task, masked
from tests.tiny_runs import tiny

MLP = ("model.name=mlp", "model.width=0.25", "data.samples=240")


def world(*assignments):
    """Return the server's view of a tiny run: its task, a mask of half the weights, a model."""
    task = Task.of(tiny(*MLP, *assignments))
    rng = np.random.default_rng(0)
    mask = Mask.from_arrays({name: rng.random(shape) < 0.5 for name, shape in task.shapes.items()})
    return task, mask, masked(task.pretrain(0, 0.0), mask)


def ask(task, kind, records=None, plan=None, client=0, state=None) -> TaskResult:
    """Let a client answer one message; `state` is what it kept of earlier ones."""
    internals.become_server(1)
    content = RecordDict(dict(records or {}))
    if plan is not None:
        content[messages.CONFIG] = messages.write_config(task.config, plan)
    message = Message(content, 1000 + client, kind)
    internals.number(message, "message")
    return perform(app, Letter(client, task.config.fleet.clients, message, state))


def train(task, model, mask, plan=None, **kwargs) -> TaskResult:
    payload = wire.encode(model, mask=mask)
    records = {messages.ARRAYS: wire.pack(payload)}
    return ask(task, messages.TRAIN, records, plan or Plan(round=1), **kwargs)


def content(result: TaskResult) -> RecordDict:
    assert not result.reply.has_error(), result.reply.error.reason
    return result.reply.content


def everything(result: TaskResult):
    """All bytes and figures of a reply."""
    found = content(result)
    arrays = {n: [bytes(a.data) for a in r.values()] for n, r in found.array_records.items()}
    return arrays, {n: dict(r) for n, r in found.metric_records.items()}


# -- training -----------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [(), ("client.optimizer=adam", "client.keep_optimizer=true")])
def test_the_same_message_has_the_same_answer_to_the_last_byte(settings):
    """Whoever else was served in between: a worker shares its model among clients."""
    task, mask, model = world(*settings)
    plan = Plan(round=3, grow={task.prunable[0]: 7}, samples=16)
    first = train(task, model, mask, plan)
    train(task, {n: v + 1 for n, v in model.items()}, None, replace(plan, round=9), client=1)
    assert everything(train(task, model, mask, plan)) == everything(first)
    assert everything(train(task, model, mask, plan, client=2)) != everything(first)
    other_round = replace(plan, round=4)
    assert everything(train(task, model, mask, other_round)) != everything(first)


def test_a_sparse_model_comes_back_as_values_alone():
    task, mask, model = world()
    payload = wire.unpack(content(train(task, model, mask))[messages.ARRAYS])
    values = 4 * (mask.kept + 42)
    assert values < len(payload) < values + 64
    with pytest.raises(WireError, match="does not hold"):
        wire.decode(payload, task.schema)
    decoded = wire.decode(payload, task.schema, masks=[mask])
    assert decoded.mask == mask
    assert any((decoded.state[name] != model[name]).any() for name in model)
    assert not any(decoded.state[name][~mask[name]].any() for name in mask.names)


def test_a_dense_model_comes_back_dense():
    task, _, _ = world()
    payload = wire.unpack(content(train(task, task.pretrain(0, 0.0), None))[messages.ARRAYS])
    assert wire.decode(payload, task.schema).mask is None


@pytest.mark.parametrize(("values", "size"), [("f16", 2), ("bf16", 2), ("int8", 1)])
def test_values_travel_as_the_plan_asks(values, size):
    task, mask, model = world()
    payload = wire.unpack(
        content(train(task, model, mask, Plan(round=1, values=values)))[messages.ARRAYS]
    )
    assert size * (mask.kept + 42) < len(payload) < size * (mask.kept + 42) + 96


def test_plain_arrays_come_back_as_plain_arrays():
    """Strategies of other makers send no plan and know no payload."""
    task, _, _ = world()
    model = task.pretrain(0, 0.0)
    plain = ArrayRecord({name: Array(value) for name, value in model.items()})
    config = messages.write_config(task.config, Plan(round=1))
    del config[messages.PLAN_KEY]
    records = {messages.ARRAYS: plain, messages.CONFIG: config}
    back = content(ask(task, messages.TRAIN, records))[messages.ARRAYS]
    assert {name: a.numpy().shape for name, a in back.items()} == dict(task.schema.tensors)
    ours = wire.unpack(content(train(task, model, None))[messages.ARRAYS])
    for name, value in wire.decode(ours, task.schema).state.items():
        np.testing.assert_array_equal(back[name].numpy(), value)


def test_figures_of_a_reply_are_those_of_the_client():
    task, mask, model = world("client.local_epochs=3")
    metrics = content(train(task, model, mask, client=2))[messages.METRICS]
    samples = len(task.data.client(2).train)
    assert metrics["num-examples"] == samples
    assert metrics["train-flops"] == task.cost.train_flops(3 * samples, mask)
    assert metrics["memory-bytes"] < 4 * 1482 * 8
    assert metrics["loss"] > 0


# -- growth -------------------------------------------------------------------------------


def test_the_pass_for_pruned_gradients_is_counted_in_full():
    """Its batch may be larger than training's, and it goes forward and back once more."""
    task, mask, model = world()
    layer = task.prunable[0]
    plain = dict(content(train(task, model, mask))[messages.METRICS])
    plan = Plan(round=1, grow={layer: 7}, samples=40)
    grown = dict(content(train(task, model, mask, plan))[messages.METRICS])
    sparse = sum(2 * kept for kept in mask.layer_kept().values())
    dense = 2 * np.prod(task.shapes[layer])
    assert grown["train-flops"] - plain["train-flops"] == 40 * (2 * sparse + dense)
    per_sample = 4 * task.cost.activation_elements
    assert grown["memory-bytes"] - plain["memory-bytes"] == (40 - 16) * per_sample + 7 * 8


def odd_model(input_shape, classes, width):
    """A model of somebody else, with torch's own randomness and a count that never travels."""
    layers = [nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16, momentum=None), nn.Dropout()]
    return nn.Sequential(*layers, nn.Linear(16, classes))


def test_nothing_of_one_client_is_left_for_the_next_whatever_the_model():
    task = Task.of(tiny("model.name=tests.clients.test_client_app:odd_model"))
    model = task.pretrain(0, 0.0)
    first = train(task, model, None)
    train(task, model, None, client=1)
    assert everything(train(task, model, None)) == everything(first)


def test_growth_is_the_top_of_the_dense_gradient_among_pruned_weights():
    """Worked out with plain torch on the trained model and all of the client's samples."""
    task, mask, model = world()
    names = task.prunable
    counts = {names[0]: 12, names[2]: 5}
    found = content(train(task, model, mask, Plan(round=1, grow=counts, samples=10_000)))
    trained = wire.decode(wire.unpack(found[messages.ARRAYS]), task.schema, masks=[mask]).state
    schema = wire.Schema(tuple((name, task.shapes[name]) for name in counts))
    growth = wire.decode(wire.unpack(found[messages.GROWTH]), schema)

    models.load_state(task.model, trained)
    own = task.data.client(0).train
    loss = torch.nn.functional.cross_entropy(
        task.model(torch.from_numpy(own.x)), torch.from_numpy(own.y)
    )
    parameters = dict(task.model.named_parameters())
    for name, count in counts.items():
        (gradient,) = torch.autograd.grad(loss, [parameters[name]], retain_graph=True)
        pruned = np.where(mask[name], 0, gradient.numpy()).reshape(-1)
        top = np.argsort(-np.abs(pruned))[:count]
        assert growth.mask is not None
        assert set(np.flatnonzero(growth.mask[name])) == set(top)
        assert not (growth.mask[name] & mask[name]).any()
        np.testing.assert_allclose(growth.state[name].reshape(-1)[top], pruned[top], rtol=1e-4)


def test_growth_costs_by_its_entries_not_by_its_layer():
    task, mask, model = world()
    plan = Plan(round=1, grow={task.prunable[0]: 9}, samples=16)
    record = content(train(task, model, mask, plan))[messages.GROWTH]
    assert len(wire.unpack(record)) < 64 + 9 * 8


def test_growth_is_never_more_than_was_pruned():
    task, _, _ = world()
    name = task.prunable[2]
    bits = {n: np.ones(shape, bool) for n, shape in task.shapes.items()}
    bits[name].reshape(-1)[[3, 50, 100]] = False
    mask = Mask.from_arrays(bits)
    model = masked(task.pretrain(0, 0.0), mask)
    found = content(train(task, model, mask, Plan(round=1, grow={name: 40}, samples=16)))
    growth = wire.decode(
        wire.unpack(found[messages.GROWTH]), wire.Schema(((name, task.shapes[name]),))
    )
    assert set(np.flatnonzero(growth.mask[name])) <= {3, 50, 100}


def test_without_a_request_no_gradient_travels():
    task, mask, model = world()
    assert messages.GROWTH not in content(train(task, model, mask))


# -- errors -------------------------------------------------------------------------------


def broken(make):
    """A message whose model is what `make` does to the right payload."""
    return lambda task, right: {messages.ARRAYS: wire.pack(make(right))}


def other_model(task, right):
    return {messages.ARRAYS: wire.pack(wire.encode({"fc.weight": np.ones((2, 2), np.float32)}))}


def plain_of_other_model(task, right):
    return {messages.ARRAYS: ArrayRecord([np.ones((2, 2), np.float32)])}


def plain_of_other_shape(task, right):
    state = {name: np.ones((2, 2), np.float32) for name in task.schema.names}
    return {messages.ARRAYS: ArrayRecord({name: Array(value) for name, value in state.items()})}


WRONG = {
    "no model": (lambda task, right: {}, "ModelError: the message carries no model"),
    "another model": (other_model, "WireError: the payload is of another model"),
    "arrays of another model": (plain_of_other_model, "ModelError: the message's model lacks"),
    "arrays of another shape": (plain_of_other_shape, "ModelError: 'fc1.weight' has shape"),
    "truncated": (broken(lambda right: right[:-3]), "WireError: the payload is damaged"),
    "empty": (broken(lambda right: b""), "WireError: a payload of 0 bytes is cut short"),
    "noise": (broken(lambda right: bytes(range(200))), "WireError: this is no fedsparse payload"),
}


@pytest.mark.parametrize("kind", [messages.TRAIN, messages.EVALUATE, messages.SCORE])
@pytest.mark.parametrize("case", WRONG)
def test_a_model_that_cannot_be_read_is_a_typed_error_in_one_line(kind, case):
    make, reason = WRONG[case]
    task, mask, model = world()
    records = make(task, wire.encode(model, mask=mask))
    answer = ask(task, kind, records, Plan(round=1, criterion="snip"))
    assert answer.reply.has_error()
    assert answer.reply.error.reason.startswith(reason)
    assert "\n" not in answer.reply.error.reason
    assert answer.state == {}


@pytest.mark.parametrize(
    "kind",
    [messages.TRAIN, messages.EVALUATE, messages.SCORE, messages.STATISTICS, messages.LOSSES],
)
def test_a_message_without_configuration_says_what_is_missing(kind):
    task, mask, model = world()
    arrays = {messages.ARRAYS: wire.pack(wire.encode(model, mask=mask))}
    for records in (arrays, {**arrays, messages.CONFIG: ConfigRecord({"lr": 0.1})}):
        reason = ask(task, kind, records).reply.error.reason
        assert reason.startswith("ConfigError: the message carries no 'experiment' entry")
        assert "\n" not in reason


def test_other_mistakes_of_a_set_up_are_typed_too():
    task, mask, model = world()
    stranger = train(task, model, mask, client=7).reply.error.reason
    assert stranger.startswith("ConfigError: this node is partition 7, the run has 4 clients")
    config = messages.write_config(task.config, Plan())
    config[messages.PLAN_KEY] = "{"
    records = {messages.ARRAYS: wire.pack(b"x"), messages.CONFIG: config}
    unread = ask(task, messages.TRAIN, records).reply.error.reason
    assert unread.startswith("ConfigError: the round's plan cannot be read")
    for kind in (messages.STATISTICS, messages.LOSSES):
        reason = ask(task, kind, {}, Plan(samples=16)).reply.error.reason
        assert reason.startswith("DataError: this client no longer holds the candidates") or (
            reason.startswith("DataError: the message carries no candidates")
        )


def test_training_that_diverges_is_an_error_that_names_the_remedy():
    task, mask, model = world("client.lr=1e30")
    reason = train(task, model, mask).reply.error.reason
    assert reason.startswith("TrainingError: the loss is")
    assert "lower client.lr" in reason


# -- evaluation and scores ----------------------------------------------------------------


def test_evaluation_is_on_the_clients_own_held_out_samples():
    task, mask, model = world()
    records = {messages.ARRAYS: wire.pack(wire.encode(model, mask=mask))}
    metrics = content(ask(task, messages.EVALUATE, records, Plan(round=1), client=3))["metrics"]
    models.load_state(task.model, model)
    held_out = task.data.client(3).test
    expected = local.evaluate(task.model, held_out)
    assert dict(metrics) == {
        "num-examples": len(held_out),
        "loss": pytest.approx(expected.loss, rel=1e-5),
        "accuracy": expected.accuracy,
    }


def test_a_client_without_test_samples_says_so():
    task, mask, model = world("data.client_test_fraction=0.0")
    records = {messages.ARRAYS: wire.pack(wire.encode(model, mask=mask))}
    reason = ask(task, messages.EVALUATE, records, Plan()).reply.error.reason
    assert reason.startswith("DataError: this client has no test samples; raise data.client_test")


def test_scores_are_the_criterions_on_the_clients_own_samples():
    """SNIP, |g w|, by plain torch over all of the client's samples."""
    task, _, _ = world()
    model = task.pretrain(0, 0.0)
    records = {messages.ARRAYS: wire.pack(wire.encode(model))}
    plan = Plan(criterion="snip", samples=10_000)
    found = content(ask(task, messages.SCORE, records, plan, client=1))
    schema = wire.Schema(tuple(task.shapes.items()))
    scores = wire.decode(wire.unpack(found[messages.ARRAYS]), schema).state
    own = task.data.client(1).train
    output = task.model.eval()(torch.from_numpy(own.x))
    torch.nn.functional.cross_entropy(output, torch.from_numpy(own.y)).backward()
    for name, weight in task.model.named_parameters():
        if name in scores:
            expected = (weight.grad * weight.detach()).abs().numpy()
            np.testing.assert_allclose(scores[name], expected, rtol=1e-3, atol=1e-8)
    assert found[messages.METRICS]["num-examples"] == len(own)


# -- BatchNorm selection ------------------------------------------------------------------

CNN = ("model.name=cnn",)


@pytest.fixture(scope="module")
def pool():
    """Two candidates of a CNN with BatchNorm, at densities 0.3 and 0.6, as they are sent."""
    task = Task.of(tiny("data.samples=240", *CNN))
    dense = task.pretrain(0, 0.0)
    states, payloads = [], {}
    for i, density in enumerate((0.3, 0.6)):
        rng = np.random.default_rng(i)
        mask = Mask.from_arrays({n: rng.random(s) < density for n, s in task.shapes.items()})
        states.append(masked(dense, mask))
        payloads[str(i)] = wire.encode(states[i], mask=mask)
    return task, states, wire.pack_many(payloads)


PLAN = Plan(samples=10_000)


def test_statistics_are_those_of_the_clients_data_and_nothing_else_travels(pool):
    task, states, candidates = pool
    found = content(ask(task, messages.STATISTICS, {messages.CANDIDATES: candidates}, PLAN))
    schema = wire.Schema.of(batchnorm.statistics(task.model))
    x, _ = local.tensors(task.data.client(0).train)
    for i, payload in enumerate(wire.unpack_many(found[messages.ARRAYS]).values()):
        models.load_state(task.model, states[i])
        expected = batchnorm.measure(task.model, x)
        for name, value in wire.decode(payload, schema).state.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6)


def test_candidates_are_kept_between_the_exchanges_and_forgotten_after(pool):
    task, _, candidates = pool
    measured = ask(task, messages.STATISTICS, {messages.CANDIDATES: candidates}, PLAN)
    kept = measured.state["arrays"][messages.CANDIDATES]
    assert {k: a["data"] for k, a in kept.items()} == wire.unpack_many(candidates)
    given = {messages.ARRAYS: content(measured)[messages.ARRAYS]}
    tested = ask(task, messages.LOSSES, given, PLAN, state=measured.state)
    assert len(content(tested)[messages.METRICS]["losses"]) == 2
    assert tested.state == {}
    again = ask(task, messages.LOSSES, given, PLAN, state=tested.state)
    assert "no longer holds the candidates; start the run again" in again.reply.error.reason


def test_losses_are_taken_under_the_statistics_that_are_given(pool):
    """Stale statistics, those of the server, give other losses; by evaluation mode, both."""
    task, states, candidates = pool
    sent = {messages.CANDIDATES: candidates}
    stale = content(ask(task, messages.LOSSES, sent, PLAN))[messages.METRICS]["losses"]
    measured = ask(task, messages.STATISTICS, sent, PLAN, client=1)
    statistics = content(measured)[messages.ARRAYS]
    adapted = content(ask(task, messages.LOSSES, {**sent, messages.ARRAYS: statistics}, PLAN))[
        messages.METRICS
    ]["losses"]
    own = task.data.client(0).train
    schema = wire.Schema.of(batchnorm.statistics(task.model))
    payloads = wire.unpack_many(statistics)
    for i, state in enumerate(states):
        models.load_state(task.model, state)
        assert stale[i] == pytest.approx(local.evaluate(task.model, own).loss, rel=1e-5)
        models.load_state(task.model, {**state, **wire.decode(payloads[str(i)], schema).state})
        assert adapted[i] == pytest.approx(local.evaluate(task.model, own).loss, rel=1e-5)
        assert abs(adapted[i] - stale[i]) > 1e-3


def test_both_exchanges_look_at_one_development_subset(pool):
    """A client judges candidates on the samples whose statistics it sent, no others."""
    task, states, candidates = pool
    sent, few = {messages.CANDIDATES: candidates}, Plan(samples=8)
    measured = content(ask(task, messages.STATISTICS, sent, few))[messages.ARRAYS]
    losses = content(ask(task, messages.LOSSES, sent, few))[messages.METRICS]["losses"]
    own = task.data.client(0).train
    rng = seeds.stream(task.config.run.seed, 0, 0, "development")
    subset = own.take(rng.permutation(len(own))[:8])
    models.load_state(task.model, states[0])
    assert losses[0] == pytest.approx(local.evaluate(task.model, subset).loss, rel=1e-5)
    expected = batchnorm.measure(task.model, local.tensors(subset)[0])
    found = wire.decode(wire.unpack_many(measured)["0"], wire.Schema.of(expected)).state
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)


# -- what a client remembers --------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [("sgd", ["momentum_buffer"]), ("adam", ["exp_avg", "exp_avg_sq", "step"])],
)
def test_an_optimizers_state_is_kept_sparse(optimizer, slots):
    task, mask, model = world(f"client.optimizer={optimizer}", "client.keep_optimizer=true")
    state = train(task, model, mask).state["arrays"]
    kept = sorted(name for name in state if name.startswith("optimizer"))
    assert kept == [f"optimizer.{slot}" for slot in slots]
    for slot in slots[:2] if optimizer == "adam" else slots:
        (array,) = state[f"optimizer.{slot}"].values()
        assert array["stype"] == wire.records.STYPE
        assert len(array["data"]) < 4 * 1482 * 0.6
        decoded = wire.decode(array["data"], wire.Schema(task.schema.tensors))
        assert decoded.mask == mask
        assert any(part.any() for part in decoded.state.values())


def test_a_kept_optimizer_goes_on_where_it_was():
    task, mask, model = world("client.keep_optimizer=true")
    first = train(task, model, mask)
    fresh = train(task, model, mask, Plan(round=2))
    after = train(task, model, mask, Plan(round=2), state=first.state)
    assert everything(after) != everything(fresh)
    assert everything(after) == everything(
        train(task, model, mask, Plan(round=2), state=first.state)
    )


def test_momentum_of_a_weight_that_was_pruned_since_is_forgotten():
    """Under a mask of other weights, training goes on as if only the biases had momentum."""
    task, mask, model = world("client.keep_optimizer=true", "client.local_epochs=2")
    state = train(task, model, mask).state
    other = Mask.full(task.shapes) - mask
    again = train(task, masked(model, other), other, Plan(round=2), state=state)
    (array,) = state["arrays"]["optimizer.momentum_buffer"].values()
    momentum = wire.decode(array["data"], wire.Schema(task.schema.tensors)).state
    assert any(momentum[name].any() for name in mask.names)
    other.apply_(momentum)
    array["data"] = wire.encode(momentum, mask=other)
    array["shape"] = [len(array["data"])]
    assert everything(train(task, masked(model, other), other, Plan(round=2), state=state)) == (
        everything(again)
    )


def test_no_optimizer_is_kept_unless_asked():
    task, mask, model = world()
    assert "optimizer" not in str(train(task, model, mask).state)


def test_a_client_says_which_partition_it_is():
    task, _, _ = world()
    assert content(ask(task, messages.IDENTIFY, client=3))["metrics"]["partition-id"] == 3
