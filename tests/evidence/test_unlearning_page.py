"""The page about an unlearned model: all of its record, made again from JSON, nothing trusted."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from tiny_runs import tiny

from fedsparse.errors import RunFolderError
from fedsparse.runs import RunFolder
from simulations.evidence.costs import cost_of
from simulations.evidence.page import render, target_text, write_page
from simulations.evidence.roc import Roc
from tests.evidence.made_evidence import evidence, measured, record

VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """A page as a reader sees it: balanced tags, words, and the figures of its charts."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.text, self.scripts, self.ids, self.loaded = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        self.words = " ".join(" ".join(self.text).split())
        self.figures = json.loads(next(s for s in self.scripts if s.startswith("{")))

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        self.loaded += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        where = self.open[-1] if self.open else ""
        (self.scripts if where == "script" else self.text).append(data)


def page_of(content):
    return Page(render(json.loads(json.dumps(content))))


def test_it_says_what_was_asked_and_the_verdict():
    page = page_of(record())
    for said in (
        "Forgetting 4 samples",
        "runs/demo",
        "l1-sparse",
        "gamma = 0.01",
        "approximate",
        "Not told apart from retraining",
        "cannot be told from retraining by these tests",
        "What these tests cannot show",
    ):
        assert said in page.words


def test_it_shows_every_measure_beside_retraining():
    page = page_of(record(evidence(backdoor=measured(0.02, (0.03, 0.02, 0.02), 0.97))))
    for said in ("Unlearning accuracy (UA)", "5.0 %", "5.5 ± 1.2 %", "Backdoor success", "97.0 %"):
        assert said in page.words
    assert "its mean is 0.40 points" in page.words
    original, unlearned, retrained = page.figures["measures"]["data"]
    assert original["x"] == ["UA", "MIA", "RA", "TA", "Backdoor"]
    assert unlearned["y"] == pytest.approx([5, 11, 99, 94, 2])
    assert retrained["error_y"]["array"][0] == pytest.approx(
        0.5 + 100 * 4.3027 * 0.005 * 1.1547, 1e-3
    )


def test_charts_have_places_and_a_logarithmic_axis_starts_above_nothing():
    page = page_of(record())
    assert set(page.figures) == {"measures", "roc-lira", "search"}
    assert set(page.figures) <= set(page.ids)
    roc = page.figures["roc-lira"]
    assert roc["layout"]["xaxis"]["type"] == "log"
    assert min(x for trace in roc["data"] for x in trace["x"]) == pytest.approx(100 * 0.5 / 90)
    assert page.figures["search"]["data"][0]["y"] == pytest.approx([30, 0.4])


def test_tied_scores_are_drawn_as_the_curve_that_a_slope_is_on_a_logarithmic_axis():
    tied = Roc(0.5, 0.5, 0.5, 0.0, 0.0, 90, 90, (0.0, 1.0), (0.0, 1.0))
    found = replace(evidence(), attacks={"lira": {"unlearned": tied}})
    coin, drawn = page_of(record(found)).figures["roc-lira"]["data"]
    inner = [(x, y) for x, y in zip(drawn["x"], drawn["y"], strict=True) if x > drawn["x"][0]]
    assert len(inner) > 10
    assert [y for _, y in inner] == pytest.approx([x for x, _ in inner])
    assert coin["x"] == coin["y"]


def test_costs_are_set_against_retraining():
    page = page_of(record())
    for said in ("Rounds 3 6 20 0.450 ×", "Bytes, both ways 2.00 MB 4.00 MB 16.0 MB 0.375 ×"):
        assert said in page.words
    assert "Time on the devices' clock" in page.words
    assert "Energy of the devices" not in page.words


def test_the_search_tells_what_was_tried_what_failed_and_what_was_wanted():
    words = page_of(record()).words
    for said in (
        "0.001 10.0 % – – – 30.0",
        "0.01 – – – – 0.4 chosen",
        "9.0 – – – – – failed: the loss is nan",
        "wanted 5.0 % 10.0 % 99.0 % 94.0 %",
        "left out: a method that cannot",
    ):
        assert said in words


def test_a_cost_that_stands_for_retraining_is_said_to():
    words = "No run was retrained"
    assert words not in page_of(record()).words
    costs = record()["costs"] | {"retraining_of": "the original"}
    assert words in page_of(record(costs=costs)).words


def test_what_is_missing_is_left_out():
    page = page_of(record(evidence=None, search=None, costs=None))
    assert "Not examined" in page.words
    for absent in ("Strong attacks", "What it cost", "How its strength was chosen", "Distance to"):
        assert absent not in page.words
    assert page.figures == {}
    found = page_of(record(certificate="no-op-unused", evidence=None))
    assert "Nothing to change" in found.words


def test_it_loads_nothing_and_trusts_nothing():
    evil = "</script><script>alert(1)</script><b onclick=x>"
    found = record(parent=evil, method=evil, certificate=evil, target=evil)
    found["search"] |= {"knob": evil, "reference": evil}
    html = render(found)
    assert "<script>alert(1)" not in html
    assert "<b onclick" not in html
    assert Page(html).loaded == []


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ({"clients": "3"}, "client 3"),
        ({"clients": "3,7-9", "classes": None}, "clients 3, 7-9"),
        ({"classes": "0", "clients": "1"}, "client 1 and class 0"),
        ({"samples": "5"}, "1 sample"),
        ({"samples": "0-1999"}, "2,000 samples"),
        ({"words": "client 4, for its backdoor", "clients": "4"}, "client 4, for its backdoor"),
        ({}, "nothing"),
    ],
)
def test_the_target_is_told_in_words(target, text):
    assert target_text(target) == text


def test_the_page_is_made_from_the_folder(tmp_path):
    folder = RunFolder.create(tmp_path / "child", tiny(), command="fedsparse unlearn")
    with pytest.raises(RunFolderError, match=r"no unlearning\.json"):
        write_page(folder.path)
    folder.write_json("unlearning.json", record())
    assert write_page(folder.path) == folder.path / "unlearning_report.html"
    broken = record()
    broken["evidence"]["measures"] = 3
    folder.write_json("unlearning.json", broken)
    with pytest.raises(RunFolderError, match="evidence is damaged"):
        write_page(folder.path)


def test_a_cost_counts_the_rounds_after_a_checkpoint(tmp_path):
    folder = RunFolder.create(tmp_path / "child", tiny(), command="fedsparse unlearn")
    for number in range(5):
        folder.append_metrics(
            {
                "round": number,
                "bytes_up": 10 * number,
                "bytes_down": 1,
                "train_flops": 100.0,
                "seconds": 0.5,
                "simulated_seconds": 60.0 * number,
                "energy_joules": None,
            }
        )
    whole, rest = cost_of(folder), cost_of(folder, after=2)
    assert (whole.rounds, whole.bytes, whole.flops, whole.seconds) == (4, 105, 500, 2.5)
    assert (rest.rounds, rest.bytes, rest.flops, rest.seconds) == (2, 72, 200, 1.0)
    assert (whole.simulated_seconds, rest.simulated_seconds) == (240, 120)
    assert whole.joules is None
