"""A network's file computes what its module computes, however its weights are stored."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edge_export import network, sparse
from edge_export.emit import emit
from edge_export.export import calibrated
from edge_export.reading import parsed, sparse_tensors
from edge_export.schema import schema
from edge_export.storage import DYNAMIC, F16, INT8, STATIC, Storage, quantized
from edge_export.verify import run, tolerance_of, verify
from fedsparse.errors import ExportError, VerificationError
from tests.edge_export.networks import ZOO, lived_in, pruned, samples

STORAGES = (
    Storage(),
    Storage(sparse=True),
    Storage(F16, sparse=True),
    Storage(F16),
    Storage(INT8, sparse=True),
    Storage(INT8),
    Storage(INT8, DYNAMIC),
    Storage(INT8, STATIC),
)


@pytest.mark.parametrize("name", ZOO)
def test_each_model_of_the_zoo_is_exported_in_each_storage(name):
    shape = ZOO[name]
    model, x = pruned(name, shape), samples(ZOO[name])
    found = network.of(model, shape)
    ranges = calibrated(found, x)
    for storage in STORAGES:
        emitted = emit(found, storage, ranges=ranges)
        verify(emitted.content, model, x, None, tolerance_of(storage))
        assert any(row.sparse for row in emitted.stored) == storage.sparse


@pytest.mark.parametrize("name", ZOO)
def test_the_folded_network_is_the_module(name):
    shape = ZOO[name]
    model, x = pruned(name, shape), samples(shape)
    found = network.of(model, shape)
    logits = network.run(found, x)[found.output].flatten(1)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(torch.from_numpy(x)), rtol=1e-5, atol=1e-5)


def test_what_direct_export_does_not_cover_is_named():
    with pytest.raises(ExportError, match=r"layer 'embedding' is an Embedding; try --route"):
        network.of(pruned("transformer", (16,)), (16,))


def test_the_files_sparse_tensors_are_the_networks_weights():
    model = pruned("mobilenet-v1", (3, 32, 32))
    found = network.of(model, (3, 32, 32))
    back = {t.name: t.csr for t in sparse_tensors(emit(found, STORAGES[1]).content, "file")}
    weights = {layer.name: layer.weight for layer in found.weighted()}
    assert len(back) > 10
    for name, csr in back.items():
        weight = weights[name.removesuffix("/weight/kept")]
        if weight.ndim == 4:
            depthwise = csr.shape[0] == 1
            weight = (
                weight[:, 0].transpose(1, 2, 0)[None] if depthwise else np.moveaxis(weight, 1, 3)
            )
        values, kept = sparse.decode(csr)
        assert values.tobytes() == np.ascontiguousarray(weight + 0.0).tobytes()
        np.testing.assert_array_equal(kept, weight != 0)


def test_int8_is_a_quarter_of_f32_and_a_half_of_f16():
    found = network.of(pruned("leaf-cnn", (1, 28, 28), density=1.0), (1, 28, 28))
    ranges = calibrated(found, samples((1, 28, 28)))
    f32, f16, int8 = (
        len(emit(found, s, ranges=ranges).content) for s in (STORAGES[0], STORAGES[3], STORAGES[5])
    )
    assert f16 == pytest.approx(f32 / 2, rel=0.02)
    assert int8 == pytest.approx(f32 / 4, rel=0.05)


@given(
    kernel=st.sampled_from([1, 2, 3, 5]),
    stride=st.sampled_from([1, 2, 3]),
    padding=st.integers(0, 2),
    dilation=st.sampled_from([1, 2]),
    kind=st.sampled_from(["plain", "depthwise", "multiplied"]),
    size=st.integers(9, 13),
    integers=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_convolutions_of_any_geometry(kernel, stride, padding, dilation, kind, size, integers):
    channels = {"plain": (3, 4, 1), "depthwise": (4, 4, 4), "multiplied": (3, 6, 3)}[kind]
    cin, cout, groups = channels
    layer = nn.Conv2d(cin, cout, kernel, stride, padding, dilation, groups)
    model = nn.Sequential(layer, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(cout, 3))
    check(model, (cin, size, size + 1), Storage(INT8, STATIC) if integers else Storage())


def check(model, shape, storage):
    lived_in(model, 1.0, 1.0, torch.Generator().manual_seed(0))
    found, x = network.of(model, shape), samples(shape)
    ranges = calibrated(found, x)
    verify(emit(found, storage, ranges=ranges).content, model, x, None, tolerance_of(storage))


SHAPES = {
    "uneven windows": (nn.AdaptiveAvgPool2d((3, 4)), nn.Flatten(), nn.Linear(24, 3)),
    "even windows": (nn.AvgPool2d(3, 2), nn.Flatten(), nn.Linear(32, 3)),
    "padded maximum": (nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(50, 3)),
    "norm first": (nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(200, 3)),
    "norm of a vector": (nn.Flatten(), nn.BatchNorm1d(200), nn.ReLU(), nn.Linear(200, 3)),
    "activation alone": (nn.ReLU(), nn.ReLU6(), nn.Flatten(), nn.Linear(200, 3)),
    "a vector is returned as torch orders it": (nn.Conv2d(2, 3, 1), nn.Flatten()),
    "activated at the end": (nn.Conv2d(2, 3, 1), nn.Flatten(), nn.ReLU()),
    "two activations": (nn.Conv2d(2, 3, 1), nn.ReLU(), nn.ReLU6(), nn.Flatten(), nn.Linear(300, 2)),
}


@pytest.mark.parametrize("layers", SHAPES.values(), ids=SHAPES)
def test_other_layers(layers):
    check(nn.Sequential(*layers), (2, 10, 10), Storage())


@pytest.mark.parametrize("name", ["uneven windows", "even windows", "padded maximum"])
def test_pooling_in_int8(name):
    first = nn.Conv2d(2, 2, 1), nn.ReLU()
    check(nn.Sequential(*first, *SHAPES[name]), (2, 10, 10), Storage(INT8, STATIC))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, 1, 1), nn.Linear(50, 3)

    def forward(self, x):
        x = self.a(x) + self.b(x)
        return self.c((x + x).relu().flatten(1))


@pytest.mark.parametrize("storage", [STORAGES[0], STORAGES[1], STORAGES[-1]], ids=lambda s: s.name)
def test_additions(storage):
    check(Residual(), (2, 5, 5), storage)


@pytest.mark.parametrize("size", [7, 8])
def test_strides_are_padded_by_an_operator_of_its_own(size):
    """XNNPACK computes no chain sparsely over padding "SAME" of stride 2, which 7 would allow."""
    layers = (nn.Conv2d(2, 2, 3, 2, 1), nn.Flatten(), nn.LazyLinear(3))
    model = nn.Sequential(*layers)
    model(torch.zeros(1, 2, size, size))
    content = emit(network.of(model.eval(), (2, size, size)), Storage()).content
    codes = [code.builtinCode for code in parsed(content, "file").operatorCodes]
    assert schema().BuiltinOperator.PAD in codes


def test_a_grey_entry_can_be_given_two_channels_of_zeros():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    found = network.of(model.eval(), (1, 8, 8))
    x = samples((1, 8, 8))
    plain, wide = (run(emit(found, Storage(), widen=widen).content, x) for widen in (False, True))
    np.testing.assert_allclose(plain, wide, rtol=1e-5, atol=1e-6)


def test_outputs_of_next_to_no_range_in_int8():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(50, 3))
    found = network.of(lived_in(model, 1.0, 1.0, torch.Generator()), (2, 5, 5))
    ranges = calibrated(found, samples((2, 5, 5)))
    ranges[1] = (0.0, 1e-9)
    run(emit(found, Storage(INT8, STATIC), ranges=ranges).content, samples((2, 5, 5)))


def test_static_int8_needs_ranges():
    found = network.of(pruned("mlp", (1, 8, 8)), (1, 8, 8))
    with pytest.raises(ExportError, match="calibrate"):
        emit(found, Storage(INT8, STATIC))


@given(st.integers(0, 2**31), st.sampled_from([0, 3]))
@settings(max_examples=30, deadline=None)
def test_a_channels_largest_weight_is_127_steps_and_zeros_stay(seed, axis):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((3, 2, 2, 4)).astype(np.float32) * (rng.random((3, 2, 2, 4)) < 0.5)
    whole, scale = quantized(weight, axis)
    assert not whole[weight == 0].any()
    steps = scale.scale.reshape([-1 if n == axis else 1 for n in range(4)])
    assert np.all(np.abs(whole * steps - weight) <= steps * 0.5001)
    most = np.abs(whole).max(axis=tuple(n for n in range(4) if n != axis))
    assert set(most) <= {0, 127}


def test_a_file_of_another_model_does_not_pass():
    shape = (1, 8, 8)
    one, other = (pruned("mlp", shape, seed=seed) for seed in (0, 1))
    content = emit(network.of(one, shape), Storage()).content
    with pytest.raises(VerificationError, match="differ from the model's"):
        verify(content, other, samples(shape), None, tolerance_of(Storage()))
    labels = np.zeros(8, np.int64)
    found = verify(content, one, samples(shape), labels, tolerance_of(Storage()))
    assert found.accuracy == found.accuracy_torch


def small_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3)
    )
    with torch.no_grad():
        model[2].weight *= 1e-3
        model[2].bias *= 0
        model[2].bias[0] = 0.02
        model[4].weight *= 10
    return model.eval()


def integers_differ(model, shape, x):
    found = network.of(model, shape)
    content = emit(found, Storage(INT8, STATIC), ranges=calibrated(found, x)).content
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    return float(np.abs(run(content, x) - expected).max() / np.abs(expected).max())


def test_a_dead_row_coarsens_no_other_in_integers():
    model, x = small_outputs(), 10 * samples((1, 8, 8), 32)
    assert integers_differ(model, (1, 8, 8), x) < 0.02
    with torch.no_grad():
        model[2].weight[0] = 0
    assert integers_differ(model, (1, 8, 8), x) < 0.02


def test_a_value_that_is_always_zero_leaves_the_next_layers_bias_whole():
    model, x = small_outputs(), samples((1, 8, 8), 32)
    with torch.no_grad():
        model[0].weight *= 0
        model[0].bias.fill_(-1)
    assert integers_differ(model, (1, 8, 8), x) < 0.02


@pytest.mark.parametrize("gamma", [1e-4, 1e-5, 1e-8, 1e-20])
def test_channels_of_next_to_no_weights_keep_their_bias_in_integers(gamma):
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(16)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(576, 3))
    with torch.no_grad():
        norm.weight[8:] = gamma
        norm.bias.uniform_(0.5, 1.5)
    assert integers_differ(model.eval(), (1, 8, 8), samples((1, 8, 8), 32)) < 0.05


def test_what_is_not_finite_is_named():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    model[1].running_var.fill_(-1.0)
    with pytest.raises(ExportError, match="layer '0' is not finite once its BatchNorm"):
        network.of(model.eval(), (1, 8, 8))
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    with torch.no_grad():
        model[0].weight.fill_(3e38)
    found = network.of(model.eval(), (1, 8, 8))
    with pytest.raises(ExportError, match=r"layer '.*' returns values that are not finite"):
        calibrated(found, samples((1, 8, 8)))


def test_weights_beyond_f16_are_refused_as_f16_and_kept_by_int8():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(144, 3)).eval()
    with torch.no_grad():
        model[1].weight[0] *= 1e6
    found, x = network.of(model, (2, 8, 8)), samples((2, 8, 8))
    with pytest.raises(ExportError, match="f16 ends at 65504"):
        emit(found, Storage(F16))
    content = emit(found, Storage(INT8)).content
    verify(content, model, x, None, tolerance_of(Storage(INT8)))


def test_windows_that_all_begin_at_one_place():
    model = nn.Sequential(nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(), nn.Linear(12, 3))
    check(model, (2, 1, 1), Storage())
