"""FedRep: the body travels and the head stays; each is trained under the other, held still."""

import pytest

from clients import fedrep
from clients.program import program_of
from fedsparse import models, wire
from fedsparse.errors import ConfigError
from fedsparse.training import local
from tests.clients import visits
from tests.strategies.stage import play, stage

HEAD = ("fc3.weight", "fc3.bias")
BODY = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
PROGRAM = program_of("fedrep")


def equal(one, other, names):
    """Whether two states hold the same bits under these names."""
    return all((one[name] == other[name]).all() for name in names)


def differ(one, other, names):
    """Whether each of these tensors differs."""
    return all((one[name] != other[name]).any() for name in names)


def test_the_head_is_trained_on_the_received_body_and_then_the_body_under_that_head():
    strategy = visits.strategy("fedrep", "strategy.head_epochs=3")
    visit = visits.visit(strategy)
    outcome = PROGRAM.train(visit)
    job, whole = visit.job, visit.whole()
    module = models.build("mlp", input_shape=(64,), classes=10, width=0.25)
    state = whole
    for frozen, purpose, epochs in ((BODY, "head", 3), (HEAD, "batches", 1)):
        models.load_state(module, state)
        local.train(
            module, job.data.train, job.settings, rng=visit.stream(purpose), epochs=epochs,
            problem=local.Problem(frozen=frozenset(frozen)),
        )  # fmt: skip
        state = models.get_state(module)
    kept = visit.recall(fedrep.HEAD)
    assert (set(outcome.kept), set(kept)) == (set(BODY), set(HEAD))
    assert equal(outcome.kept, state, BODY)
    assert equal(kept, state, HEAD)
    assert differ(kept, whole, HEAD)
    assert differ(outcome.kept, whole, ("fc1.weight", "fc2.weight"))


def test_a_head_goes_on_where_it_was_left_and_the_body_comes_from_the_server():
    strategy = visits.strategy("fedrep")
    held = visits.context()
    PROGRAM.train(visits.visit(strategy, held=held))
    first = visits.visit(strategy, held=held).recall(fedrep.HEAD)
    other = {name: value + 0.01 for name, value in strategy.shared.items()}
    again = visits.visit(strategy, other, held=held, number=2)
    assert equal(again.whole([fedrep.HEAD]), {**first, **other}, (*BODY, *HEAD))
    used = PROGRAM.personal(again)
    assert equal(used.state, {**first, **other}, (*BODY, *HEAD))
    assert used.flops == 0


def test_a_new_client_trains_a_head_for_its_use_and_keeps_nothing():
    strategy = visits.strategy("fedrep", "strategy.head_epochs=4")
    visit = visits.visit(strategy)
    used = PROGRAM.personal(visit)
    assert equal(used.state, visit.received.state, BODY)
    assert differ(used.state, visit.job.initial, HEAD)
    assert visit.recall(fedrep.HEAD) is None
    # per sample 2 * 1440 FLOPs forward and 2 * 160 for the gradient of the 16 x 10 head
    assert used.flops == 4 * len(visit.job.data.train.y) * (2 * 1440 + 2 * 160)


def test_the_heads_phase_leaves_no_trace_in_the_bodys_batchnorm():
    """What it does to the running means would show in the body's own phase."""
    strategy = visits.strategy("fedrep", small=("client.backend=torch",))
    visit = visits.visit(strategy)
    head = fedrep.fit_head(visit, visit.whole())
    assert not [name for name in head if "running" in name]
    alone, _ = fedrep.fit_body(visit, {**head, **visit.received.state})
    assert equal(PROGRAM.train(visit).kept, alone, alone)


def test_only_the_body_travels_either_way():
    strategy, grid = stage("strategy.name=fedrep")
    strategy.prepare(grid)
    replies = play(strategy, grid, 1)
    schema = strategy.task.part("body")
    assert schema.names == BODY
    for reply in replies:
        content = wire.unpack(reply.content.array_records["arrays"])
        assert set(wire.decode(content, schema).state) == set(BODY)
    sent = wire.unpack(strategy.arrays())
    assert set(wire.decode(sent, schema).state) == set(BODY)
    assert len(sent) < 4 * (64 * 16 + 16 + 16 * 16 + 16) + 200
    assert equal(strategy.state, models.get_state(strategy.task.model), HEAD)


def test_its_work_by_hand():
    """Forward F = 2 * 1440, head h = 2 * 160: (2 (3F - h) + 5 (F + h)) / (2 * 3F)."""
    strategy = visits.strategy("fedrep", "client.local_epochs=2")
    forward, head = 2 * 1440, 2 * 160
    expected = (2 * (3 * forward - head) + 5 * (forward + head)) / (6 * forward)
    assert strategy.plan(1).work == pytest.approx(expected)
    assert strategy.plan(1).held == 0


def test_a_model_of_one_layer_is_refused():
    with pytest.raises(ConfigError, match="all one layer"):
        visits.strategy("fedrep", "model.name=linear")
