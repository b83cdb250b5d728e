"""The knapsack of pFedGate: within the budget, and within one block of it; exact is exact."""

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedsparse.errors import ConfigError
from fedsparse.sparsity import knapsack
from fedsparse.sparsity.blocks import Blocks

BLOCKS = st.builds(
    Blocks,
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 60)), min_size=1),
    st.integers(1, 8),
    st.frozensets(st.sampled_from("abcdef")),
)
GATES = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@given(BLOCKS, st.floats(0.01, 1.0), GATES, st.sampled_from(["greedy", "exact"]))
def test_the_budget_is_kept_and_less_than_one_block_of_it_is_left(blocks, budget, rng, solver):
    assume(budget >= blocks.least)
    used = knapsack.choose(rng.random(len(blocks)), blocks, budget, solver=solver)
    left = budget * blocks.entries - used.sum()
    assert left >= -1e-6
    dropped = blocks.sizes[used == 0]
    assert not len(dropped) or left < dropped.min()
    assert (used[blocks.first] == blocks.sizes[blocks.first]).all()
    assert set(np.unique(used / blocks.sizes)) <= {0.0, 1.0}


@given(BLOCKS, st.floats(0.01, 1.0), GATES)
def test_fractions_of_blocks_fill_the_budget_to_the_entry(blocks, budget, rng):
    least = np.floor(knapsack.least_gate(blocks, budget) * blocks.sizes)
    assume(np.maximum(least, blocks.first).sum() <= int(budget * blocks.entries + 1e-9))
    used = knapsack.choose(rng.random(len(blocks)), blocks, budget, solver="fractional")
    assert used.sum() == int(budget * blocks.entries + 1e-9)
    assert (used >= blocks.first).all()
    assert (used >= least).all()
    assert (used <= blocks.sizes).all()


@given(BLOCKS, st.floats(0.01, 1.0), GATES)
def test_the_papers_capacity_exceeds_no_budget_either(blocks, budget, rng):
    assume(budget >= blocks.least)
    gate = rng.random(len(blocks))
    used = knapsack.choose(gate, blocks, budget, capacity="paper-code")
    assert used.sum() <= budget * blocks.entries + 1e-6


def test_a_fraction_below_one_entry_of_each_tensor_is_refused():
    with pytest.raises(ConfigError, match="less than one entry of each tensor"):
        knapsack.choose(np.ones(1), Blocks({"a": (1,)}, 5), 0.5, solver="fractional")


@given(BLOCKS, st.floats(0.05, 1.0), GATES, st.sampled_from(["greedy", "exact", "fractional"]))
def test_only_what_is_available_is_used(blocks, budget, rng, solver):
    assume(budget >= blocks.least and budget * blocks.entries >= 2 * len(blocks))
    drawn = rng.random(len(blocks))
    there = knapsack.choose(drawn, blocks, min(1.0, 1.3 * budget), solver=solver)
    used = knapsack.choose(rng.random(len(blocks)), blocks, budget, solver=solver, available=there)
    assert (used <= there).all()
    assert used.sum() <= budget * blocks.entries + 1e-6


@given(
    st.lists(st.tuples(st.integers(0, 10), st.integers(1, 9)), min_size=1, max_size=9),
    st.integers(0, 40),
)
def test_exact_is_the_best_of_all_choices_and_greedy_is_no_better(items, capacity):
    values, sizes = (np.array(column) for column in zip(*items, strict=True))
    best = max(
        values @ np.array(choice)
        for choice in product((0, 1), repeat=len(items))
        if sizes @ np.array(choice) <= capacity
    )
    taken = {
        name: solve(values, values / 10, sizes, capacity)
        for name, solve in knapsack.SOLVERS.items()
    }
    assert values[taken["exact"]].sum() == best
    assert values[taken["greedy"]].sum() <= best
    for chosen in taken.values():
        assert len(set(chosen)) == len(chosen)
        assert sizes[chosen].sum() <= capacity


def test_greedy_takes_by_value_and_loses_where_a_heavy_block_comes_first():
    values, sizes = np.array([6, 5, 5]), np.array([6, 5, 5])
    assert list(knapsack.greedy(values, values / 10, sizes, 10)) == [0]
    assert list(knapsack.exact(values, values / 10, sizes, 10)) == [1, 2]


def test_the_papers_code_leaves_part_of_the_budget_unused():
    """s = 0.5, B = 5: s_min = 0.2, so 0.2 + 0.3 * 0.8 = 0.44 of the model is used."""
    blocks = Blocks({"a": (1000,), "b": (2000,)}, 5, frozenset("a"))
    gate = np.linspace(0, 1, len(blocks))
    assert knapsack.least_gate(blocks, 0.5) == 0.2
    assert knapsack.capacities(blocks, 0.5, "paper-code") == (240, 480)
    assert knapsack.capacities(blocks, 0.5, "exact") == (300, 600)
    assert knapsack.choose(gate, blocks, 0.5, capacity="paper-code").sum() == 1200
    assert knapsack.choose(gate, blocks, 0.5).sum() == 1400


def test_the_most_important_blocks_are_used():
    blocks = Blocks({"a": (10,)}, 5)
    gate = np.array([0.0, 0.9, 0.1, 0.8, 0.2])
    assert list(np.flatnonzero(knapsack.choose(gate, blocks, 0.6))) == [0, 1, 3]
    assert knapsack.choose(gate, blocks, 1.0).sum() == 10


def test_sized_values_prefer_large_blocks():
    """Gates 0.6 and 0.8 with sizes 10 and 2: values 8 and 5, where the gates alone say 6 and 8."""
    blocks = Blocks({"a": (20,), "b": (4,)}, 2)
    gate = np.array([0, 0.6, 0, 0.8])
    budget = 22.5 / 24
    assert list(knapsack.choose(gate, blocks, budget) > 0) == [True, False, True, True]
    assert list(knapsack.choose(gate, blocks, budget, sized=True) > 0) == [True, True, True, False]


def test_a_budget_below_the_first_blocks_is_refused_with_the_remedy():
    blocks = Blocks({"a": (100,)}, 5)
    with pytest.raises(ConfigError, match=r"a budget of 0\.1 is less than .* set strategy\.blocks"):
        knapsack.choose(np.ones(5), blocks, 0.1)
    assert knapsack.choose(np.ones(20), Blocks({"a": (100,)}, 20), 0.1).sum() == 10
