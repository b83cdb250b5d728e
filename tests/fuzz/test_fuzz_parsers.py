"""Foreign bytes: each parser reads them or refuses them in one line, and nothing else happens.

`python -m benchmarks.fuzz_parsers` feeds thousands for each change, and a hundred thousand by hand.
"""

import tracemalloc

import pytest
from flwr.app import ConfigRecord

from fedsparse import messages
from fedsparse.errors import ConfigError
from fedsparse.wire import reading
from tests.fuzz.fuzzing import feed, input_of
from tests.fuzz.parsers import PARSERS, QUICK
from tests.tiny_runs import tiny

INPUTS = 80
MOST_BYTES = 64 * 2**20


@pytest.mark.parametrize("name", PARSERS)
def test_mutated_inputs_are_read_or_refused(tmp_path, name):
    parser = PARSERS[name]
    feed(parser, 0, 1, tmp_path)  # what is built once is not an input's
    tracemalloc.start()
    try:
        found = feed(parser, 0, INPUTS, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.broken == {}
    assert found.inputs == INPUTS
    assert peak < MOST_BYTES


def test_an_input_is_what_its_seed_says():
    parser = PARSERS["TOML"]
    assert input_of(parser, 5) == input_of(parser, 5) != input_of(parser, 6)


def test_a_planted_bug_is_found(tmp_path, monkeypatch):
    """Lengths that nobody checks: an error of numpy's comes out."""

    def unchecked(self, count):
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    assert feed(PARSERS["wire"], 0, INPUTS, tmp_path).broken == {}
    monkeypatch.setattr(reading._Reader, "take", unchecked)
    assert feed(PARSERS["wire"], 0, INPUTS, tmp_path).broken


def test_a_plan_that_nests_without_end_is_refused():
    """Found by fuzzing: JSON's recursion error came out."""
    record = ConfigRecord(
        {**messages.write_config(tiny(*QUICK), messages.Plan(1)), "plan": "[" * 100_000}
    )
    with pytest.raises(ConfigError, match="plan cannot be read"):
        messages.read_config(record)
