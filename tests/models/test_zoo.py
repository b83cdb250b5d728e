"""The zoo: every model takes its inputs, learns, travels, and shows what can be pruned."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsparse import models, registry
from fedsparse.config import ClientConfig, DataConfig
from fedsparse.data import sources
from fedsparse.errors import ConfigError, ModelError, UnknownNameError
from fedsparse.training import local

torch.set_num_threads(1)

SHAPES = {
    "linear": (20,),
    "mlp": (1, 8, 8),
    "cnn": (1, 8, 8),
    "leaf-cnn": (1, 12, 12),
    "paper-cnn": (1, 12, 12),
    "resnet18": (3, 8, 8),
    "mobilenet-v1": (3, 16, 16),
    "mobilenet-edge": (1, 16, 16),
    "transformer": (12,),
}


def build(name: str, classes: int = 5, width: float = 0.25) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, input_shape=SHAPES[name], classes=classes, width=width)


def batch(name: str, samples: int = 4) -> torch.Tensor:
    torch.manual_seed(1)
    if name == "transformer":
        return torch.randint(0, 256, (samples, *SHAPES[name]))
    return torch.randn(samples, *SHAPES[name])


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_registered_model_is_tested_here():
    assert set(SHAPES) == set(registry.BUILTIN["models"])


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_reach_every_parameter(name):
    model = build(name)
    logits = model(batch(name))
    assert logits.shape == (4, 5)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    touched = [p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1]
    assert all(touched)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_have_no_activation(name):
    model = build(name).eval()
    head = model.get_submodule(models.prunable(model)[-1].removesuffix(".weight"))
    with torch.no_grad():
        before = model(batch(name))
        head.bias -= 1000.0
        after = model(batch(name))
    torch.testing.assert_close(after, before - 1000.0, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_prunable_are_the_matrices_and_kernels_alone(name):
    model = build(name)
    modules = dict(model.named_modules())
    prunable = models.prunable(model)
    assert prunable
    for weight in prunable:
        module = modules[weight.removesuffix(".weight")]
        assert isinstance(module, nn.Linear | nn.Conv2d)
        assert module.weight.ndim >= 2
    left = [n for n, p in model.named_parameters() if n not in prunable]
    assert all(
        n.endswith(".bias") or "norm" in n or n in ("embedding.weight", "position") for n in left
    )


@pytest.mark.parametrize("name", SHAPES)
def test_a_state_survives_the_way_there_and_back_bit_for_bit(name):
    model, other = build(name), build(name)
    model.train()(batch(name))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    state = models.get_state(model)
    models.load_state(other, state)
    again = models.get_state(other)
    assert list(again) == list(state)
    assert all(again[n].tobytes() == state[n].tobytes() for n in state)
    with torch.no_grad():
        assert torch.equal(model.eval()(batch(name)), other.eval()(batch(name)))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("count", [1, 5, 100])
def test_blocks_hold_every_prunable_weight_once_in_forward_order(name, count):
    model = build(name)
    names = models.prunable(model)
    blocks = models.blocks(model, names, count)
    assert [n for block in blocks for n in block] == names
    assert 1 <= len(blocks) <= count
    assert all(blocks)


@pytest.mark.parametrize("name", SHAPES)
def test_prunable_weights_stand_in_the_order_in_which_they_are_used(name):
    model, used = build(name).eval(), []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(lambda *_, n=path: used.append(f"{n}.weight"))
    model(batch(name))
    assert models.prunable(model) == used


@pytest.mark.parametrize("name", SHAPES)
def test_width_scales_hidden_layers_and_never_to_nothing(name):
    tiny, half, full = (parameters(build(name, width=w)) for w in (1e-3, 0.5, 1.0))
    assert tiny <= half <= full
    assert name == "linear" or half < full


@pytest.mark.parametrize(
    ("name", "shape", "classes", "expected"),
    [
        ("linear", (1, 28, 28), 10, 7_850),
        ("mlp", (1, 28, 28), 10, 55_050),
        ("cnn", (1, 28, 28), 10, 38_330),
        ("leaf-cnn", (1, 28, 28), 62, 6_603_710),
        ("paper-cnn", (1, 28, 28), 10, 207_354),
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        ("mobilenet-v1", (3, 224, 224), 1000, 4_231_976),
        ("mobilenet-edge", (3, 224, 224), 1000, 4_231_976),
        ("transformer", (64,), 10, 121_226),
    ],
)
def test_parameter_counts(name, shape, classes, expected):
    assert parameters(models.build(name, input_shape=shape, classes=classes)) == expected


def test_paper_cnn_has_207k_prunable_weights():
    model = models.build("paper-cnn", input_shape=(1, 28, 28), classes=10)
    shapes = models.shapes(model, models.prunable(model))
    assert sum(np.prod(shape) for shape in shapes.values()) == 206_992


def test_resnet_is_cut_into_its_stem_and_stages():
    model = build("resnet18")
    blocks = models.blocks(model, models.prunable(model))
    assert [len(block) for block in blocks] == [1, 4, 5, 5, 6]
    assert blocks[0] == ["conv.weight"]
    assert blocks[-1][-1] == "fc.weight"


def test_resnet_keeps_the_resolution_in_its_stem():
    model = models.build("resnet18", input_shape=(3, 32, 32), classes=10, width=0.1)
    seen = []
    model.stages[0].register_forward_hook(lambda *args: seen.append(args[2].shape[-1]))
    model.eval()(torch.zeros(1, 3, 32, 32))
    assert seen == [32]
    assert not any(isinstance(m, nn.MaxPool2d) for m in model.modules())


@pytest.mark.parametrize(("side", "stride"), [(32, 1), (63, 1), (64, 2), (224, 2)])
def test_mobilenet_stem_halves_large_images_only(side, stride):
    model = models.build("mobilenet-v1", input_shape=(3, side, side), classes=2, width=0.1)
    stem = model.stem.conv
    assert stem.stride == (stride, stride)
    assert (stem.kernel_size, stem.padding) == ((3, 3), (1, 1))


@pytest.mark.parametrize(
    ("side", "pixels"),
    [(8, [4]), (28, [14, 7, 4]), (64, [32, 16, 8, 4]), (224, [112, 56, 28, 14, 7])],
)
def test_mobilenet_for_the_edge_halves_from_the_stem_on_down_to_four_pixels(side, pixels):
    model = models.build("mobilenet-edge", input_shape=(1, side, side), classes=2, width=0.05)
    seen = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda *args: seen.append(args[2].shape[-1]))
    model.eval()(torch.zeros(1, 1, side, side))
    assert list(dict.fromkeys(seen)) == pixels
    assert model.stem.conv.stride == (2, 2)


def test_mobilenet_for_the_edge_is_the_papers_on_large_images():
    shape = (3, 128, 128)
    one, other = (
        models.build_seeded(name, input_shape=shape, classes=3, width=0.1, seed=0).eval()
        for name in ("mobilenet-v1", "mobilenet-edge")
    )
    image = torch.randn(1, *shape)
    assert torch.equal(one(image), other(image))


def test_pointwise_are_the_1x1_convolutions_over_all_channels():
    assert models.pointwise(build("mobilenet-edge")) == [
        f"pointwise{number}.conv.weight" for number in range(1, 14)
    ]
    assert all("shortcut" in name for name in models.pointwise(build("resnet18")))
    assert models.pointwise(build("paper-cnn")) == []
    assert models.pointwise(nn.Conv2d(4, 4, 1, groups=4)) == []
    assert models.pointwise(nn.Conv2d(4, 4, 1)) == ["weight"]


@pytest.mark.parametrize("name", ["mobilenet-v1", "mobilenet-edge"])
def test_each_convolution_of_mobilenet_is_followed_by_batchnorm_and_relu(name):
    leaves = [m for m in build(name).modules() if not list(m.children())]
    kinds = [type(m).__name__ for m in leaves]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU"] * 27 + [
        "AdaptiveAvgPool2d",
        "Flatten",
        "Linear",
    ]


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet-v1", "mobilenet-edge", "cnn", "leaf-cnn", "paper-cnn"]
)
def test_oblong_images_are_fine_and_small_or_flat_inputs_are_not(name):
    oblong = models.build(name, input_shape=(1, 8, 20), classes=2, width=0.1)
    assert oblong.eval()(torch.zeros(1, 1, 8, 20)).shape == (1, 2)
    for shape in [(1, 7, 8), (8, 8), (64,), ()]:
        with pytest.raises(ModelError, match=name):
            models.build(name, input_shape=shape, classes=2)


@pytest.mark.parametrize("shape", [(1, 8, 8), (), (0,)])
def test_transformer_takes_sequences_only(shape):
    with pytest.raises(ModelError, match="tokens"):
        models.build("transformer", input_shape=shape, classes=2)


@pytest.mark.parametrize(
    "tokens",
    [
        torch.zeros(2, 12),
        torch.zeros(2, 11, dtype=torch.int64),
        torch.full((2, 12), 256),
        torch.full((2, 12), -1),
    ],
    ids=["floats", "short", "above", "below"],
)
def test_transformer_refuses_what_are_no_byte_tokens(tokens):
    with pytest.raises(ModelError, match="tokens"):
        build("transformer")(tokens)


def test_transformer_tells_the_order_of_tokens():
    model, tokens = build("transformer").eval(), batch("transformer")
    with torch.no_grad():
        assert not torch.allclose(model(tokens), model(tokens.flip(1)), atol=1e-4)


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_a_width_that_is_no_positive_number_is_refused(width):
    with pytest.raises(ModelError, match="width"):
        models.build("cnn", input_shape=(1, 8, 8), classes=2, width=width)


def test_no_classes_are_refused():
    with pytest.raises(ModelError, match="0 classes"):
        models.build("cnn", input_shape=(1, 8, 8), classes=0)


def test_an_unknown_name_proposes_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'"):
        models.build("resnet-18", input_shape=(3, 32, 32), classes=2)


def test_a_dotted_path_builds_a_model_of_ones_own():
    model = models.build("torch.nn:Linear", input_shape=4, classes=2)  # type: ignore[arg-type]
    assert isinstance(model, nn.Linear)
    with pytest.raises(ConfigError, match="cannot import"):
        models.build("no_such_package:net", input_shape=(4,), classes=2)
    with pytest.raises(ModelError, match="not a torch module"):
        models.build("builtins:slice", input_shape=(4,), classes=2)


def test_cnn_learns_digits():
    source = sources.digits(DataConfig(), 0)
    torch.manual_seed(0)
    model = models.build("cnn", input_shape=(1, 8, 8), classes=10)
    local.train(model, source.train, ClientConfig(), rng=np.random.default_rng(0), epochs=8)
    assert local.evaluate(model, source.test).accuracy >= 0.95
