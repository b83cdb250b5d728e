"""A mask alone: it comes back, in few bytes, and a damaged one is refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsparse import wire
from fedsparse.errors import WireError
from fedsparse.sparsity import Mask

SHAPES = st.lists(st.sampled_from([(3,), (8, 2), (0, 4), (5, 5, 3), (1000,)]), max_size=4)


@given(SHAPES, st.sampled_from([0.0, 0.02, 0.5, 1.0]), st.integers(0, 99))
@settings(max_examples=100, derandomize=True, deadline=None, database=None)
def test_a_mask_comes_back(shapes, density, seed):
    rng = np.random.default_rng(seed)
    mask = Mask.from_arrays({f"{i}": rng.random(s) < density for i, s in enumerate(shapes)})
    assert wire.decode_mask(wire.encode_mask(mask), mask.shapes) == mask


def random_mask(size: int, density: float) -> Mask:
    return Mask.from_arrays({"w": np.random.default_rng(0).random(size) < density})


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.5])
def test_it_takes_hardly_more_than_its_entropy(density):
    size = 200_000
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    assert len(wire.encode_mask(random_mask(size, density))) <= 1.05 * size * entropy / 8 + 8


def test_damage_and_other_shapes_are_refused():
    mask = random_mask(300, 0.1)
    content = wire.encode_mask(mask)
    broken = [content[:cut] for cut in range(len(content))] + [content + b"\0"]
    broken += [
        content[:i] + bytes([content[i] ^ 4]) + content[i + 1 :] for i in range(len(content))
    ]
    for each in broken:
        with pytest.raises(WireError):
            wire.decode_mask(each, mask.shapes)
    for shapes in ({"w": (200,)}, {"w": (300,), "v": (1,)}, {}):
        with pytest.raises(WireError):
            wire.decode_mask(content, shapes)
