"""Width slices: a masked model is the narrower one, for every model of the zoo."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from fedsparse import models
from fedsparse.errors import ModelError
from fedsparse.kernels.graph import derive
from fedsparse.sparsity.slices import Slices, channel_count, prefix, window

ZOO = {
    "mlp": ((1, 8, 8), 1.0),
    "cnn": ((1, 12, 12), 1.0),
    "leaf-cnn": ((1, 12, 12), 0.25),
    "paper-cnn": ((3, 14, 14), 1.0),
    "resnet18": ((3, 16, 16), 0.25),
    "mobilenet-v1": ((3, 16, 16), 0.25),
}


def built(name, width=1.0):
    """Return a model of the zoo with values in all of its state, and that state."""
    shape, base = ZOO[name]
    model = models.build(name, input_shape=shape, classes=5, width=base * width)
    rng = np.random.default_rng(1)
    state = {
        entry: rng.normal(0.3, 0.5, value.shape).astype(np.float32) ** (2 if "var" in entry else 1)
        for entry, value in models.get_state(model).items()
    }
    models.load_state(model, state)
    return model, state


def cut(model, shape, keep):
    shapes = {name: value.shape for name, value in models.get_state(model).items()}
    return Slices(derive(model, shape)).cut(keep, shapes)


# -- which channels -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "channels", "kept"),
    [(1.0, 7, 7), (0.5, 5, 3), (0.5, 4, 2), (0.0625, 8, 1), (0.1, 30, 3), (0.3, 10, 3)],
)
def test_a_width_keeps_its_part_of_the_channels_rounded_up(width, channels, kept):
    assert channel_count(width, channels) == kept
    assert prefix(width)(channels).tolist() == [True] * kept + [False] * (channels - kept)


def test_a_window_begins_at_its_start_and_wraps_around():
    assert np.flatnonzero(window(0.5, 1)(4)).tolist() == [1, 2]
    assert np.flatnonzero(window(0.5, 3)(4)).tolist() == [0, 3]
    assert np.flatnonzero(window(0.5, 7)(4)).tolist() == [0, 3]


def test_what_is_kept_of_a_perceptron():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    mask, held = cut(model, (3,), prefix(0.5))
    assert mask["0.weight"].tolist() == [[True] * 3] * 2 + [[False] * 3] * 2
    assert mask["2.weight"].tolist() == [[True, True, False, False]] * 2
    assert mask.names == ("0.weight", "2.weight")
    assert held["0.bias"].tolist() == [True, True, False, False]
    assert held["2.bias"].tolist() == [True, True]
    assert held["0.weight"].tolist() == mask["0.weight"].tolist()


def test_a_flattened_channel_is_all_of_its_pixels():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(12, 2))
    mask, _ = cut(model, (1, 2, 2), window(0.3, 1))
    assert np.flatnonzero(mask["0.weight"].reshape(-1)).tolist() == [1]
    assert [np.flatnonzero(row).tolist() for row in mask["2.weight"]] == [[4, 5, 6, 7]] * 2


class Around(nn.Module):
    """A convolution around which its input passes."""

    def __init__(self, first=None):
        super().__init__()
        self.first = first or nn.Identity()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    def forward(self, x):
        x = self.first(x)
        return self.head(x + self.conv(x))


def test_what_is_added_up_keeps_the_same_channels():
    mask, held = cut(Around(nn.Conv2d(1, 4, 1)), (1, 3, 3), window(0.5, 3))
    for bits in (mask["first.weight"], mask["conv.weight"], held["conv.bias"]):
        assert np.flatnonzero(bits.reshape(4, -1).any(1)).tolist() == [0, 3]


def test_what_is_added_to_the_input_keeps_all_channels():
    with pytest.raises(ModelError, match="no hidden channels"):
        cut(Around(), (4, 3, 3), prefix(0.5))


# -- the masked model is the narrower one -------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("keep", ["prefix", "window"])
@pytest.mark.parametrize("name", ZOO)
def test_its_outputs_are_those_of_the_narrower_model(name, keep, training):
    shape, _ = ZOO[name]
    (wide, state), (narrow, _) = built(name), built(name, 0.5)
    found = cut(wide, shape, prefix(0.5) if keep == "prefix" else window(0.5, 5))
    own = {
        entry: (
            state[entry][tuple(map(slice, value.shape))]  # found without the slice's help
            if keep == "prefix"
            else state[entry][found.held[entry]].reshape(value.shape)
        )
        for entry, value in models.get_state(narrow).items()
    }
    models.load_state(narrow, own)
    found.mask.apply_(state)
    models.load_state(wide, state)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = narrow.train(training)(x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(wide.train(training)(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ZOO)
def test_it_has_as_many_entries_as_the_narrower_model(name):
    model, _ = built(name)
    found = cut(model, ZOO[name][0], window(0.5, 3))
    own = models.get_state(built(name, 0.5)[0])
    assert found.held.kept == sum(value.size for value in own.values())
    assert found.mask.kept == sum(own[entry].size for entry in found.mask.names)
    assert list(found.mask.names) == models.prunable(model)


# -- what has no slices -------------------------------------------------------------------


def test_a_model_without_hidden_channels_is_refused():
    model = models.build("linear", input_shape=(1, 8, 8), classes=5)
    with pytest.raises(ModelError, match="no hidden channels to leave out"):
        Slices(derive(model, (1, 8, 8)))


def test_groups_of_channels_are_refused_by_the_layers_name():
    layers = {
        "first": nn.Conv2d(1, 4, 1),
        "grouped": nn.Conv2d(4, 4, 1, groups=2),
        "flat": nn.Flatten(),
        "fc": nn.Linear(16, 2),
    }
    with pytest.raises(ModelError, match=r"'grouped\.weight' has 2 groups"):
        Slices(derive(nn.Sequential(OrderedDict(layers)), (1, 2, 2)))
