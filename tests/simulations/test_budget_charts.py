"""Charts of budgets: a marker a client, by figures worked out by hand; none without budgets."""

from pathlib import Path

import pytest

from simulations import budget_charts
from simulations.results import Results


def results(*rows):
    return Results("run", Path("run"), "", {}, [], list(rows), None, None)


def told(client, budget, density, memory=1000.0, flops=2e6, sent=500):
    return {
        "client": client,
        "budget": budget,
        "density": density,
        "memory_bytes": memory,
        "train_flops": flops,
        "bytes_up": sent,
    }


RUN = results(
    told(0, 0.5, 0.4, memory=1000.0, flops=2e6),
    told(0, 0.5, 0.5, memory=3000.0, flops=4e6),
    told(1, 1.0, 1.0),
    {"client": 2, "density": 0.1},
)


def test_each_client_is_a_marker_with_its_means_and_the_most_of_its_memory():
    first, second = budget_charts.spenders(RUN)
    assert (first.client, first.budget, first.density) == (0, 0.5, pytest.approx(0.45))
    assert first.figures == {"memory_bytes": 3000.0, "train_flops": 3e6, "bytes_up": 500.0}
    assert (second.client, second.density) == (1, 1.0)


def test_density_and_each_cost_are_set_against_the_budget():
    made = budget_charts.charts([RUN], ["run"])
    assert [chart.id for chart in made] == [
        "budget-density",
        "budget-memory-bytes",
        "budget-train-flops",
        "budget-bytes-up",
    ]
    marks = made[0].figure["data"][1]
    assert (marks["x"], marks["y"]) == ([50.0, 100.0], [pytest.approx(45.0), 100.0])
    assert "no client is above it" in made[0].caption
    assert made[1].figure["layout"]["yaxis"]["title"]["text"] == "Memory (kB)"
    assert made[1].figure["data"][0]["y"] == [3.0, 1.0]


def test_a_client_above_its_budget_is_told():
    (density, *_) = budget_charts.charts([results(told(0, 0.5, 0.6))], ["run"])
    assert "1 of them are above it" in density.caption


def test_a_run_without_budgets_has_no_such_charts():
    assert budget_charts.charts([results({"client": 0, "accuracy": 0.5})], ["run"]) == []
