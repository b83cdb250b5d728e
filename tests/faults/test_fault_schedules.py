"""Forty runs under faults and deaths, each by its seed: nothing that must hold breaks.

`python -m benchmarks.fault_schedules` plays two hundred for each change, and ten thousand by hand.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from simulations.faults import KINDS, Schedule
from tests.faults import planted
from tests.faults.lives import FULL, KILL, TEAR, Death, live
from tests.faults.schedules import config_of, plan_of, problems_of
from tests.tiny_runs import model_bytes

BLOCK = 20


@pytest.fixture(scope="module")
def base():
    """A folder in memory where there is one: a flush is a step here, and needs no disk."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("block", range(2))
def test_nothing_breaks_under_faults(base, block):
    broken = {}
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        problems, _ = problems_of(seed, base)
        if problems:
            broken[seed] = problems[0]
    assert broken == {}


def test_the_schedules_hold_every_fault_and_every_death(base):
    problems_of(0, base)
    plans = [plan_of(seed) for seed in range(10 * BLOCK)]
    assert {f for plan in plans for f in plan.schedule.faults.values()} == set(KINDS)
    assert {death.how for plan in plans for death in plan.deaths} == {KILL, TEAR, FULL}
    steps = {death.step for plan in plans for death in plan.deaths}
    assert len(steps) > 80  # of about 125


@pytest.mark.parametrize("how", [KILL, TEAR, FULL])
@pytest.mark.parametrize("step", range(3, 126, 17))
def test_a_coordinator_that_ends_at_a_step_goes_on_to_the_same_bits(base, how, step):
    config = config_of("static", 1, False)
    whole = base / "whole"
    if not whole.exists():
        assert live(config, whole, Schedule()).how == "done"
    out = base / f"{how}-{step}"
    assert live(config, out, Schedule(), Death(how, step)).how in ("killed", "full", "done")
    assert live(config, out, Schedule()).how == "done"
    assert model_bytes(out) == model_bytes(whole)


@pytest.mark.parametrize(
    ("bug", "seed"), [("late", 2), ("rewind", 1), ("full", 31), ("lenient", 1), ("in-place", 6)]
)
def test_a_planted_bug_is_found(base, bug, seed):
    assert problems_of(seed, base, planted.BUGS[bug])[0]
    assert problems_of(seed, base)[0] == []
