"""Seats: parts of a mask for small devices, and the mean of models trained under unlike parts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsparse.errors import ConfigError
from fedsparse.sparsity import Mask
from strategies.replies import Reply
from strategies.seats import shared_counts, submask
from strategies.sums import mean_of
from tests.strategies.stage import stage

SHAPES = {"a": (2, 4), "b": (6,)}


def bits(text: str) -> np.ndarray:
    return np.array([c == "1" for c in text])


def test_a_part_keeps_the_largest_weights_of_each_layer():
    state = {"a": np.array([[9, -8, 7, 6], [5, -4, 3, 2]], np.float32), "b": np.arange(6.0)}
    mask = Mask.from_arrays({"a": bits("11110110").reshape(2, 4), "b": bits("111111")})
    part = submask(state, mask, SHAPES, 0.5)
    assert part["a"].astype(int).tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
    assert part["b"].astype(int).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_part_of_a_dense_model_is_a_part_of_all_its_weights():
    state = {"a": np.arange(8.0).reshape(2, 4), "b": -np.arange(6.0)}
    part = submask(state, None, SHAPES, 0.25)
    assert part.layer_kept() == {"a": 2, "b": 2}
    assert submask(state, None, SHAPES, 1.0) is None


@given(
    values=hnp.arrays(np.float32, 40, elements=st.floats(-3, 3, width=32)),
    kept=hnp.arrays(np.bool_, 40),
    share=st.floats(0.01, 1),
)
def test_a_part_lies_within_its_mask_and_has_its_share(values, kept, share):
    mask = Mask.from_arrays({"w": kept})
    part = submask({"w": values}, mask, {"w": (40,)}, share)
    assert (part - mask).kept == 0
    assert part.layer_kept() == shared_counts(mask.layer_kept(), share)


def test_a_weight_is_the_mean_over_the_clients_that_keep_it():
    """w_j = sum_k p_k m_kj w_kj / sum_k p_k m_kj, worked out by hand."""
    state = {"w": np.array([1, 2, 3, 4], np.float32), "bias": np.array([0.5], np.float32)}
    first = Mask.from_arrays({"w": bits("1100")})
    second = Mask.from_arrays({"w": bits("0110")})
    one = {"w": np.array([10, 20], np.float32), "bias": np.array([1], np.float32)}
    other = {"w": np.array([40, 60], np.float32), "bias": np.array([5], np.float32)}
    replies = [Reply(0, 1, one, 0.0, None, mask=first), Reply(1, 3, other, 0.0, None, mask=second)]
    mean = mean_of(replies, state, Mask.from_arrays({"w": bits("1111")}))
    assert mean["w"].tolist() == [10, 35, 60, 4]
    assert mean["bias"].tolist() == [4]


def test_what_the_global_mask_prunes_stays_zero():
    state = {"w": np.array([0, 2, 3], np.float32)}
    mask = Mask.from_arrays({"w": bits("011")})
    part = Mask.from_arrays({"w": bits("010")})
    trained = {"w": np.array([8], np.float32)}
    mean = mean_of([Reply(0, 2, trained, 0.0, None, mask=part)], state, mask)
    assert mean["w"].tolist() == [0, 8, 3]


def test_a_strategy_with_one_mask_for_all_gives_no_smaller_part():
    with pytest.raises(
        ConfigError, match=r"fleet\.fit = 'density'.*'fedtiny'.*'batch' or 'refuse'"
    ):
        stage("strategy.name=fedtiny", "fleet.profile=phones", "fleet.fit=density")
