"""States: what a model sends, what it accepts, and what it refuses."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsparse import models
from fedsparse.errors import ModelError

torch.set_num_threads(1)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def test_a_state_holds_parameters_and_running_statistics_in_order(model):
    assert list(models.get_state(model)) == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "3.weight",
        "3.bias",
    ]
    assert all(a.dtype == np.float32 for a in models.get_state(model).values())


def test_a_state_is_a_copy_both_ways(model):
    state = models.get_state(model)
    state["0.weight"][:] = 5.0
    assert not (model[0].weight == 5.0).any()
    models.load_state(model, state)
    state["0.weight"][:] = 6.0
    assert (model[0].weight == 5.0).all()


def test_channels_last_weights_travel_in_plain_order(model):
    before = models.get_state(model)
    model.to(memory_format=torch.channels_last)
    after = models.get_state(model)
    assert all(after[n].tobytes() == before[n].tobytes() for n in before)
    assert after["0.weight"].flags.c_contiguous


def test_read_only_arrays_load(model):
    state = models.get_state(model)
    for array in state.values():
        array.flags.writeable = False
    models.load_state(model, state)
    with torch.no_grad():
        model[3].bias.add_(1.0)
    assert not np.array_equal(model[3].bias.detach().numpy(), state["3.bias"])


def test_a_missing_tensor_is_named(model):
    state = models.get_state(model)
    del state["1.running_var"]
    with pytest.raises(ModelError, match=r"lacks '1\.running_var'"):
        models.load_state(model, state)


def test_an_unknown_tensor_is_named(model):
    state = {**models.get_state(model), "extra": np.zeros(1, np.float32)}
    with pytest.raises(ModelError, match="unknown 'extra'"):
        models.load_state(model, state)


def test_a_wrong_shape_is_named_with_both_shapes(model):
    state = {**models.get_state(model), "3.weight": np.zeros((12, 2), np.float32)}
    with pytest.raises(ModelError, match=r"'3\.weight' has shape \(12, 2\).*\(2, 12\)"):
        models.load_state(model, state)


def test_a_bare_layer_is_prunable_under_its_own_name():
    assert models.prunable(nn.Linear(3, 2)) == ["weight"]


def test_shapes_follow_the_names_given(model):
    assert models.shapes(model, ["3.weight", "0.weight"]) == {
        "3.weight": (2, 12),
        "0.weight": (3, 1, 3, 3),
    }


@pytest.mark.parametrize(("layers", "count", "sizes"), [(7, 3, [3, 2, 2]), (2, 5, [1, 1])])
def test_blocks_are_contiguous_and_nearly_equal(layers, count, sizes):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))
    names = models.prunable(model)
    blocks = models.blocks(model, names, count)
    assert [len(block) for block in blocks] == sizes
    assert [name for block in blocks for name in block] == names


def test_no_names_make_no_blocks(model):
    assert models.blocks(model, []) == []


def test_stated_blocks_need_as_many_places():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    model.block_prefixes = [["0."], ["1.", "2.", "3."]]
    names = models.prunable(model)
    assert [len(b) for b in models.blocks(model, names, 2)] == [1, 3]
    assert [len(b) for b in models.blocks(model, names, 1)] == [4]


@pytest.mark.parametrize("count", [1, 2])
def test_a_layer_outside_the_stated_blocks_is_named(count):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    model.block_prefixes = [["0."], ["2."]]
    with pytest.raises(ModelError, match=r"'1\.weight' is in none of the model's blocks"):
        models.blocks(model, models.prunable(model), count)
    assert models.blocks(model, ["0.weight", "2.weight"], 2) == [["0.weight"], ["2.weight"]]
