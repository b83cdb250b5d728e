"""Blocks of a model's parameters: how tensors are cut, and masks over them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsparse import models
from fedsparse.errors import MaskError
from fedsparse.sparsity import Mask
from fedsparse.sparsity.blocks import Blocks


def test_a_tensor_is_cut_into_runs_of_a_fifth_rounded_up_and_the_rest():
    """ceil(11 / 5) = 3: three of 3, one of 2; ceil(10 / 5) = 2; fewer than five, one each."""
    blocks = Blocks({"a": (11,), "b": (2, 5), "c": (3,), "d": ()}, 5)
    assert {name: list(sizes) for name, sizes in blocks.by_tensor.items()} == {
        "a": [3, 3, 3, 2],
        "b": [2, 2, 2, 2, 2],
        "c": [1, 1, 1],
        "d": [1],
    }
    assert list(np.flatnonzero(blocks.first)) == [0, 4, 9, 12]
    assert blocks.least == pytest.approx((3 + 2 + 1 + 1) / 25)


def test_a_model_has_blocks_of_every_parameter_and_knows_its_linear_layers():
    model = models.build("cnn", input_shape=(1, 8, 8), classes=10, width=0.25)
    blocks = Blocks.of(model, 5)
    assert list(blocks.shapes) == [name for name, _ in model.named_parameters()]
    assert blocks.entries == sum(p.numel() for p in model.parameters())
    assert blocks.linear == {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}


shapes = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.integers(1, 7), max_size=3).map(tuple), min_size=1
)


@given(shapes, st.integers(1, 9), st.randoms(use_true_random=False))
def test_any_counts_make_a_mask_and_come_back(shapes, count, random):
    blocks = Blocks(shapes, count)
    counts = np.array([random.randint(0, int(size)) for size in blocks.sizes])
    mask = blocks.mask(counts)
    assert mask.kept == counts.sum()
    assert list(blocks.counts(mask)) == list(counts)


def test_what_is_no_run_of_first_entries_is_refused():
    blocks = Blocks({"a": (6,)}, 2)
    with pytest.raises(MaskError, match="in the midst of a block"):
        blocks.counts(Mask.from_arrays({"a": np.array([0, 1, 0, 1, 1, 1], bool)}))
    with pytest.raises(MaskError, match="not of these blocks"):
        blocks.counts(Mask.from_arrays({"b": np.ones(6, bool)}))
