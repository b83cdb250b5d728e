"""What is told of a model: all that is true of it comes back, and nothing else is believed."""

import json
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsparse import description, models
from fedsparse.description import MOST_BYTES, Description
from fedsparse.errors import ConfigError, ModelError
from fedsparse.kernels.nodes import Uncovered
from fedsparse.registry import BUILTIN
from fedsparse.sparsity import ModelCost

SHAPES = ((1, 8, 8), (3, 32, 32), (16,))
COVERED = [
    (name, shape)
    for name in BUILTIN["models"]
    for shape in SHAPES
    if name != "transformer" and (len(shape) == 3 or name in ("mlp", "linear"))
]


def built(name, shape):
    return models.build(name, input_shape=shape, classes=10, width=0.5)


def told(model="cnn", shape=(1, 8, 8)):
    """Return what is told of a model, as plain values."""
    return json.loads(zlib.decompress(description.described(built(model, shape), shape)))


def packed(text):
    return zlib.compress(json.dumps(text).encode())


def refused(change, match, shape=(1, 8, 8)):
    """Check that a description is refused after a change."""
    text = told(shape=shape)
    change(text, text["operations"])
    with pytest.raises(ModelError, match=match):
        description.read(packed(text))


@pytest.mark.parametrize(("name", "shape"), COVERED)
def test_all_that_is_true_of_a_model_comes_back(name, shape):
    model = built(name, shape)
    content = description.described(model, shape)
    found = description.read(content)
    assert found == Description.of(model, shape)
    assert found.shapes == models.shapes(model, models.prunable(model))
    assert found.parameters == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert found.cost == ModelCost.of(model, shape)
    assert len(content) < 1500


@pytest.mark.parametrize("rule", ["", "head", "body", "unnormalised", "none", "copies-3"])
def test_parts_are_those_of_the_model(rule):
    model = built("resnet18", (3, 32, 32))
    found = description.read(description.described(model, (3, 32, 32)))
    assert dict(found.part(rule).tensors) == models.part_shapes(model, rule)
    with pytest.raises(ConfigError, match="unknown part of a model 'heads'"):
        found.part("heads")


def test_what_the_kernels_do_not_cover_is_not_described():
    model = built("transformer", (16,))
    assert description.described(model, (16,)) is None
    with pytest.raises(Uncovered):
        Description.of(model, (16,))


def test_a_model_whose_description_would_lose_something_is_not_described():
    """A layer that is called by a name with a line's end cannot be told."""
    model = nn.Sequential()
    model.add_module("a\nb", nn.Linear(4, 2))
    assert description.described(model, (4,)) is None


REFUSED = [
    (lambda t, o: t.update(version=2), "version"),
    (lambda t, o: t.update(more=1), "more"),
    (lambda t, o: t.update(input=[1, 8, 2**40]), "input"),
    (lambda t, o: t.update(input=[1, 8, True]), "input"),
    (lambda t, o: t.update(input=[2, 8, 8]), "does not fit the 2 channels"),
    (lambda t, o: t.update(operations=[]), "operations"),
    (lambda t, o: t.update(activations=-1), "activations"),
    (lambda t, o: t["tensors"].reverse() or t["tensors"].pop(), "tensors are not those"),
    (lambda t, o: t["tensors"].append(t["tensors"][0]), "tensors are not those"),
    (lambda t, o: o[0].update(kind="exec"), "operations.0"),
    (lambda t, o: o[0].update(of=1), "reads a value that is not made yet"),
    (lambda t, o: o[0].update(of=-1), "operations.0"),
    (lambda t, o: o[0].update(stride=[0, 1]), "stride"),
    (lambda t, o: o[0].update(dilation=[9, 9]), "empty or too large"),
    (lambda t, o: o[0].update(groups=3), "does not fit the 1 channels"),
    (lambda t, o: o[0].update(weight=o[1]["weight"]), "is used twice"),
    (lambda t, o: o[0].update(weight="a\nb"), "weight"),
    (lambda t, o: o[1].update(eps=0), "eps"),
    (lambda t, o: o[1].update(momentum=float("inf")), "description"),
    (lambda t, o: o[2].update(cap=-1.0), "cap"),
    (lambda t, o: o[3].update(of=0), "does not fit|not every value is used"),
    (lambda t, o: o[6].update(padding=[2, 2]), "padding is over half"),
    (lambda t, o: o[6].update(kernel=[64, 64]), "empty or too large"),
    (lambda t, o: o.pop(), "tensors are not those|not every|no vector"),
    (lambda t, o: o.append({"kind": "add", "of": 0, "other": 99}), "not of two values"),
    (lambda t, o: o.append({"kind": "relu", "of": 0, "cap": None}), "not every value|no vector"),
]


@pytest.mark.parametrize(("change", "match"), REFUSED)
def test_a_description_that_does_not_fit_is_refused(change, match):
    refused(change, match)


@pytest.mark.parametrize(
    "windows", [[[0, 17]], [[-1, 2]], [[2, 2]], [[3, 1]], [[2, 4], [0, 2]], [[0, 2**40]], []]
)
def test_windows_of_a_mean_lie_within_what_they_read(windows):
    def change(text, operations):
        next(o for o in operations if o["kind"] == "average_pool")["rows"] = windows

    refused(change, "windows do not lie within|rows", (3, 32, 32))


def test_what_is_cut_off_too_long_or_no_text_is_refused():
    content = description.described(built("cnn", (1, 8, 8)), (1, 8, 8))
    bomb = zlib.compress(b" " * 2**24)
    nested = zlib.compress(b"[" * 100_000)
    for wrong in (b"", content[:-1], content[:50], bomb, b"\0" * (MOST_BYTES + 1), nested):
        with pytest.raises(ModelError, match="the model's description"):
            description.read(wrong)


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_any_number_or_name_in_its_place_is_refused_or_makes_a_model_that_holds_together(data):
    text = told(data.draw(st.sampled_from(["cnn", "mlp", "leaf-cnn"])))
    node = data.draw(st.sampled_from([text, *text["operations"]]))
    key = data.draw(st.sampled_from(sorted(node)))
    odd = st.sampled_from([0, 1, 2, 3, 8, -1, 2**31, 2**63, 0.5, None, "x", "fc1.weight", True])
    node[key] = data.draw(odd | st.lists(odd, max_size=4))
    try:
        found = description.read(packed(text))
    except ModelError:
        return
    assert description.read(description.written(found)) == found
    assert set(found.graph.parameters) | set(found.graph.buffers) == set(found.schema.names)
