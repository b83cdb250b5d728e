"""The report of runs on simulated devices: their fleet, their clock, their energy."""

import json

import numpy as np
import pytest
from report_page import Page
from run_folders import make_run
from timed_runs import DEVICES, make_timed_run

from fedsparse.errors import RunFolderError
from simulations.charts import all_charts
from simulations.report import write_report
from simulations.results import read

SECTIONS = ("What accuracy costs", "Devices", "Rounds on the clock", "Energy")


def report(run):
    return Page(write_report([run.path]))


def traces(page, chart):
    return page.figures[chart]["data"]


def layout(page, chart):
    return page.figures[chart]["layout"]


def drawn(run):
    """Return the charts of a run that have a figure, by id."""
    sections = all_charts([read(run.path)], ["run"])
    return {
        chart.id: chart.figure for charts in sections.values() for chart in charts if chart.figure
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_timed_run(tmp_path_factory.mktemp("runs") / "timed", rounds=8)


@pytest.fixture(scope="module")
def page(run):
    return report(run)


@pytest.fixture(scope="module")
def queued(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "queued"
    return make_timed_run(folder, rounds=20, asynchronous=True)


# -- runs without devices -----------------------------------------------------------------


def test_a_run_without_devices_has_nothing_of_them(tmp_path):
    page = report(make_run(tmp_path / "run"))
    for said in (*SECTIONS, "Simulated time", "Refused clients", "Clock", "Late"):
        assert said not in page.words
    assert "not reached" not in page.words


def test_a_target_without_a_clock_counts_rounds_and_bytes_alone(tmp_path):
    def untimed(row):
        for key in ("simulated_seconds", "energy_joules", "started", "clients_refused"):
            row.pop(key, None)

    page = report(
        make_timed_run(tmp_path / "run", done=3, devices=None, change=untimed, target=0.5)
    )
    assert "Rounds to 50.0 % 1 until" in page.words
    assert "Bytes to 50.0 %" in page.words
    assert "Time to" not in page.words
    assert "Energy" not in page.words


# -- headline figures ---------------------------------------------------------------------


def test_the_headline_says_time_energy_refused_and_the_price_of_the_target(run, page):
    found = run.summary()
    assert found["rounds_to_target"] == 7
    minutes = int(found["simulated_seconds"] // 60)
    assert f"Simulated time {minutes} min" in page.words
    assert f"Energy {found['energy_joules'] / 1000:.2f} kJ of all devices" in page.words
    assert "Refused clients 4 whose device" in page.words
    assert "Rounds to 80.0 % 7 until" in page.words
    assert f"Energy to 80.0 % {found['joules_to_target'] / 1000:.2f} kJ" in page.words
    assert f"Bytes to 80.0 % {found['bytes_to_target'] / 1e6:.2f} MB" in page.words
    assert "Time to 80.0 %" in page.words


def test_a_target_that_was_not_reached_is_said_so(tmp_path):
    page = report(make_timed_run(tmp_path / "run", rounds=2, target=0.99))
    for name in ("Time", "Energy", "Bytes", "Rounds"):
        assert f"{name} to 99.0 % not reached" in page.words
    assert "The target of 99.0 % is not reached." in page.words


def test_an_unfinished_run_tells_the_target_from_its_rows(tmp_path):
    done = make_timed_run(tmp_path / "done", rounds=8)
    cut = make_timed_run(tmp_path / "cut", rounds=9, done=8)
    early = make_timed_run(tmp_path / "early", rounds=9, done=3)
    keys = ("rounds", "seconds", "bytes", "joules")
    of_done, of_cut = ([read(r.path).to_target(key) for key in keys] for r in (done, cut))
    assert of_cut == pytest.approx(of_done)
    assert of_cut[0] == 7
    assert "Time to 80.0 % not yet" in report(early).words


# -- devices ------------------------------------------------------------------------------


def test_the_fleet_shows_who_takes_part_and_why_others_are_refused(page):
    part, refused = traces(page, "fleet")
    assert part["x"] == [12, 16, 8]
    assert refused["x"] == [4, 0, 0]
    names = layout(page, "fleet")["yaxis"]["ticktext"]
    assert names == ["board (16)", "phone (16)", "tablet (8)"]
    assert "4 are refused: 3 for lack of memory, 1 for lack of storage." in page.words
    assert "a smaller batch is used by 2." in page.words


def test_memory_is_told_by_what_holds_it_against_the_limits(page):
    found = {
        t["customdata"][0].split("<br>")[1].split(":")[0]: t["x"]
        for t in traces(page, "device-memory")
    }
    assert found["Gradients"] == [40, 400]
    assert found["Buffer"] == [12, 0]
    assert [s["x0"] for s in layout(page, "device-memory")["shapes"]] == [256, 600]
    assert [a["text"] for a in layout(page, "device-memory")["annotations"]] == [
        "board 256 kB",
        "phone 600 kB",
    ]
    assert (
        "Of 3 kinds of device: fedtiny needs 222 kB and fits 3; prunefl needs 570 kB" in page.words
    )
    assert "Not drawn: tablet (no limit)." in page.words


def test_limits_far_above_the_bars_are_named_and_not_drawn(tmp_path):
    far = {**DEVICES, "limits": {"server": 64e9, "phone": 4e9, "sensor": 0}}
    page = report(make_timed_run(tmp_path / "run", rounds=1, devices=far))
    assert layout(page, "device-memory")["shapes"] == []
    assert "Of 3 kinds of device 2 can hold this." in page.words
    assert "Not drawn: sensor (cannot train), phone (4.00 GB), server (64.0 GB)." in page.words


def test_labels_of_near_limits_are_put_above_each_other(tmp_path):
    near = {**DEVICES, "limits": {f"device-number-{i}": 250_000 + i for i in range(9)}}
    page = report(make_timed_run(tmp_path / "run", rounds=1, devices=near))
    shifts = [a["yshift"] for a in layout(page, "device-memory")["annotations"]]
    assert len(shifts) == len(set(shifts)) == 6
    assert layout(page, "device-memory")["margin"]["t"] > max(shifts)


# -- the clock ----------------------------------------------------------------------------


def test_the_last_slowest_and_first_round_have_a_time_line(run, page):
    clock = [row["simulated_seconds"] for row in run.metrics()]
    slowest = int(np.argmax(np.diff(clock))) + 1
    for name, number in (("last", 8), ("slowest", slowest), ("first", 1)):
        rows = [row for row in run.clients() if row["round"] == number]
        download, compute, _, *rest = traces(page, f"timeline-{name}")
        assert len(compute["x"]) == len(rows) == 20
        assert sum(compute["x"]) == pytest.approx(sum(r["compute_seconds"] for r in rows))
        assert download["base"] == pytest.approx([0] * 20)
        assert compute["base"] == pytest.approx(download["x"])
        end = layout(page, f"timeline-{name}")["shapes"][0]["x0"]
        assert end == pytest.approx(clock[number] - clock[number - 1])
        waiting = rest[-1]
        assert [b + x for b, x in zip(waiting["base"], waiting["x"], strict=True)] == pytest.approx(
            [end] * len(waiting["x"])
        )
        marks = [t for t in rest if t["type"] == "scatter"]
        unused = [r for r in rows if r["status"] != "ok"]
        assert sum(len(t["x"]) for t in marks) == len(unused)
        assert f"Round {number}, the {name}" in page.words


def test_one_round_has_one_time_line(tmp_path):
    page = report(make_timed_run(tmp_path / "run", rounds=1))
    assert "Round 1, the last and slowest and first" in page.words
    assert [name for name in page.figures if name.startswith("timeline")] == ["timeline-last"]


def test_of_many_clients_a_time_line_shows_sixty_and_says_so(tmp_path):
    run = make_timed_run(tmp_path / "run", rounds=1, clients=300, asked=200)
    page = report(run)
    assert len(traces(page, "timeline-last")[0]["x"]) == 60
    assert "60 of 200 clients are shown" in page.words
    assert "140 are left out" in page.words
    upload = traces(page, "timeline-last")[2]
    end = max(b + x for b, x in zip(upload["base"], upload["x"], strict=True))
    assert end == pytest.approx(run.metrics()[1]["simulated_seconds"])


def test_client_time_is_shared_out_whole(run, page):
    shares = np.array([t["y"] for t in traces(page, "utilisation")])
    assert shares.shape == (4, 8)
    assert shares.sum(0) == pytest.approx(np.full(8, 100))
    rows = [r for r in run.clients() if r["round"] == 8]
    clock = [r["simulated_seconds"] for r in run.metrics()]
    ok = [r for r in rows if r["status"] == "ok"]
    lost = sum(
        r["download_seconds"] + r["compute_seconds"] + r["upload_seconds"]
        for r in rows
        if r["status"] != "ok"
    )
    every = len(ok) * (clock[8] - clock[7]) + lost
    assert shares[0, -1] == pytest.approx(100 * sum(r["compute_seconds"] for r in ok) / every)
    assert shares[3, -1] == pytest.approx(100 * lost / every)


def test_it_shows_who_replied_was_late_or_dropped(run, page):
    rows = run.metrics()[1:]
    in_time, late, dropped = traces(page, "replies")
    assert in_time["y"] == [r["clients_replied"] for r in rows]
    assert late["y"] == [r["clients_late"] for r in rows]
    assert dropped["y"] == [r["clients_dropped"] for r in rows]
    lost = sum(dropped["y"])
    assert f"{lost:.0f} were lost (lost while training: {lost:.0f})" in page.words


def test_hundreds_of_rounds_share_bars(tmp_path):
    page = report(make_timed_run(tmp_path / "run", rounds=230, asked=2))
    assert len(traces(page, "utilisation")[0]["x"]) == 77
    assert traces(page, "utilisation")[0]["customdata"][0] == "mean of rounds 1 to 3"


def test_the_round_table_has_the_clock_and_who_was_late(page, tmp_path):
    for name in ("Late", "Dropped", "Clock", "Energy"):
        assert f'class="num">{name}</th>' in page.html

    def punctual(row):
        row |= {key: 0 for key in ("clients_late", "clients_dropped") if key in row}

    other = report(make_timed_run(tmp_path / "run", rounds=1, change=punctual))
    assert 'class="num">Clock</th>' in other.html
    assert 'class="num">Late</th>' not in other.html


# -- asynchronous runs --------------------------------------------------------------------


def test_an_asynchronous_run_shows_its_queue_and_not_single_rounds(queued):
    page = report(queued)
    assert not [name for name in page.figures if name.startswith("timeline")]
    assert len(traces(page, "queue")[0]["x"]) <= 240
    left, right = layout(page, "queue")["xaxis"]["range"]
    assert left < right
    assert all(left <= s["x0"] <= right for s in layout(page, "queue")["shapes"])
    assert "Staleness" in page.words
    assert "waiting" not in page.words


def test_staleness_is_counted(queued):
    page = report(queued)
    ages = [r["staleness"] for r in queued.clients() if r["status"] == "ok"]
    assert traces(page, "staleness")[0]["y"] == np.bincount(ages).tolist()
    assert f"{max(ages)} at most" in page.words


# -- energy -------------------------------------------------------------------------------


def test_energy_is_told_by_device_and_by_use(run, page):
    joules = [row["energy_joules"] for row in run.metrics()[1:]]
    for chart in ("energy", "energy-split"):
        sums = np.sum([t["y"] for t in traces(page, chart)], axis=0)
        assert sums == pytest.approx(joules, rel=1e-6)
    computing = traces(page, "energy-split")[0]["y"]
    watts = {"board": 0.8, "phone": 3.0, "tablet": 4.0}
    first = [r for r in run.clients() if r["round"] == 1]
    expected = sum(watts[r["device"]] * r["compute_seconds"] for r in first)
    assert computing[0] == pytest.approx(expected, rel=1e-6)


def test_energy_that_no_two_powers_explain_is_not_split(tmp_path):
    rng = np.random.default_rng(1)

    def odd(row):
        if "started" in row:
            row["energy_joules"] = float(rng.uniform(1, 100))

    page = report(make_timed_run(tmp_path / "run", change=odd))
    assert "energy" in page.figures
    assert "energy-split" not in page.figures


def test_energy_of_no_clients_row_is_shown_apart(tmp_path):
    def before_training(row):
        if row["round"] == 0:
            row["energy_joules"] = 500.0

    page = report(make_timed_run(tmp_path / "run", rounds=2, change=before_training))
    *by_device, rest = traces(page, "energy")
    assert len(by_device) == 3
    assert rest["x"] == [0, 1, 2]
    assert rest["y"] == pytest.approx([500, 0, 0], abs=1e-6)


def test_energy_without_clients_rows_is_the_total_alone(tmp_path):
    run = make_timed_run(tmp_path / "run", rounds=2)
    (run.path / "clients.parquet").unlink()
    page = report(run)
    assert len(traces(page, "energy")) == 1
    assert "energy-split" not in page.figures
    assert "utilisation" not in page.figures


# -- what accuracy costs ------------------------------------------------------------------


@pytest.mark.parametrize("key", ["seconds", "bytes", "joules"])
def test_accuracy_is_drawn_over_its_price_and_the_target_marked(run, page, key):
    rows = run.metrics()
    paid = {
        "seconds": [r["simulated_seconds"] for r in rows],
        "bytes": np.cumsum([r["bytes_up"] + r["bytes_down"] for r in rows]),
        "joules": np.cumsum([r["energy_joules"] for r in rows]),
    }[key]
    size = {"seconds": 60, "bytes": 1e6, "joules": 1e3}[key]
    curve = traces(page, f"accuracy-{key}")[0]
    assert curve["x"] == pytest.approx([v / size for v in paid])
    assert curve["y"] == pytest.approx([100 * r["accuracy"] for r in rows])
    assert layout(page, f"accuracy-{key}")["shapes"][0]["y0"] == 80


def test_long_runs_are_shown_in_hours(tmp_path):
    def slow(row):
        row |= {k: row[k] * 1000 for k in ("simulated_seconds", "started") if row.get(k)}

    page = report(make_timed_run(tmp_path / "run", rounds=2, change=slow))
    assert layout(page, "accuracy-seconds")["xaxis"]["title"]["text"] == "Simulated time (h)"


def test_several_runs_lie_over_each_other_and_have_no_time_lines(tmp_path):
    paths = [
        make_run(tmp_path / "plain", rounds=2).path,
        make_timed_run(tmp_path / "a", rounds=2).path,
        make_timed_run(tmp_path / "b", rounds=3, asynchronous=True).path,
    ]
    page = Page(write_report(paths))
    for chart in ("accuracy-seconds", "accuracy-bytes", "accuracy-joules", "energy"):
        colours = [t["line"]["color"] for t in traces(page, chart)]
        assert colours == ["var:s2", "var:s3"]
    assert layout(page, "utilisation")["yaxis"]["ticktext"] == ["a", "b"]
    assert np.sum([t["x"] for t in traces(page, "utilisation")], axis=0) == pytest.approx(
        [100, 100]
    )
    assert layout(page, "device-memory")["yaxis"]["ticktext"] == ["fedtiny", "prunefl"]
    kinds = {name.split("-")[0] for name in page.figures}
    assert not kinds & {"timeline", "queue", "staleness"}
    assert "Simulated time" in page.words


def test_runs_far_apart_have_a_logarithmic_scale(tmp_path):
    def slow(row):
        row |= {k: row[k] * 1000 for k in ("simulated_seconds", "started") if row.get(k)}

    a = make_timed_run(tmp_path / "a", rounds=2)
    b = make_timed_run(tmp_path / "b", rounds=2, change=slow)
    page = Page(write_report([a.path, b.path]))
    assert layout(page, "accuracy-seconds")["xaxis"]["type"] == "log"
    assert all(x > 0 for t in traces(page, "accuracy-seconds") for x in t["x"])
    assert "type" not in layout(page, "accuracy-joules")["xaxis"]


def test_methods_of_one_name_that_need_different_memory_are_told_apart(tmp_path):
    more = {"fedtiny": {**DEVICES["memory_by_method"]["fedtiny"], "buffer": 24_000}}
    a = make_timed_run(tmp_path / "a", rounds=1)
    b = make_timed_run(tmp_path / "b", rounds=1, devices={**DEVICES, "memory_by_method": more})
    page = Page(write_report([a.path, b.path]))
    names = layout(page, "device-memory")["yaxis"]["ticktext"]
    assert names == ["fedtiny", "prunefl", "fedtiny (b)"]


# -- files from elsewhere -----------------------------------------------------------------

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'%{y:q}&lt;{{7*7}}"


def test_names_from_files_are_shown_and_never_run(tmp_path):
    devices = {
        **DEVICES,
        "profile": HOSTILE,
        "profiles": {HOSTILE: 3, "var:ink": 2},
        "limits": {HOSTILE: 300_000},
        "memory_by_method": {HOSTILE: DEVICES["memory_by_method"]["fedtiny"]},
    }

    def rename(row):
        row |= {"device": HOSTILE} if "device" in row else {}

    for asynchronous in (False, True):
        run = make_timed_run(
            tmp_path / f"run-{asynchronous}",
            rounds=2,
            devices=devices,
            reason=HOSTILE,
            asynchronous=asynchronous,
            change=rename,
        )
        page = report(run)
        assert "alert" not in "".join(s for s in page.scripts if not s.startswith("{"))
        assert not any(tag == "img" or name == "onerror" for tag, name, _ in page.attributes)
        shown = json.dumps({k: v for k, v in page.figures.items() if k != "layers-0"})
        assert "<img" not in shown
        assert "<script" not in shown
        assert "%{y:q}" not in "".join(
            t["hovertemplate"] for f in page.figures.values() for t in f["data"]
        )


ODD = [None, float("nan"), "0.5", True, [1], {}, -(10**400), 1e308]


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_values_that_are_no_numbers_are_left_out(tmp_path, odd, asynchronous):
    keys = {"simulated_seconds", "energy_joules", "started", "compute_seconds", "device", "status"}
    keys |= {"clients_late", "clients_dropped", "staleness", "reason"}

    def spoil(row):
        if row["round"] == 2 and row.get("client", 0) % 2 == 0:
            row |= {key: odd for key in keys if key in row}

    run = make_timed_run(
        tmp_path / "run", done=3, rounds=4, asynchronous=asynchronous, change=spoil
    )
    found = drawn(run)
    assert len(found["accuracy-seconds"]["data"][0]["x"]) == 3
    assert "utilisation" in found
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("odd", [None, 1, "x", [], {}, {"x": "y"}, {"fedtiny": [1]}], ids=repr)
@pytest.mark.parametrize("key", sorted(DEVICES))
def test_parts_of_the_devices_that_make_no_sense_are_left_out(tmp_path, key, odd):
    run = make_timed_run(tmp_path / "run", rounds=1, devices={**DEVICES, key: odd})
    found = drawn(run)
    assert ("fleet" in found) == (key != "profiles")
    assert ("device-memory" in found) == (key != "memory_by_method")
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("content", ["[]", "null", "3", "{}", '{"profiles": [1]}'])
def test_a_devices_file_of_another_kind_counts_as_missing(tmp_path, content):
    run = make_timed_run(tmp_path / "run", rounds=1)
    (run.path / "devices.json").write_text(content)
    found = drawn(run)
    assert not {"fleet", "device-memory"} & set(found)
    assert "utilisation" in found


def test_a_broken_devices_file_is_named_and_may_be_deleted(tmp_path):
    run = make_timed_run(tmp_path / "run", rounds=1)
    (run.path / "devices.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"devices\.json.*delete it for a report without it"):
        report(run)
    (run.path / "devices.json").unlink()
    assert "utilisation" in report(run).figures


def test_a_run_that_was_just_made_shows_its_fleet(tmp_path):
    page = report(make_timed_run(tmp_path / "run", done=-1))
    assert {"fleet", "device-memory"} <= set(page.figures)
    assert not {"utilisation", "energy", "accuracy-seconds"} & set(page.figures)


def test_a_run_before_its_first_round_shows_no_clock(tmp_path):
    found = drawn(make_timed_run(tmp_path / "run", done=0))
    assert {"fleet", "device-memory"} <= set(found)
    assert not {"utilisation", "replies", "energy", "accuracy-seconds"} & set(found)


def test_a_million_clients_are_one_bar_a_kind_of_device(tmp_path):
    many = {**DEVICES, "profiles": {f"kind {i}": 40_000 for i in range(25)}}
    page = report(make_timed_run(tmp_path / "run", rounds=1, devices=many))
    assert len(traces(page, "fleet")[0]["x"]) == 24
    assert "1,000,000 clients by device" in page.words
    assert "1 more are left out" in page.words
