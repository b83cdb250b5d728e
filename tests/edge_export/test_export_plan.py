"""What an export would be: what it costs, and what `auto` takes."""

import pytest

from edge_export import costs, network
from edge_export.export import calibrated
from edge_export.plan import AUTO, choices, plan
from fedsparse.errors import ExportError
from tests.edge_export.networks import pruned, samples
from tests.edge_export.test_xnnpack import chain


@pytest.fixture(scope="module")
def mobile():
    shape = (3, 64, 64)
    return network.of(pruned("mobilenet-v1", shape, density=0.1), shape)


@pytest.fixture(scope="module")
def ranges(mobile):
    return calibrated(mobile, samples(mobile.input_shape))


def factors(monkeypatch, **of):
    """Let an instruction be what is named of each arithmetic, on every core."""
    names = {"f32": "f32", "sparse": "f32 sparse", "static": "int8 static"}
    known = {names[kernels]: {"operators": price} for kernels, price in of.items()}
    monkeypatch.setattr(costs, "known", lambda: dict.fromkeys(costs.CORES, known))


def made(found, ranges, values=AUTO, layout=AUTO, target="cortex-a72"):
    return plan(found, values=values, layout=layout, target=target, ranges=ranges)


@pytest.mark.parametrize(
    ("prices", "taken"),
    [
        ({"f32": 3, "sparse": 2, "static": 1}, "int8 static"),
        ({"f32": 3, "sparse": 1, "static": 2}, "f16 sparse"),  # the smallest that runs sparsely
        ({"f32": 1, "sparse": 2, "static": 3}, "int8 dense"),
    ],
)
def test_auto_takes_the_cheapest_and_of_equals_the_smallest(
    mobile, ranges, monkeypatch, prices, taken
):
    factors(monkeypatch, **prices)
    found = made(mobile, ranges)
    assert found.best.storage.name == taken
    assert found.gain(found.best) == prices["f32"]


def test_a_file_that_nothing_makes_faster_is_the_smallest(ranges, monkeypatch):
    factors(monkeypatch, f32=1, static=2)
    shape = (3, 16, 16)
    found = network.of(pruned("resnet18", shape), shape)
    best = made(found, calibrated(found, samples(shape))).best
    assert best.storage.name == "int8 sparse"
    assert not any(row.sparse for row in best.verdicts)


def test_on_x86_size_decides_and_no_gain_is_told(mobile, ranges):
    found = made(mobile, ranges, target="x86")
    assert found.best.nbytes == min(c.nbytes for c in found.candidates)
    assert found.gain(found.best) is None


def test_an_asked_for_layout_is_kept(mobile, ranges, monkeypatch):
    factors(monkeypatch, f32=1, sparse=2, static=3)
    for values, layout, taken in (
        ("f32", "sparse", "f32 sparse"),
        ("int8", "sparse", "int8 sparse"),
        ("int8", "dense", "int8 static"),
        ("int8-weights", "dense", "int8 dense"),
        ("f16", "dense", "f16 dense"),
    ):
        assert made(mobile, ranges, values, layout).best.storage.name == taken


def test_without_zeros_auto_is_dense_and_sparse_says_so(ranges):
    shape = (1, 8, 8)
    whole = network.of(pruned("mlp", shape, density=1.0), shape)
    ranges = calibrated(whole, samples(shape))
    assert not made(whole, ranges, "f32").best.storage.sparse
    with pytest.raises(ExportError, match="--values int8-dynamic has no sparse layout"):
        choices("int8-dynamic", "sparse")


def test_a_dense_file_is_said_to_be_computed_densely_for_its_storage(mobile, ranges):
    verdicts = made(mobile, ranges, "f32", "dense").best.verdicts
    assert "pointwise1.conv: stored densely" in {f"{v.layer}: {v.reason[:14]}" for v in verdicts}
    static = made(mobile, ranges, "int8", "dense").best.verdicts
    assert {v.reason for v in static} == {"int8 arithmetic: XNNPACK has no sparse int8 kernels"}


def test_what_a_network_does_is_counted_in_whole_tiles():
    found = chain()  # 3 channels of 16x16 to 8x8: 3x3, depthwise, 1x1 to 16, 1x1 to 16, linear
    does = costs.features(found, frozenset(), "f32")
    rows = 66  # of 64 pixels, six at once
    assert does["macs"] == rows * 8 * 27 + rows * 16 * 8 + rows * 16 * 16
    assert does["tiles"] == rows * 1 + rows * 2 + rows * 2
    assert does["depthwise_macs"] == 64 * 8 * 9
    assert does["linear_macs"] == 8 * 16  # three outputs are computed as eight
    assert does["kept_macs"] == 0
    sparse = costs.features(found, frozenset({"4", "6"}), "f32 sparse")
    kept = 13 + 26  # a tenth of 128 and of 256 weights
    assert sparse["kept_macs"] == kept * 64
    assert sparse["kept_steps"] == kept * 2
    assert sparse["macs"] == 0
    assert sparse["entry_strips"] == 2 * 8 * 2  # eight channels, eight rows of eight, by four


def test_a_wider_entry_is_counted():
    found = chain(channels=1)
    plain, wide = (costs.features(found, frozenset(), "f32", widen=w) for w in (False, True))
    assert wide["tiles"] - plain["tiles"] == 16 * 16


def test_factors_of_every_core_are_shipped(mobile, ranges):
    assert set(costs.known()) == set(costs.CORES)
    for core in costs.CORES:
        found = made(mobile, ranges, target=core)
        assert all(c.instructions and c.instructions > 0 for c in found.candidates)


def test_an_unknown_core_is_named_with_the_nearest():
    with pytest.raises(ExportError, match="unknown target 'cortex-a77'; did you mean 'cortex-a7"):
        costs.check_target("cortex-a77")
