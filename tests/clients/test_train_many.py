"""Many training messages answered at once: each reply is the one that it gets alone."""

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from clients.client_app import app
from clients.cohort import train_many
from fedsparse import messages, wire
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask
from fedsparse.state_codec import plain_state
from simulations import flower_internals as internals
from strategies.task import Task, masked
from tests.tiny_runs import tiny

CLIENTS = (0, 1, 2, 3)


def world(*assignments):
    """Return the server's view of a tiny run: its task, a mask of half the weights, a model."""
    task = Task.of(
        tiny(
            "model.name=mlp", "model.width=0.25", "data.samples=240", "client.backend=torch",
            *assignments,
        )
    )  # fmt: skip
    rng = np.random.default_rng(0)
    mask = Mask.from_arrays({name: rng.random(shape) < 0.5 for name, shape in task.shapes.items()})
    return task, mask, masked(task.pretrain(0, 0.0), mask)


def letters(task, payload, plan, states=None, kind=messages.TRAIN):
    """Return a message to each client, and each client's context."""
    internals.become_server(1)
    sent, contexts = [], []
    for client in CLIENTS:
        content = RecordDict({messages.ARRAYS: wire.pack(payload)})
        content[messages.CONFIG] = messages.write_config(task.config, plan)
        message = Message(content, 1000 + client, kind)
        internals.number(message, f"message {client}")
        sent.append(message)
        state = None if states is None else states[client]
        count = task.config.fleet.clients
        contexts.append(internals.new_context(1, 1000 + client, client, count, {}, state))
    return sent, contexts


def assert_alike(task, mask, one: RecordDict, other: RecordDict) -> None:
    """Arrays within rounding, figures the same."""
    found, expected = (
        wire.decode(wire.unpack(each[messages.ARRAYS]), task.schema, masks=[mask])
        for each in (one, other)
    )
    for name, value in expected.state.items():
        np.testing.assert_allclose(found.state[name], value, rtol=1e-4, atol=1e-6)
    metrics = dict(other[messages.METRICS])
    assert dict(one[messages.METRICS]) == pytest.approx(metrics, rel=1e-4)


def test_replies_and_states_are_those_of_the_app():
    task, mask, model = world("client.keep_optimizer=true", "client.momentum=0.5")
    payload, plan = wire.encode(model, mask=mask), Plan(round=1, proximal_mu=0.1)
    states = None
    for _ in range(2):
        replies = train_many(*(together := letters(task, payload, plan, states)))
        alone = letters(task, payload, plan, states)
        for place, (message, context) in enumerate(zip(*alone, strict=True)):
            expected, reply = app(message, context), replies[place]
            assert isinstance(reply, Message)
            assert reply.metadata.reply_to_message_id == f"message {place}"
            assert_alike(task, mask, reply.content, expected.content)
            kept = together[1][place].state.array_records
            assert set(kept) == set(context.state.array_records)
        states = [plain_state(context.state) for context in together[1]]
        payload = wire.encode(model, mask=mask, mode="shared")  # the clients hold the mask


def test_the_largest_pruned_gradients_come_with_it():
    task, mask, model = world()
    payload = wire.encode(model, mask=mask)
    plan = Plan(round=1, grow={task.prunable[0]: 7}, samples=16)
    replies = train_many(*letters(task, payload, plan))
    for reply, message, context in zip(replies, *letters(task, payload, plan), strict=True):
        schema = wire.Schema(((task.prunable[0], task.shapes[task.prunable[0]]),))
        one, other = (
            wire.decode(wire.unpack(each.content[messages.GROWTH]), schema)
            for each in (reply, app(message, context))
        )
        assert one.mask == other.mask


def test_what_is_wrong_with_one_reaches_no_other():
    task, mask, model = world()
    payload = wire.encode(model, mask=mask)
    whole = train_many(*letters(task, payload, Plan(round=1)))
    sent, contexts = letters(task, payload, Plan(round=1))
    del sent[1].content[messages.ARRAYS]
    contexts[2].node_config["partition-id"] = 99
    replies = train_many(sent, contexts)
    assert "carries no model" in str(replies[1])
    assert "99" in str(replies[2])
    for place in (0, 3):
        assert_alike(task, mask, replies[place].content, whole[place].content)


def test_a_model_that_no_cohort_can_train_is_trained_one_by_one(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("cannot be vectorised")

    task, mask, model = world()
    payload = wire.encode(model, mask=mask)
    monkeypatch.setattr("fedsparse.training.cohort.train", refuse)
    replies = train_many(*letters(task, payload, Plan(round=1)))
    for reply, message, context in zip(
        replies, *letters(task, payload, Plan(round=1)), strict=True
    ):
        assert wire.unpack(reply.content[messages.ARRAYS]) == wire.unpack(
            app(message, context).content[messages.ARRAYS]
        )


def test_other_kinds_of_message_are_answered_too():
    task, mask, model = world("data.client_test_fraction=0.2")
    sent, contexts = letters(task, wire.encode(model, mask=mask), Plan(round=1), None, "evaluate")
    assert all(isinstance(reply, Message) for reply in train_many(sent, contexts))
