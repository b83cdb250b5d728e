"""The report: one page with everything in it, whatever the run folders hold."""

import builtins
import errno
import json
import os
import re

import numpy as np
import pytest
from report_page import Page
from run_folders import make_run

from fedsparse.errors import FedSparseError, MissingExtraError, RunFolderError
from simulations.report import write_report


@pytest.fixture
def page(tmp_path):
    make_run(tmp_path / "my-run", command="fedsparse run --preset demo --seed 7")
    return Page(write_report([tmp_path / "my-run"]))


def test_the_page_is_in_the_run_folder_by_default(tmp_path):
    a, b = (make_run(tmp_path / "runs" / name, rounds=1).path for name in "ab")
    assert write_report([a]) == a / "report.html"
    assert write_report([a, b]) == tmp_path / "runs" / "report.html"
    assert write_report([a], tmp_path / "new" / "x.html") == tmp_path / "new" / "x.html"
    assert (tmp_path / "new" / "x.html").stat().st_size > 10**6


def test_it_says_the_headline_figures_in_human_units(page):
    for said in ("78.6 %", "10.0 %", "370 kB", "704 kB", "1 min 15 s", "9.00 GFLOP", "412 kB"):
        assert said in page.words
    assert "6 of 6" in page.words
    assert "Not finished" not in page.words


def test_it_has_every_section_and_chart(page):
    for section in (
        "In short",
        "Learning",
        "Sparsity",
        "Traffic",
        "Clients",
        "Failed clients",
        "Round by round",
        "Configuration",
        "Run it again",
    ):
        assert section in page.words
    assert set(page.figures) == {
        "accuracy",
        "loss",
        "layers-0",
        "mask-change",
        "traffic",
        "total-traffic",
        "client-accuracy",
        "partition-0",
    }
    assert set(page.figures) <= set(page.ids)


def test_charts_show_what_the_run_measured(page):
    accuracy = page.figures["accuracy"]["data"][0]
    assert accuracy["x"] == [0, 1, 2, 3, 4, 5, 6]
    assert accuracy["y"][:2] == pytest.approx([10, 50])
    up, down = page.figures["total-traffic"]["data"]
    assert up["y"] == pytest.approx([61.725 * n for n in range(1, 7)])
    assert down["y"][-1] == pytest.approx(703.68)
    assert page.figures["total-traffic"]["layout"]["yaxis"]["title"]["text"] == "Sent (kB)"
    assert 10 ** page.heat_map("layers-0")[:, -1] == pytest.approx([0.05, 0.1, 0.15, 0.2], rel=1e-3)
    assert page.heat_map("partition-0").shape == (4, 5)
    assert sum(page.figures["client-accuracy"]["data"][0]["y"]) == 5


def test_it_names_failed_clients_settings_and_the_command(page):
    assert "1 of 35 requests to clients failed" in page.words
    assert "worker 1 died (signal 9)" in page.words
    assert "client.lr 0.05" in page.words
    assert "fedsparse run --preset demo --seed 7" in page.words


def test_it_refers_to_nothing_outside_itself(page):
    references = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"}
    assert [a for a in page.attributes if a[1] in references] == []
    assert not re.search(r"url\(|@import", "".join(page.styles))
    policy = next(v for _, n, v in page.attributes if n == "content" and "default-src" in v)
    assert "default-src 'none'" in policy
    assert "http" not in policy
    ours = [s for s in page.scripts if "plotly.js v" not in s[:200]]
    assert len(ours) == len(page.scripts) - 1
    assert "http" not in "".join(ours + page.styles)


def test_it_is_written_for_phones_screen_readers_and_both_themes(page):
    assert ("meta", "name", "viewport") in page.attributes
    assert ("html", "lang", "en") in page.attributes
    assert "prefers-color-scheme: dark" in "".join(page.styles)
    assert "@media print" in "".join(page.styles)
    plots = [v for _, n, v in page.attributes if n == "class" and v == "plot"]
    labels = [v for t, n, v in page.attributes if (t, n) == ("div", "aria-label")]
    assert len(plots) == len(page.figures)
    assert all(any(label.startswith(start) for label in labels) for start in ("Accuracy", "Loss"))


def test_several_runs_lie_over_each_other(tmp_path):
    paths = [make_run(tmp_path / name, density=d).path for name, d in [("a", 0.1), ("b", 1.0)]]
    page = Page(write_report(paths))
    assert "2 runs compared" in page.words
    assert len(page.figures["accuracy"]["data"]) == 2
    assert {t["line"]["color"] for t in page.figures["accuracy"]["data"]} == {"var:s1", "var:s2"}
    assert len(page.figures["traffic"]["data"]) == 4
    assert "Who holds what" in page.words
    assert "partition-1" not in page.figures
    differing = page.html.split('class="differs"')[1:]
    assert differing == []


def test_runs_of_one_name_are_told_apart_and_what_differs_comes_first(tmp_path):
    a = make_run(tmp_path / "x" / "run", rounds=2).path
    b = make_run(tmp_path / "y" / "run", rounds=3).path
    page = Page(write_report([a, b]))
    assert "x/run" in page.words
    assert "y/run" in page.words
    first = page.html.split('<tr class="differs">')[1]
    assert "run.rounds" in first[:100]


def test_more_runs_than_colours_differ_by_dash(tmp_path):
    paths = [make_run(tmp_path / f"r{i}", rounds=1, layers=()).path for i in range(9)]
    curves = Page(write_report(paths)).figures["accuracy"]["data"]
    assert len({(t["line"]["color"], t["line"]["dash"]) for t in curves}) == 9


def test_an_unfinished_run_is_shown_as_such(tmp_path):
    run = make_run(tmp_path / "run", rounds=6, done=3)
    page = Page(write_report([run.path]))
    assert "Not finished. Round 3 of 6 is done" in page.words
    assert f"fedsparse resume {run.path}" in page.words
    assert "No client has tested the model" in page.words
    assert "185 kB" in page.words


def test_a_run_that_was_just_made_has_a_page(tmp_path):
    run = make_run(tmp_path / "run", done=-1)
    (run.path / "partition.json").unlink()
    page = Page(write_report([run.path]))
    assert page.figures == {}
    assert "nothing to draw" in page.words


@pytest.mark.parametrize("odd", [None, float("nan"), "0.5", True, [1], {}, 10**400])
def test_values_that_are_no_numbers_are_left_out(tmp_path, odd):
    keys = ("accuracy", "loss", "train_loss", "mask_change", "density", "seconds")
    changes = dict.fromkeys(keys, lambda value: odd)
    run = make_run(tmp_path / "run", done=2, changes=changes)
    page = Page(write_report([run.path]))
    assert "accuracy" not in page.figures
    assert "traffic" in page.figures


def test_rounds_without_a_test_are_skipped_not_drawn_as_zero(tmp_path):
    run = make_run(tmp_path / "run", changes={"accuracy": lambda a: a if a > 0.6 else None})
    assert Page(write_report([run.path])).figures["accuracy"]["data"][0]["x"] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("clients", "classes", "columns"), [(1, 10, 1), (60, 10, 60), (1000, 10, 60), (130, 100, 60)]
)
def test_the_partition_picture_has_room_for_any_fleet(tmp_path, clients, classes, columns):
    run = make_run(tmp_path / "run", rounds=1, clients=clients, classes=classes)
    page = Page(write_report([run.path]))
    picture = page.heat_map("partition-0")
    assert picture.shape == (classes, columns)
    counts = np.array(run.read_json("partition.json")["counts"])
    sizes = np.array([len(g) for g in np.array_split(np.arange(clients), columns)])
    assert picture @ sizes == pytest.approx(counts.sum(0), rel=2e-3)


def test_one_round_one_client_one_class_and_a_dense_model(tmp_path):
    run = make_run(tmp_path / "run", rounds=1, clients=1, classes=1, density=1.0, layers=("fc",))
    page = Page(write_report([run.path]))
    assert page.figures["partition-0"]["data"][0]["type"] == "bar"
    assert "1 client did" in page.words


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'%{y:q}&lt;{{7*7}}"


def test_what_comes_from_files_is_shown_and_never_run(tmp_path):
    layer = f"layer{HOSTILE}"
    name = HOSTILE.replace("/", "_")
    run = make_run(tmp_path / name, command=HOSTILE, reason=HOSTILE, layers=(layer, "b"))
    text = (run.path / "config.toml").read_text()
    (run.path / "config.toml").write_text(text + f"\n[extra]\n'key<b>' = {json.dumps(HOSTILE)}\n")
    page = Page(write_report([run.path]))
    assert page.words.count(HOSTILE) == 3
    assert page.words.count(name) >= 1
    assert "alert" not in "".join(s for s in page.scripts if not s.startswith("{"))
    assert not any(tag == "img" or attribute == "onerror" for tag, attribute, _ in page.attributes)
    assert page.figures["layers-0"]["data"][0]["customdata"][0][0] == layer.replace(
        "&", "&amp;"
    ).replace("<", "&lt;").replace(">", "&gt;")


def test_the_same_runs_give_the_same_page(tmp_path):
    run = make_run(tmp_path / "run", rounds=1)
    first = write_report([run.path]).read_bytes()
    assert write_report([run.path]).read_bytes() == first


def test_what_is_no_run_is_refused_and_no_page_is_left(tmp_path):
    with pytest.raises(RunFolderError, match="at least one"):
        write_report([])
    with pytest.raises(RunFolderError, match="no run folder"):
        write_report([tmp_path / "none"])
    with pytest.raises(RunFolderError, match="not a run folder"):
        write_report([tmp_path])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", "{"),
        ("config.toml", "[run"),
        ("metrics.jsonl", "{}\n[\n{}\n"),
        ("summary.json", "]"),
        ("summary.json", "[]"),
        ("partition.json", '{"counts": [[1], [2, 3]]}'),
        ("partition.json", '{"counts": [[-1]]}'),
        ("partition.json", "[]"),
        ("clients.parquet", "PAR1"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, content):
    run = make_run(tmp_path / "run", rounds=1)
    (run.path / file).write_text(content)
    with pytest.raises(FedSparseError, match=file.replace(".", r"\.")) as error:
        write_report([run.path])
    assert "\n" not in str(error.value)
    assert not (run.path / "report.html").exists()


@pytest.mark.parametrize("file", ["partition.json", "clients.parquet"])
def test_a_broken_file_that_the_page_can_do_without_may_be_deleted(tmp_path, file):
    run = make_run(tmp_path / "run", rounds=1)
    (run.path / file).write_text("{")
    with pytest.raises(RunFolderError, match="delete it for a report without"):
        write_report([run.path])
    (run.path / file).unlink()
    assert write_report([run.path]).exists()


@pytest.mark.parametrize("content", [None, b"", b"\x00\xff", b'{"round": 0}\n'])
def test_a_finished_run_without_its_rounds_has_no_page(tmp_path, content):
    run = make_run(tmp_path / "run", rounds=1)
    path = run.path / "metrics.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl' is missing or damaged; start again"):
        write_report([run.path])


@pytest.mark.parametrize("content", [None, b"", b"\x00\xff"])
def test_an_unfinished_run_with_a_checkpoint_but_no_round_has_no_page(tmp_path, content):
    run = make_run(tmp_path / "run", done=1)
    run.save_checkpoint(1, {})
    path = run.path / "metrics.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl' holds no whole row"):
        write_report([run.path])


@pytest.mark.parametrize("content", [None, b""])
def test_a_missing_or_empty_configuration_is_named_with_the_remedy(tmp_path, content):
    run = make_run(tmp_path / "run", done=1)
    path = run.path / "config.toml"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(RunFolderError, match=r"config\.toml' is (missing|damaged).*another --out"):
        write_report([run.path])


def test_a_full_disk_leaves_the_old_page(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", rounds=1)
    (run.path / "report.html").write_text("old")

    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunFolderError, match="full"):
        write_report([run.path])
    assert (run.path / "report.html").read_text() == "old"
    with pytest.raises(RunFolderError, match="is a folder"):
        write_report([run.path], tmp_path)


@pytest.mark.parametrize("package", ["jinja2", "plotly.offline"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, package):
    run = make_run(tmp_path / "run", rounds=1)
    real = builtins.__import__

    def importing(name, *args, **kwargs):
        if name == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(MissingExtraError, match=r"fedsparse\[report\]"):
        write_report([run.path])


def test_a_regressions_accuracy_is_called_r_squared(tmp_path):
    make_run(tmp_path / "real", classes=1)
    words = Page(write_report([tmp_path / "real"])).words
    assert "R²" in words
    assert "variance is explained" in words
    assert "answered right" not in words
