"""FedAvg: its mean and its server's momentum by hand, what it asks for, what it costs."""

import numpy as np
import pytest

from fedsparse import messages, wire
from fedsparse.errors import ConfigError
from simulations.grid import CohortGrid
from strategies.fedavg import FedAvg
from strategies.replies import Reply
from strategies.sums import weighted_mean
from strategies.task import Task
from tests.strategies.stage import constant, payload, play, reply, stage
from tests.tiny_runs import tiny

FEDAVG = "strategy.name=fedavg"


def everywhere(strategy, value):
    """Whether every entry of the model has this value, exactly."""
    return all((part == np.float32(value)).all() for part in strategy.state.values())


def send(strategy, round_number, *values_and_samples):
    """Let clients 0, 1, .. reply with a constant model and a number of samples each."""
    replies = [
        reply(strategy, k, payload(strategy, value), {"num-examples": n, "loss": float(k)})
        for k, (value, n) in enumerate(values_and_samples)
    ]
    return strategy.aggregate_train(round_number, replies)


def test_the_mean_is_weighted_by_samples():
    """(1 * 1 + 1 * 2 + 2 * 4) / 4 = 2.75, and so for the losses 0, 1 and 2."""
    strategy, _ = stage(FEDAVG)
    arrays, metrics = send(strategy, 1, (1.0, 1), (2.0, 1), (4.0, 2))
    assert everywhere(strategy, 2.75)
    assert wire.unpack(arrays) == wire.encode(constant(strategy, 2.75))
    assert dict(metrics) == {"loss": (0 + 1 + 2 * 2) / 4, "clients": 3}


class LastFirst(CohortGrid):
    """A grid on which the last client replies first."""

    def send_and_receive(self, messages, *, timeout=None):
        """Return the replies backwards."""
        return list(super().send_and_receive(messages, timeout=timeout))[::-1]


def test_the_order_in_which_replies_arrive_changes_no_bit():
    models = []
    for grid in (CohortGrid, LastFirst):
        strategy, metered = stage(FEDAVG, grid=grid)
        strategy.prepare(metered)
        for number in (1, 2):
            replies = play(strategy, metered, number)
        clients = [metered.directory.client_of[r.metadata.src_node_id] for r in replies]
        assert clients == [0, 1, 2, 3]
        models.append(wire.encode(strategy.state))
    assert models[0] == models[1]


@pytest.mark.parametrize(
    ("momentum", "lr", "first", "second"),
    [
        (0.0, 1.0, 1.0, 2.0),  # plain FedAvg: the means themselves
        (0.0, 0.5, 0.5, 1.25),  # w <- w + (mean - w) / 2
        (0.5, 1.0, 1.0, 2.5),  # v = -1, w = 1; v = -0.5 - 1, w = 1 + 1.5
        (0.5, 0.5, 0.5, 1.5),  # v = -1, w = 0.5; v = -0.5 - 1.5, w = 0.5 + 1
    ],
)
def test_the_servers_step_over_two_rounds(momentum, lr, first, second):
    """v <- beta v + (w - mean), w <- w - lr v, from w = 0 with the means 1 and 2."""
    strategy, _ = stage(FEDAVG, f"strategy.server_momentum={momentum}", f"strategy.server_lr={lr}")
    strategy.state = constant(strategy, 0.0)
    send(strategy, 1, (0.0, 5), (2.0, 5))
    assert everywhere(strategy, first)
    restored, _ = stage(FEDAVG, f"strategy.server_momentum={momentum}", f"strategy.server_lr={lr}")
    restored.load_state_dict(strategy.state_dict())
    for either in (strategy, restored):
        send(either, 2, (1.0, 5), (3.0, 5))
        assert everywhere(either, second)


def test_running_statistics_take_no_server_step():
    """A variance must not be moved past zero: BatchNorm's statistics are the mean."""
    strategy, _ = stage(FEDAVG, "model.name=cnn", "strategy.server_lr=0.5")
    strategy.state = constant(strategy, 0.0)
    send(strategy, 1, (0.0, 5), (2.0, 5))
    assert (strategy.state["norm1.running_var"] == 1.0).all()
    assert (strategy.state["norm1.running_mean"] == 1.0).all()
    assert (strategy.state["norm1.weight"] == 0.5).all()


def test_the_proximal_term_reaches_clients_and_holds_them_back():
    def moved(*assignments):
        steps = ("client.batch_size=4", "client.local_epochs=4", "client.momentum=0.0")
        strategy, grid = stage(FEDAVG, *steps, *assignments)
        strategy.prepare(grid)
        start = {name: value.copy() for name, value in strategy.state.items()}
        (asked, *_) = strategy.configure_train(1, strategy.arrays(), None, grid)
        _, plan = messages.read_config(asked.content.config_records[messages.CONFIG])
        play(strategy, grid, 1)
        apart = sum(float(((strategy.state[n] - start[n]) ** 2).sum()) for n in start)
        return plan.proximal_mu, apart

    mu, free = moved()
    assert mu == 0.0
    mu, held = moved("strategy.proximal_mu=5.0")
    assert mu == 5.0
    assert 0 < held < 0.5 * free


def test_a_density_is_refused():
    with pytest.raises(ConfigError, match=r"strategy\.density = 0\.5: fedavg is dense"):
        FedAvg(Task.of(tiny(FEDAVG, "strategy.density=0.5")))


def test_a_round_costs_one_dense_payload_each_way_for_each_client():
    strategy, grid = stage(FEDAVG, "fleet.clients_per_round=3")
    strategy.prepare(grid)
    dense = len(wire.encode(strategy.state))
    assert dense > 4 * (1440 + 42)
    play(strategy, grid, 1)
    traffic = grid.read_traffic()
    assert set(traffic.down.values()) == set(traffic.up.values()) == {dense}
    assert (traffic.bytes_down, traffic.bytes_up) == (3 * dense, 3 * dense)
    assert grid.read_traffic().bytes_down == 0


def test_the_mean_is_rounded_once():
    """Summed exactly: single precision would be off in the last bit, and so are shares at ties."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 1000), dtype=np.float32)
    replies = [Reply(k, n, {"w": values[k]}, 0.0, None) for k, n in enumerate((1, 3, 7))]
    exact = (values.astype(np.float64) * np.array([[1], [3], [7]])).sum(0) / 11
    assert np.array_equal(weighted_mean(replies)["w"], exact.astype(np.float32))
