"""A comparison's figures against values worked out by hand, its files, and its page."""

import csv
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsparse.errors import RunFolderError
from fedsparse.runs import RunFolder
from simulations import comparison
from simulations.comparison import Plan
from simulations.comparison_charts import accuracy_over, groups_of, mean_curve
from simulations.comparison_page import cells_of, columns_of, render, write_page
from simulations.results import read
from simulations.sweep import place_of
from simulations.variants import Asked, Variant, points_of
from tests.tiny_runs import BASE


def plan_of(*names, densities=(), seeds=(0, 1, 2), assignments=(), baseline=None):
    variants = tuple(Variant(name, (f"strategy.name={name}",)) for name in names)
    asked = Asked(variants, densities, seeds)
    points = points_of(BASE, ["tiny.toml"], assignments, asked, None)
    return Plan(tuple(points), baseline or names[0], "fedsparse compare tiny.toml")


def row(point, accuracy, status="finished", **figures):
    return {
        "variant": point.variant,
        "asked_density": point.density,
        "seed": point.seed,
        "status": status,
        "reason": None,
        "accuracy": accuracy,
        "bytes_up": 100,
        "bytes_down": 300,
        **figures,
    }


def finish(folder, point, accuracies=(0.1, 0.5, 0.75), **figures):
    """Write the run of a point as if it had been carried out."""
    run = RunFolder.create(place_of(folder, point), point.config, command=point.command)
    run.write_json("partition.json", {"classes": 2, "counts": [[1, 1]], "kind": "iid"})
    for number, accuracy in enumerate(accuracies):
        sent = 1000 * (number > 0)
        run.append_metrics(
            {"round": number, "accuracy": accuracy, "bytes_up": sent, "bytes_down": 2 * sent}
        )
    summary = {"accuracy": accuracies[-1], "density": point.density, "seed": point.seed}
    summary |= {"bytes_up": 2000, "bytes_down": 4000, "train_flops": 1e9, "simulated_seconds": None}
    summary |= {"peak_client_memory_bytes": 1_000_000, **figures}
    run.finish({"w": np.zeros(2, np.float32)}, None, summary)


# -- statistics -------------------------------------------------------------------------


def test_the_interval_is_students():
    """n = 3, s = 0.1, t(0.975; 2) = 4.3027: 4.3027 x 0.1 / sqrt(3) = 0.24841."""
    assert comparison.mean([0.5, 0.6, 0.7]) == pytest.approx(0.6)
    assert comparison.half_width([0.5, 0.6, 0.7]) == pytest.approx(0.248414, abs=1e-6)


def test_two_values_have_the_widest_interval():
    """n = 2: s = |a - b| / sqrt(2), t(0.975; 1) = 12.7062."""
    assert comparison.half_width([0.0, 0.2]) == pytest.approx(12.7062 * 0.1, abs=1e-5)


def test_one_value_has_no_interval():
    assert comparison.half_width([0.5]) is None
    assert comparison.half_width([]) is comparison.mean([]) is None


def test_differences_are_taken_over_equal_seeds():
    ours, theirs = {0: 0.5, 1: 0.75, 3: 1.0}, {3: 0.5, 0: 0.25, 2: 0.125}
    assert comparison.differences_of(ours, theirs) == [0.25, 0.5]


def test_the_pareto_front():
    points = [(3, 0.9), (1, 0.5), (2, 0.4), (2, 0.7), (4, 0.9), (3, 0.9), (5, 0.95)]
    assert comparison.pareto(points) == [1, 3, 0, 5, 6]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_holds_just_what_no_other_beats(points):
    def beaten(a):
        return any(b != a and b[0] <= a[0] and b[1] >= a[1] for b in points)

    assert sorted(comparison.pareto(points)) == [i for i, p in enumerate(points) if not beaten(p)]


def test_personal_models_stand_in_the_table_where_a_variant_has_them():
    """0.9 to 0.7 and 0.8 to 0.7: differences of 0.2 and 0.1; t(0.975; 1) = 12.7062."""
    personal = ("accuracy_personal_mean", "accuracy_personal_p10")
    plan = plan_of("fedavg", "finetune", seeds=(0, 1))
    means = {"fedavg": (0.7, 0.7), "finetune": (0.9, 0.8)}
    rows = [row(p, 0.5, **dict.fromkeys(personal, means[p.variant][p.seed])) for p in plan.points]
    base, tuned = comparison.table_of(plan, rows)
    assert tuned["accuracy_personal_mean"] == pytest.approx(0.85)
    assert tuned["accuracy_personal_mean_difference"] == pytest.approx(0.15)
    half = tuned["accuracy_personal_mean_difference_ci95"]
    assert half == pytest.approx(12.7062 * 0.05, abs=1e-4)
    assert base["accuracy_personal_mean_difference"] is None
    names = [name for name, _ in columns_of(plan)]
    cells = dict(zip(names, cells_of(plan, tuned), strict=True))
    assert cells["Own models"].startswith("85.0 ± ")
    assert cells["Its difference"].startswith("+15.0 ± ")
    assert not plan_of("fedavg", "static").personal
    assert "Own models" not in dict(columns_of(plan_of("fedavg", "static")))


def test_the_page_sets_personal_accuracy_against_costs(tmp_path):
    plan = plan_of("local", "finetune", seeds=(0,))
    for point in plan.points:
        figures = {"accuracy_personal_mean": 0.8, "accuracy_personal_p10": 0.6}
        finish(tmp_path, point, **figures)
    rows = comparison.point_rows(tmp_path, plan.points)
    page = render(tmp_path, plan, rows, comparison.table_of(plan, rows))
    assert "Accuracy of clients&#39; own models against" in page


def test_a_line_of_the_table():
    plan = plan_of("static", "fedtiny")
    accuracy = {("static", 0): 0.5, ("static", 1): 0.6, ("static", 2): 0.7}
    accuracy |= {("fedtiny", 0): 0.7, ("fedtiny", 1): 0.8}
    rows = [
        row(p, accuracy[p.variant, p.seed])
        if (p.variant, p.seed) in accuracy
        else row(p, None, "failed")
        for p in plan.points
    ]
    base, tiny = comparison.table_of(plan, rows)
    assert (base["seeds"], base["failed"], base["missing"]) == (3, 0, 0)
    assert base["accuracy"] == pytest.approx(0.6)
    assert base["accuracy_ci95"] == pytest.approx(0.248414, abs=1e-6)
    assert (base["difference"], base["pairs"], base["bytes"]) == (None, 0, 400)
    assert base["energy_joules"] is base["simulated_seconds"] is None
    assert (tiny["seeds"], tiny["failed"], tiny["pairs"]) == (2, 1, 2)
    assert tiny["difference"] == pytest.approx(0.2)
    assert tiny["difference_ci95"] == pytest.approx(0, abs=1e-12)
    assert "reached" not in base


def test_the_baseline_is_met_at_the_same_density_or_at_its_only_one():
    plan = plan_of("fedavg", "static", "fedtiny", densities=(0.1, 0.2), seeds=(0,))
    level = {"fedavg": 0.9, "static": 0.5, "fedtiny": 0.6}
    rows = [row(p, level[p.variant] + p.density / 10) for p in plan.points]

    def differences(baseline):
        table = comparison.table_of(Plan(plan.points, baseline, ""), rows)
        return [None if r["difference"] is None else round(r["difference"], 6) for r in table]

    assert differences("fedavg") == [None, -0.49, -0.48, -0.39, -0.38]
    assert differences("static") == [None, None, None, 0.1, 0.1]


def test_targets_are_means_over_the_seeds_that_reached_them():
    plan = plan_of("static", assignments=("run.target_accuracy=0.5",))
    rows = [
        row(p, 0.6, rounds_to_target=r, bytes_to_target=b, seconds_to_target=None)
        for p, r, b in zip(plan.points, (3, None, 5), (100, None, 200), strict=True)
    ]
    (line,) = comparison.table_of(plan, rows)
    assert (line["reached"], line["bytes_to_target"], line["seconds_to_target"]) == (2, 150, None)
    assert cells_of(plan, line)[-4:] == ["2 of 3", "–", "150 B", "–"]


def test_what_was_not_measured_is_a_dash():
    plan = plan_of("static", "fedtiny", seeds=(0,))
    rows = [row(plan.points[0], 0.5), row(plan.points[1], None, "not started")]
    table = comparison.table_of(plan, rows)
    assert cells_of(plan, table[0])[2:6] == ["1", "50.0 %", "–", "400 B"]
    assert cells_of(plan, table[1])[2:] == ["0 of 1", *["–"] * 8]


# -- files ------------------------------------------------------------------------------


def test_the_plan_comes_back_from_its_file(tmp_path):
    plan = plan_of("static", "fedavg", densities=(0.1, 0.2))
    comparison.write_plan(tmp_path, plan)
    assert comparison.read_plan(tmp_path) == plan


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"plan": {"points": [{}], "baseline": "a", "command": ""}}', b"\xff"],
)
def test_a_damaged_plan_is_refused(tmp_path, content):
    (tmp_path / "comparison.json").write_bytes(content)
    with pytest.raises(RunFolderError, match="damaged"):
        comparison.read_plan(tmp_path)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (plan_of("static", "fedavg"), "variants fedtiny, static there, fedavg, static asked for"),
        (plan_of("static", "fedtiny", seeds=(0, 1)), "seeds 0, 1, 2 there, 0, 1 asked for"),
        (plan_of("static", "fedtiny", densities=(0.2,)), "densities 0.1 there, 0.2 asked for"),
        (
            plan_of("static", "fedtiny", assignments=("client.lr=0.5",)),
            "static: client.lr = 0.05 there, 0.5 asked for",
        ),
    ],
)
def test_another_comparison_is_told_apart(tmp_path, other, said):
    with pytest.raises(RunFolderError, match=re.escape(said)):
        comparison.check_same(tmp_path, plan_of("static", "fedtiny"), other)


def test_engine_baseline_and_order_make_no_other_comparison(tmp_path):
    there = plan_of("static", "fedtiny")
    same = plan_of("fedtiny", "static", assignments=("engine.name=ray",))
    comparison.check_same(tmp_path, there, same)


def test_points_are_written_as_csv_and_parquet(tmp_path):
    plan = plan_of("static", seeds=(0, 1))
    finish(tmp_path, plan.points[0], extra=[1, 2])
    rows = comparison.point_rows(tmp_path, plan.points)
    comparison.write_points(tmp_path, rows)
    told = list(csv.DictReader((tmp_path / "points.csv").open(newline="")))
    assert [(r["variant"], r["asked_density"], r["seed"], r["status"]) for r in told] == [
        ("static", "0.1", "0", "finished"),
        ("static", "0.1", "1", "not started"),
    ]
    assert (told[0]["accuracy"], told[0]["extra"], told[1]["accuracy"]) == ("0.75", "[1, 2]", "")
    kept = pq.read_table(tmp_path / "points.parquet").to_pylist()
    assert [r["accuracy"] for r in kept] == [0.75, None]
    assert set(kept[0]) == set(told[0])


# -- curves and page --------------------------------------------------------------------


def test_the_mean_curve_goes_as_far_as_all_go():
    x, middle, low, high = mean_curve([([0, 2, 4], [0, 1, 1]), ([0, 1, 3], [0, 1, 0])])
    assert x.tolist() == [0, 1, 2, 3]
    assert middle.tolist() == [0, 0.75, 0.75, 0.5]
    assert low.tolist() == [0, 0.5, 0.5, 0]
    assert high.tolist() == [0, 1, 1, 1]


def test_accuracy_over_bytes_adds_both_ways(tmp_path):
    plan = plan_of("static", seeds=(0,))
    finish(tmp_path, plan.points[0], accuracies=(0.1, None, 0.75))
    run = read(place_of(tmp_path, plan.points[0]))
    assert accuracy_over(run, "bytes") == ([0, 6000], [0.1, 0.75])
    assert accuracy_over(run, "simulated_seconds") == ([], [])


def test_lines_of_a_variant_share_its_colour():
    groups = groups_of(plan_of("fedavg", "static", densities=(0.1, 0.2), seeds=(0,)))
    assert [(g.colour, g.dash, g.name) for g in groups] == [
        (1, "solid", "fedavg"),
        (2, "solid", "static, 10.0 %"),
        (2, "dash", "static, 20.0 %"),
    ]


def whole_page(folder, plan):
    rows = comparison.point_rows(folder, plan.points)
    return render(folder, plan, rows, comparison.table_of(plan, rows))


def figures_in(page):
    text = re.search(r'<script id="figures" type="application/json">(.*?)</script>', page)[1]
    return json.loads(text)


def test_the_page_shows_costs_curves_and_folders(tmp_path):
    plan = plan_of("static", "fedtiny", seeds=(0, 1))
    for point in plan.points:
        level = 0.1 * point.seed + (0.5 if point.variant == "static" else 0.6)
        finish(tmp_path, point, accuracies=(0.1, level))
    page = whole_page(tmp_path, plan)
    figures = figures_in(page)
    assert set(figures) == {
        "cost-bytes",
        "cost-train-flops",
        "cost-peak-client-memory-bytes",
        "curve-bytes",
    }
    front, static, tiny = figures["cost-bytes"]["data"]
    assert (static["x"], front["x"]) == ([6.0], [6.0])
    assert [t["y"] for t in (front, static, tiny)] == [pytest.approx([y]) for y in (65, 55, 65)]
    assert (static["marker"]["symbol"], tiny["marker"]["symbol"]) == ("circle-open", "circle")
    assert tiny["error_y"]["array"] == [pytest.approx(100 * 12.7062 * 0.05, abs=1e-3)]
    for point in plan.points:
        assert f'href="points/{point.slug}/"' in page
    assert "Pareto front, where no other has more accuracy for less: fedtiny." in page


def test_simulated_time_and_energy_are_drawn_where_they_were_measured(tmp_path):
    plan = plan_of("static", seeds=(0,))
    finish(tmp_path, plan.points[0], simulated_seconds=7200.0, energy_joules=5e6)
    figures = figures_in(whole_page(tmp_path, plan))
    assert figures["cost-simulated-seconds"]["data"][1]["x"] == [2.0]
    assert figures["cost-energy-joules"]["data"][1]["x"] == [5.0]


def test_text_from_files_is_escaped(tmp_path):
    name = "<script>alert(1)</script>%{x}"
    point = points_of(
        BASE, ["<b>.toml"], [], Asked((Variant(name, ("strategy.name=static",)),), (), (0, 1)), None
    )
    plan = Plan(tuple(point), name, "fedsparse <i>compare</i>")
    finish(tmp_path, plan.points[0])
    rows = comparison.point_rows(tmp_path, plan.points)
    rows[1] |= {"status": "failed", "reason": "<img src=x onerror=alert(1)>"}
    page = write_page(tmp_path, plan, rows, comparison.table_of(plan, rows)).read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert "<i>compare" not in page
    assert "<b>.toml" not in page
    hover = figures_in(page)["cost-bytes"]["data"][1]["hovertemplate"]
    assert hover.startswith("&lt;script&gt;")
    assert "%{x}" not in hover.partition(": ")[0]


def test_an_unfinished_comparison_says_how_to_go_on(tmp_path):
    plan = plan_of("static", seeds=(0, 1))
    page = whole_page(tmp_path, plan)
    assert "2 of 2 runs are still to be done" in page
    assert f"fedsparse compare --out {tmp_path}" in page
