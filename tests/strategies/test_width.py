"""HeteroFL, FedRolex, FjORD: whose slice is which, what travels, entry-wise means (gate G12)."""

import numpy as np
import pytest
import torch

from fedsparse import messages, models, wire
from fedsparse.errors import ConfigError
from fedsparse.runs import RunFolder
from fedsparse.training import batchnorm
from strategies import foreign
from strategies.task import Task, masked
from tests.device_files import fleet_file
from tests.strategies.stage import QUICK, play, reply, stage
from tests.tiny_runs import model_bytes, rows, run, tiny

WIDE = ("strategy.widths=[1.0]", "strategy.static_norm=false")
CNN = ("model.name=cnn", "model.width=0.5")


def opened(name, *more):
    strategy, grid = stage(f"strategy.name={name}", *more)
    strategy.prepare(grid)
    return strategy, grid


def asked(strategy, grid, number=1):
    return list(strategy.configure_train(number, strategy.arrays(), None, grid))


def payload_of(message) -> bytes:
    return wire.unpack(message.content.array_records[messages.ARRAYS])


def answers(strategy, values, examples=10):
    """Return replies under the clients' own masks with one value everywhere."""
    found = []
    for client, value in values.items():
        mask = strategy.mask_of(client)
        shapes = strategy.task.schema.tensors
        state = masked({name: np.full(shape, value, np.float32) for name, shape in shapes}, mask)
        told = {messages.EXAMPLES_KEY: examples * (client + 1), "loss": 0.5}
        found.append(reply(strategy, client, wire.encode(state, mask=mask), told))
    return found


# -- whose slice is which -----------------------------------------------------------------


def test_fixed_widths_go_round_the_clients_and_the_rounds_leave_them():
    strategy, _ = opened("heterofl", "strategy.widths=[1.0,0.5,0.25]")
    for number in (1, 5):
        strategy.turn_to(number)
        assert [strategy.width_of(c) for c in range(5)] == [1.0, 0.5, 0.25, 1.0, 0.5]
    assert strategy.mask_of(0) is None
    first = strategy.mask_of(1)["fc1.weight"]
    assert np.flatnonzero(first.any(1)).tolist() == list(range(8))
    assert strategy.mask_of(1) == strategy.mask_of(4)


def test_dynamic_widths_are_drawn_anew_each_round_the_same_by_everyone():
    more = ("strategy.assign=dynamic", "fleet.clients=12", "data.min_per_client=1")
    (one, _), (other, _) = (opened("heterofl", *more) for _ in range(2))
    seen = []
    for number in (1, 2, 3):
        one.turn_to(number)
        seen.append([one.width_of(client) for client in range(12)])
    other.turn_to(2)
    assert [other.width_of(client) for client in range(12)] == seen[1]
    assert seen[0] != seen[1] != seen[2]
    assert {width for drawn in seen for width in drawn} == {1.0, 0.5, 0.25, 0.125, 0.0625}


def test_a_device_is_given_the_largest_width_that_it_holds(tmp_path):
    """A batch's activations and the biases take 20 kB; weights that are whole 106 kB more."""
    fleet = fleet_file(
        tmp_path, {"share": 0.8, "memory_bytes": 1e9}, {"share": 0.2, "memory_bytes": 70e3}
    )
    out = tmp_path / "run"
    run(
        out,
        *("model.name=mlp", "model.width=1.0", "fleet.clients=8", "run.rounds=1"),
        *(f"fleet.profile={fleet}", "strategy.name=heterofl", "strategy.assign=device"),
        "strategy.widths=[0.25,1.0,0.5]",
    )
    trained = [row for row in RunFolder.open(out).clients() if row["kind"] == "train"]
    assert len(trained) == 8
    by_device = {row["device"]: row["memory_bytes"] for row in trained}
    assert by_device["kind-0"] > 100e3
    assert 40e3 < by_device["kind-1"] <= 70e3


def test_widths_by_device_need_devices():
    with pytest.raises(ConfigError, match=r"strategy\.assign = 'device' asks .* fleet\.profile"):
        stage("strategy.name=heterofl", "strategy.assign=device")


def test_rolex_begins_at_the_rounds_channel_and_touches_every_channel_within_c_rounds():
    """Gate G12: the hidden layers have 16 channels; a quarter of them are 4."""
    strategy, _ = opened("fedrolex", "strategy.widths=[0.25]")
    touched = np.zeros(16, int)
    for number in range(1, 17):
        strategy.turn_to(number)
        mask = strategy.mask_of(0)
        rows_kept = np.flatnonzero(mask["fc1.weight"].any(1))
        assert set(rows_kept) == {(number + i) % 16 for i in range(4)}
        assert set(np.flatnonzero(mask["fc3.weight"].any(0))) == set(rows_kept)
        touched[rows_kept] += 1
    assert touched.tolist() == [4] * 16


def test_only_the_rounds_slices_are_remembered():
    strategy, _ = opened("fedrolex")
    for number in range(1, 5):
        strategy.turn_to(number)
        masks = {strategy.mask_of(client) for client in range(5)}
        assert len(masks) == 5
        assert len(strategy.held_by) == 4


# -- the mean -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["heterofl", "fedrolex", "fjord"])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_with_all_widths_1_it_is_fedavg_to_the_last_bit(tmp_path, name, model):
    """Gate G12, where clients count by their samples."""
    settings = (*QUICK, f"model.name={model}", "run.rounds=2", "client.backend=torch")
    plain = ("strategy.name=fedavg", "strategy.pretrain_epochs=0")
    run(tmp_path / "fedavg", *settings, *plain)
    run(tmp_path / "own", *settings, f"strategy.name={name}", *WIDE, "strategy.weighted=true")
    assert model_bytes(tmp_path / "own") == model_bytes(tmp_path / "fedavg")
    assert [row["density"] for row in rows(tmp_path / "own")] == [1.0] * 3


@pytest.mark.parametrize("name", ["heterofl", "fedrolex"])
def test_with_all_widths_1_it_is_the_unweighted_mean_to_the_last_bit(name):
    """Gate G12: exact sums of float32 in float64 have no rounding but the last."""
    strategy, grid = opened(name, *WIDE, "data.alpha=0.3")
    replies = play(strategy, grid, 1)
    sizes = {r.content.metric_records["metrics"][messages.EXAMPLES_KEY] for r in replies}
    assert len(sizes) > 1
    states = [wire.decode(payload_of(r), strategy.schema).state for r in replies]
    for entry in strategy.schema.names:
        mean = np.mean([s[entry].astype(np.float64) for s in states], 0).astype(np.float32)
        assert np.array_equal(strategy.state[entry], mean)


def test_each_entry_is_the_mean_over_those_that_hold_it():
    """Clients 0 to 3 train widths 1, 1/2, 1, 1/2 and send 1, 2, 4, 7: each counts alike."""
    strategy, grid = opened("heterofl", *CNN, "strategy.widths=[1.0,0.5]", WIDE[1])
    asked(strategy, grid)
    strategy.learn(1, answers(strategy, {0: 1.0, 1: 2.0, 2: 4.0, 3: 7.0}))
    state = strategy.state
    assert np.unique(state["conv2.weight"][:8, :4]).tolist() == [3.5]
    assert np.unique(state["conv2.weight"][8:]).tolist() == [2.5]
    assert np.unique(state["conv2.weight"][:, 4:]).tolist() == [2.5]
    for entry in ("weight", "bias", "running_mean", "running_var"):
        assert state[f"norm2.{entry}"].tolist() == [3.5] * 8 + [2.5] * 8
    assert state["fc1.bias"].tolist() == [3.5] * 16 + [2.5] * 16
    assert state["fc2.bias"].tolist() == [3.5] * 10
    assert np.unique(state["fc2.weight"][:, :16]).tolist() == [3.5]


def test_replies_that_were_not_added_up_have_the_same_mean():
    strategy, grid = opened("heterofl", *CNN, "strategy.widths=[1.0,0.5,0.25]", WIDE[1])
    before = strategy.state
    replies = play(strategy, grid, 1)
    added, strategy.state = strategy.state, before
    strategy.aggregate(1, strategy.read_replies(replies))
    assert strategy.tally is None
    for entry, value in added.items():
        assert np.array_equal(strategy.state[entry], value)


def test_clients_count_by_their_samples_where_asked():
    """Of 10 and 20 samples: (1 * 10 + 4 * 20) / 30."""
    more = ("strategy.widths=[1.0,0.5]", "strategy.weighted=true", "fleet.min_replies=0.5")
    strategy, grid = opened("heterofl", *more)
    asked(strategy, grid)
    strategy.learn(1, answers(strategy, {0: 1.0, 1: 4.0}))
    assert strategy.state["fc1.bias"].tolist() == [3.0] * 8 + [1.0] * 8


@pytest.mark.parametrize("name", ["heterofl", "fedrolex"])
def test_what_nobody_holds_stays_as_it_was(name):
    strategy, grid = opened(name, *CNN, "strategy.widths=[0.5,0.25]", WIDE[1])
    before = {entry: value.copy() for entry, value in strategy.state.items()}
    asked(strategy, grid)
    held = strategy.slice_of(0.5).held
    strategy.learn(1, answers(strategy, dict.fromkeys(range(4), 9.0)))
    for entry, bits in held.items():
        assert np.unique(strategy.state[entry][bits]).tolist() == [9.0]
        assert np.array_equal(strategy.state[entry][~bits], before[entry][~bits])
    assert not all(bits.all() for _, bits in held.items())


def test_training_reaches_what_is_held_and_nothing_else():
    strategy, grid = opened("heterofl", *CNN, "strategy.widths=[0.5]", WIDE[1])
    before = {entry: value.copy() for entry, value in strategy.state.items()}
    play(strategy, grid, 1)
    for entry, bits in strategy.slice_of(0.5).held.items():
        assert np.array_equal(strategy.state[entry][~bits], before[entry][~bits])
        assert (strategy.state[entry][bits] != before[entry][bits]).mean() > 0.5


# -- what travels -------------------------------------------------------------------------


def test_masks_travel_once_and_replies_are_values_alone():
    strategy, grid = opened("heterofl", "strategy.widths=[0.5]")
    mask = strategy.mask_of(0)
    values = wire.encode_kept(mask.take(masked(strategy.state, mask)), strategy.schema, mask)
    sent = [len(payload_of(m)) for m in asked(strategy, grid)]
    assert min(sent) > len(values)
    replies = play(strategy, grid, 1)
    assert {len(payload_of(r)) for r in replies} == {len(values)}
    assert {len(payload_of(m)) for m in asked(strategy, grid, 2)} == {len(values)}


def test_a_client_is_tested_with_its_own_slice():
    strategy, grid = opened("fedrolex", "strategy.widths=[1.0,0.5]")
    play(strategy, grid, 1)
    tests = list(strategy.configure_evaluate(1, strategy.arrays(), None, grid))
    assert len(tests) == 4
    for message in tests:
        client = strategy.directory.client_of[message.metadata.dst_node_id]
        held = strategy.mask_of(client)
        masks = () if held is None else (held,)
        assert wire.decode(payload_of(message), strategy.schema, masks=masks).mask == held


def test_static_statistics_are_those_of_the_slice_on_the_servers_data():
    strategy, grid = opened("heterofl", *CNN, "strategy.widths=[1.0,0.5]")
    play(strategy, grid, 1)
    x = torch.from_numpy(strategy.task.public.x)
    (message,) = [
        m
        for m in strategy.configure_evaluate(1, strategy.arrays(), None, grid)
        if strategy.directory.client_of[m.metadata.dst_node_id] == 1
    ]
    mask = strategy.mask_of(1)
    found = wire.decode(payload_of(message), strategy.schema, masks=(mask,)).state
    for state, statistics in ((masked(strategy.state, mask), found), (strategy.state,) * 2):
        module = models.build("cnn", input_shape=(1, 8, 8), classes=10, width=0.5)
        models.load_state(module, state)
        for entry, value in batchnorm.measure(module, x).items():
            np.testing.assert_allclose(statistics[entry], value, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found["norm2.running_var"][:8], strategy.state["norm2.running_var"][:8])


# -- figures and refusals -----------------------------------------------------------------


def test_density_is_the_mean_over_the_rounds_clients():
    strategy, grid = opened("heterofl", "strategy.widths=[1.0,0.5]", "fleet.clients=3")
    half = 64 * 8 + 8 * 8 + 8 * 10
    asked(strategy, grid)
    assert strategy.density == pytest.approx((1 + half / 1440 + 1) / 3)
    assert strategy.layer_density["fc2.weight"] == pytest.approx((1 + 0.25 + 1) / 3)


@pytest.mark.parametrize("name", ["heterofl", "fedrolex", "fjord"])
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("model.name=linear",), r"model\.name = 'linear' cannot be cut .* no hidden channels"),
        (("strategy.density=0.5",), r"strategy\.density = 0\.5: \w+ is dense"),
        ((*CNN, "data.public_samples=1"), r"strategy\.static_norm = true: .* data\.public_samples"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(name, settings, reason):
    with pytest.raises(ConfigError, match=reason) as refused:
        stage(f"strategy.name={name}", *settings)
    assert "\n" not in str(refused.value)


def test_a_transformer_is_refused(tmp_path):
    np.savez(
        tmp_path / "text.npz",
        x=np.random.default_rng(0).integers(0, 256, (80, 8)),
        y=np.arange(80) % 2,
    )
    config = tiny(
        "data.name=npz",
        f"data.path={tmp_path / 'text.npz'}",
        "model.name=transformer",
        "strategy.name=heterofl",
        "data.public_samples=10",
        "data.samples=60",
        "data.test_samples=10",
    )
    with pytest.raises(ConfigError, match=r"model\.name = 'transformer' cannot be cut") as refused:
        foreign.make(Task.of(config))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("widths", ["[]", "[0.0]", "[1.5]", "0.5"])
def test_widths_out_of_range_are_refused(widths):
    with pytest.raises(ConfigError, match=r"strategy\.widths"):
        tiny("strategy.name=heterofl", f"strategy.widths={widths}")


# -- masked cross-entropy -----------------------------------------------------------------

OWN = ("strategy.own_labels=true", "data.partition=shards", "data.shards_per_client=1")


@pytest.mark.parametrize("name", ["heterofl", "fedrolex"])
def test_outputs_of_labels_that_nobody_has_stay_and_others_are_their_owners_mean(name):
    strategy, grid = opened(name, *OWN, "strategy.widths=[1.0,0.5]", "client.weight_decay=0.1")
    before = {entry: value.copy() for entry, value in strategy.state.items()}
    replies = play(strategy, grid, 1)
    has, sent = {}, {}
    for message in replies:
        client = strategy.directory.client_of[message.metadata.src_node_id]
        y = strategy.task.data.client(client).train.y
        has[client] = np.isin(np.arange(10), y)
        told = wire.unpack(message.content.array_records[messages.LABELS])
        assert np.unpackbits(np.frombuffer(told, np.uint8), count=10).tolist() == [*has[client]]
        mask = strategy.mask_of(client)
        masks = () if mask is None else (mask,)
        sent[client] = wire.decode(payload_of(message), strategy.schema, masks=masks).state
    assert any(not bits.all() for bits in has.values())
    for label in range(10):
        owners = [client for client, bits in has.items() if bits[label]]
        for client in set(has) - set(owners):
            assert sent[client]["fc3.bias"][label] == before["fc3.bias"][label]
        found = strategy.state["fc3.bias"][label]
        if owners:
            mean = np.mean([np.float64(sent[client]["fc3.bias"][label]) for client in owners])
            assert found == np.float32(mean) != before["fc3.bias"][label]
        else:
            assert found == before["fc3.bias"][label]
            assert np.array_equal(strategy.state["fc3.weight"][label], before["fc3.weight"][label])


def test_a_client_names_only_labels_that_it_has():
    """Its personal model, of one that knows one label alone, is right on that label's samples."""
    strategy, grid = opened("heterofl", *OWN, "data.client_test_fraction=0.3", "fleet.clients=10")
    tests = list(strategy.configure_evaluate(1, strategy.arrays(), None, grid))
    for answer in grid.send_and_receive(tests):
        client = strategy.directory.client_of[answer.metadata.src_node_id]
        own = strategy.task.data.client(client)
        if len(set(own.train.y)) == 1 and set(own.test.y) == set(own.train.y):
            assert answer.content.metric_records["metrics"]["accuracy"] == 1.0
            break
    else:
        pytest.fail("no client has one label alone")


def test_a_list_of_labels_of_another_length_is_a_failed_reply():
    strategy, grid = opened("heterofl", *OWN, "fleet.min_replies=0.1")
    replies = list(grid.send_and_receive(asked(strategy, grid)))
    replies[0].content[messages.LABELS] = wire.pack(b"\x00" * 3)
    del replies[1].content[messages.LABELS]
    strategy.learn(1, replies)
    assert "labels has 3 bytes" in strategy.failures[0]
    assert "labels" in strategy.failures[1]
