"""Devices that add noise: what they send, how often, and what a node that promises refuses."""

import dataclasses

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from clients import client_app, promise
from clients.ldp import LdpIht, Nldp
from fedsparse import messages, wire
from fedsparse.errors import ConfigError, DataError
from fedsparse.privacy import promised, regression
from simulations import flower_internals as internals
from tests.clients.visits import context, strategy, visit
from tests.tiny_runs import tiny

SMALL = (
    "data.name=synthetic-regression",
    "data.samples=400",
    "data.features=30",
    "data.nonzero=3",
    "data.partition=iid",
    "data.public_samples=0",
    "data.client_test_fraction=0",
    "fleet.evaluate_clients=0",
    "model.name=linear",
    "model.width=1.0",
    "run.rounds=1",
)
"""100 samples on each of 4 clients."""

PROGRAMS = {"nldp": Nldp, "ldp-iht": LdpIht}


def made(name="nldp", *assignments):
    return strategy(name, *assignments, small=SMALL)


def told(found):
    """Return all that an outcome says of samples, as one vector."""
    parts = [found.kept["fc.weight"].reshape(-1)]
    if messages.MOMENTS in found.records:
        schema = wire.Schema(((messages.MOMENTS, (465,)),))
        record = wire.decode(wire.unpack(found.records[messages.MOMENTS]), schema)
        parts.insert(0, record.state[messages.MOMENTS])
    return np.concatenate(parts).astype(np.float64)


def clean(asked, name):
    """Return the mean of the bounded messages, worked out sample by sample."""
    data, s = asked.job.data.train, asked.settings
    if name == "nldp":
        each = [
            regression.moments(data.x[i : i + 1], data.y[i : i + 1], s["longest"], s["largest"])
            for i in range(len(data))
        ]
    else:
        each = []
        for x, y in zip(data.x.astype(np.float64), data.y, strict=True):
            g = -x * y  # the model that was sent is zero
            each.append(g / max(np.linalg.norm(g), s["clip"]))
    return np.mean(each, axis=0)


@pytest.mark.parametrize("entropy", ["seed", "system"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_sent_is_the_clean_mean_and_noise_of_the_stated_deviation(name, entropy):
    sensitivity = {"nldp": 3 / 2**0.5, "ldp-iht": 2.0}[name]
    server = made(name, f"privacy.entropy={entropy}")
    noise = []
    for client in range(1 if name == "nldp" else 4):
        asked = visit(server, held=context(client))
        noise.append(told(PROGRAMS[name]().train(asked)) - clean(asked, name))
    found = np.concatenate(noise) * len(asked.job.data.train) ** 0.5
    wanted = sensitivity * 3.730632
    assert server.deviation == pytest.approx(wanted, rel=1e-6)
    assert len(found) == (495 if name == "nldp" else 120)
    assert np.std(found) == pytest.approx(wanted, rel=5 / (2 * len(found)) ** 0.5)
    assert abs(np.mean(found)) < 5 * wanted / len(found) ** 0.5


@pytest.mark.parametrize("entropy", ["seed", "system"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_client_answers_once_and_the_same_question_in_the_same_words(name, entropy):
    server, held = made(name, f"privacy.entropy={entropy}"), context()
    first = told(PROGRAMS[name]().train(visit(server, held=held)))
    again = told(PROGRAMS[name]().train(visit(server, held=held)))
    np.testing.assert_array_equal(first, again)
    moved = {n: v + np.float32(1) for n, v in server.state.items()}
    for other in (visit(server, moved, held=held), visit(server, held=held, number=2)):
        with pytest.raises(ConfigError, match=r"answers nothing more in this run; start another"):
            PROGRAMS[name]().train(other)


def test_noise_of_the_system_is_nobody_s_to_take_off_and_seeded_noise_is_the_same_again():
    system = made("nldp", "privacy.entropy=system")
    assert (told(Nldp().train(visit(system))) != told(Nldp().train(visit(system)))).all()
    seeded = made("nldp")
    first, second = (told(Nldp().train(visit(seeded))) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_what_nldp_sends_depends_on_nothing_that_it_receives():
    server = made("nldp")
    moved = {n: v + np.float32(1) for n, v in server.state.items()}
    first, second = told(Nldp().train(visit(server))), told(Nldp().train(visit(server, moved)))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", PROGRAMS)
def test_losses_are_not_told(name):
    found = PROGRAMS[name]().train(visit(made(name)))
    assert (found.trained.loss, found.trained.accuracy, found.figures) == (0.0, 0.0, {})
    with pytest.raises(ConfigError, match=r"test nothing; set fleet\.evaluate_clients = 0"):
        PROGRAMS[name]().test(visit(made(name)))


def test_classes_are_no_targets():
    server = strategy("fedavg", "strategy.density=1.0", "model.name=linear", "model.width=1.0")
    with pytest.raises(DataError, match=r"targets that are numbers; these are 10 classes"):
        Nldp().clean(visit(server))


# -- a node that promises ---------------------------------------------------------------


def refused(most, *assignments, name="nldp", kind=messages.TRAIN):
    server = made(name, *assignments)
    node = context()
    node.node_config.update({promised.EPSILON_KEY: most, messages.STATE_PATH_KEY: "states"})
    promise.hold(node, kind, server.task.config, server.plan(1))


def test_a_node_that_promises_takes_part_where_the_run_keeps_its_promise():
    refused(1.0, "privacy.entropy=system")
    refused(2, "privacy.entropy=system", name="ldp-iht")


@pytest.mark.parametrize(
    ("most", "assignments", "more", "reason"),
    [
        (0.5, ("privacy.entropy=system",), {}, r"strategy\.epsilon = 1\.0: .* 0\.5 at most"),
        (1.0, ("privacy.delta=0.5",), {}, r"privacy\.delta = 0\.5: .* 1e-05 at most; lower it"),
        (1.0, (), {}, r"privacy\.entropy = 'seed': this node's noise must be its own"),
        (1.0, ("privacy.entropy=system",), {"kind": messages.EVALUATE}, r"by nldp or ldp-iht"),
        (1.0, ("privacy.entropy=system",), {"kind": messages.SCORE}, r"by nldp or ldp-iht"),
        (
            1.0,
            ("strategy.pretrain_epochs=0",),
            {"name": "fedavg"},
            r"takes part in training by nldp or ldp-iht alone",
        ),
        ("much", (), {}, r"'max-epsilon' is 'much'; start it with a finite number above 0"),
        (True, (), {}, r"'max-epsilon' is True"),
        (float("nan"), (), {}, r"'max-epsilon' is nan"),
        (float("inf"), (), {}, r"'max-epsilon' is inf; .* for example .*'max-epsilon=1\.0'"),
        (10**400, (), {}, r"'max-epsilon' is 10{39}; start it"),
        (-1, (), {}, r"'max-epsilon' is -1; start it"),
    ],
)
def test_a_node_that_promises_refuses_what_would_break_it(most, assignments, more, reason):
    with pytest.raises(ConfigError, match=reason):
        refused(most, *assignments, **more)


@pytest.mark.parametrize("most", [0, 1, 2.0, float("nan"), float("inf"), "1e-5"])
def test_a_delta_that_bounds_no_chance_is_no_promise(most):
    server, node = made("nldp"), context()
    node.node_config.update({promised.EPSILON_KEY: 1.0, promised.DELTA_KEY: most})
    with pytest.raises(ConfigError, match=r"'max-delta' is .*; start it with a number between 0"):
        promise.hold(node, messages.TRAIN, server.task.config, server.plan(1))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", ["strategy.epsilon", "privacy.delta"])
def test_a_server_s_promise_is_a_finite_number(key, value):
    with pytest.raises(ConfigError, match=rf"{key} = {value}: must be a finite number"):
        made("nldp", f"{key}={value}")


def test_a_node_that_promises_must_remember_what_it_told():
    server, node = made("nldp", "privacy.entropy=system"), context()
    node.node_config[promised.EPSILON_KEY] = 1.0
    with pytest.raises(ConfigError, match=r"forget what it has told when it restarts; start it"):
        promise.hold(node, messages.TRAIN, server.task.config, server.plan(1))


def test_the_app_holds_the_node_to_its_promise():
    node = context()
    node.node_config.update({promised.EPSILON_KEY: 0.5, messages.STATE_PATH_KEY: "states"})
    server = made("nldp")
    with pytest.raises(ConfigError, match=r"0\.5 at most"):
        visit(server, held=node)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-170, float("nan"), float("inf"), "2", [2.0]])
@pytest.mark.parametrize("key", ["longest", "largest"])
def test_a_bound_that_bounds_nothing_is_refused(key, value):
    """A client is sent the strategy's settings, which nobody has checked."""
    server = made("nldp")
    config = server.task.config
    section = {**config.strategy, key: value}
    server.task = dataclasses.replace(
        server.task, config=config.model_copy(update={"strategy": section})
    )
    with pytest.raises(ConfigError, match=rf"strategy\.{key} = .*: must be a number from 1e-100"):
        Nldp().train(visit(server))


def asked(node, *assignments, kind=messages.TRAIN):
    """Let a promising node with targets 40, 41, ... answer, and return what it says of its data."""
    own = ("data.name=nodes", 'data.shape="30"', "data.classes=1", "privacy.entropy=system")
    server = made("nldp")
    sent = tiny(*SMALL, "strategy.name=nldp", *own, *assignments)
    plan = messages.Plan() if kind == messages.IDENTIFY else server.plan(1)
    content = RecordDict(
        {
            messages.ARRAYS: wire.pack(wire.encode(server.shared)),
            messages.CONFIG: messages.write_config(sent, plan),
        }
    )
    internals.become_server(1)
    message = Message(content, 1, kind)
    internals.number(message, "1")
    return client_app.app(message, node).content


@pytest.fixture
def promising(tmp_path):
    """A node with 20 samples, whose targets are whole numbers."""
    node, rng = context(), np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", x=rng.normal(size=(20, 30)), y=np.arange(40.0, 60.0))
    told = {"data-path": str(tmp_path / "own.npz"), "cache-path": str(tmp_path / "kept")}
    told[messages.STATE_PATH_KEY] = str(tmp_path / "states")
    node.node_config.update({promised.EPSILON_KEY: 1.0, **told})
    return node


def test_a_node_that_promises_tells_how_many_samples_of_which_shape(promising):
    told = asked(promising, kind=messages.IDENTIFY)[messages.DATA]
    assert (told["samples"], told["shape"], told["highest-label"]) == (20, "30", -1)
    assert asked(promising)[messages.METRICS]["num-examples"] == 20


NOSY = {
    "the highest target": ("data.classes=100",),
    "a target in a reason": ("data.labels=a,b",),
    "another in another": ("data.labels=40,b",),
    "whether all are known": (f"data.labels={','.join(map(str, range(40, 60)))}",),
}


@pytest.mark.parametrize("name", NOSY)
def test_a_node_that_promises_says_the_same_of_all_data_that_do_not_fit(promising, name, caplog):
    told = asked(promising, *NOSY[name], kind=messages.IDENTIFY)[messages.DATA]
    assert dict(told) == {"problem": promise.UNFIT}
    assert caplog.records, "the node's own log says more"
    with pytest.raises(ConfigError, match=r"the run has \d+ classes: .*set data\.classes = 1"):
        asked(promising, *NOSY[name])


def test_what_is_wrong_with_a_file_its_node_alone_says(promising, tmp_path, caplog):
    (tmp_path / "own.csv").write_text("1,2,secret\n")
    promising.node_config["data-path"] = str(tmp_path / "own.csv")
    with pytest.raises(DataError) as refused:
        asked(promising)
    assert str(refused.value) == promise.UNFIT
    assert "secret" in caplog.text


def test_samples_that_are_promised_are_neither_counted_by_target_nor_stamped(promising):
    with pytest.raises(DataError, match="its own log says more"):
        asked(promising, "forget.classes=40")
    with pytest.raises(ConfigError, match=r"attack\.clients = 0: this node's samples are for no"):
        asked(promising, "attack.clients=0")


def test_a_node_that_promises_nothing_says_what_is_wrong(promising):
    del promising.node_config[promised.EPSILON_KEY]
    with pytest.raises(DataError, match="its highest label is 59, the run's classes are 0 to 1"):
        asked(promising, "data.labels=a,b")
    with pytest.raises(DataError, match="these targets are numbers, there are no classes"):
        asked(promising, "forget.classes=40")
