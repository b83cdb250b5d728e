"""Plans and rules: nothing lies where something else is needed, and each layer in its form."""

import json
import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from fedsparse import models
from fedsparse.kernels import library, plan, rule
from fedsparse.kernels.graph import derive
from fedsparse.kernels.nodes import Graph
from fedsparse.kernels.plan import Plan
from fedsparse.kernels.program import Program
from fedsparse.kernels.rule import Rule
from fedsparse.sparsity import Mask, ModelCost
from tests.kernels.passes import DENSE, SPARSE, needs_kernels, random_mask
from tests.kernels.test_graph import ZOO
from tests.kernels.test_layers import NETS, SIZE

# -- places -------------------------------------------------------------------------------


class Memory:
    """Memory in which each float tells what was written there last: a value or a gradient.

    Carries out a plan's operations by what they read and write, as `src/run.h` does.
    """

    def __init__(self, made: Plan) -> None:
        self.plan = made
        self.holds = np.full(made.pixels, -1)
        written = {int(op["output"]) for op in made.ops} | {made.input}
        place = made.tensors[["value", "gradient"]]
        self.same = {
            t: t if t in written else max(o for o in written if place[o] == place[t] and o < t)
            for t in range(len(made.tensors))
        }

    def area(self, tensor: int, what: str) -> slice:
        entry = self.plan.tensors[tensor]
        prefix = "" if what == "value" else "gradient_"
        halo, plane = int(entry[f"{prefix}halo"]), int(entry[f"{prefix}plane"])
        assert plane >= (int(entry["height"]) + 2 * halo) * (int(entry["width"]) + 2 * halo)
        start = int(entry[what])
        stop = start + int(entry["channels"]) * plane
        assert 0 <= start < stop <= self.plan.pixels
        return slice(start, stop)

    def mark(self, tensor: int, what: str) -> int:
        return 2 * self.same[tensor] + (what == "gradient")

    def write(self, tensor: int, what: str) -> None:
        self.holds[self.area(tensor, what)] = self.mark(tensor, what)

    def read(self, tensor: int, what: str = "value") -> None:
        assert (self.holds[self.area(tensor, what)] == self.mark(tensor, what)).all()

    def forward(self) -> None:
        self.write(self.plan.input, "value")
        for op in self.plan.ops:
            self.read(op["input"])
            if op["other"] >= 0:
                self.read(op["other"])
            self.write(op["output"], "value")

    def refresh(self, tensor: int) -> None:
        """Make a value again that was not kept."""
        if (maker := self.plan.tensors[self.same[tensor]]["maker"]) >= 0:
            self.read(self.plan.ops[maker]["input"])
            self.write(tensor, "value")

    def backward(self) -> None:
        self.write(self.plan.output, "gradient")
        for op in self.plan.ops[::-1]:
            kind, x, y = op["kind"], int(op["input"]), int(op["output"])
            self.read(y, "gradient")
            if kind in (library.CONV, library.MAX_POOL):
                self.refresh(x)
            if kind in (library.CONV, library.MAX_POOL, library.NORM):
                self.read(x)
            if kind in (library.RELU, library.MAX_POOL):
                self.read(y)
            for field in ("input", "other"):
                if op[field] >= 0 and (field == "other" or x != y):
                    self.hand_on(int(op[field]), y, first=bool(op[f"{field}_first"]))

    def hand_on(self, to: int, from_: int, *, first: bool) -> None:
        if self.plan.tensors[to]["gradient"] < 0:
            return
        self.read(from_, "gradient")
        if first:
            self.write(to, "gradient")
            self.read(from_, "gradient")  # not written over while it is read
        else:
            self.read(to, "gradient")


@cache
def graph_of(name: str) -> Graph:
    if name in ZOO:
        return derive(models.build(name, input_shape=ZOO[name], classes=4, width=0.25), ZOO[name])
    return derive(NETS[name], (3, *SIZE))


EVERY = pytest.mark.parametrize("name", [*ZOO, *NETS])


@EVERY
@pytest.mark.parametrize("input_gradient", [False, True])
def test_what_is_read_is_what_was_written_there_last(name, input_gradient):
    """Two batches, one after the other: values, values made again, and gradients."""
    memory = Memory(plan.make(graph_of(name), None, Rule(*DENSE), input_gradient=input_gradient))
    for _ in range(2):
        memory.forward()
        memory.backward()


@EVERY
def test_halos_are_as_wide_as_convolutions_reach(name):
    made = plan.make(graph_of(name), None, Rule(*DENSE), input_gradient=True)
    for op in made.ops[made.ops["kind"] == library.CONV]:
        source, target = made.tensors[op["input"]], made.tensors[op["output"]]
        for axis in "hw":
            reach = op[f"dilation_{axis}"] * (op[f"kernel_{axis}"] - 1)
            assert source["halo"] >= op[f"pad_{axis}"]
            assert target["gradient_halo"] >= reach - op[f"pad_{axis}"]


@EVERY
def test_a_kept_value_with_a_halo_has_its_place_for_itself(name):
    """Its halo is zero from the start and never written."""
    memory = Memory(plan.make(graph_of(name), None, Rule(*DENSE)))
    made = memory.plan
    areas = [
        (memory.mark(t, what), memory.area(t, what))
        for t in range(len(made.tensors))
        for what in ("value", "gradient")
        if made.tensors[t][what] >= 0
    ]
    for t, entry in enumerate(made.tensors):
        if entry["halo"] == 0 or entry["maker"] >= 0:
            continue
        own, mine = memory.area(t, "value"), {memory.mark(t, w) for w in ("value", "gradient")}
        assert all(
            mark in mine or area.stop <= own.start or own.stop <= area.start for mark, area in areas
        )


def test_gradients_share_room():
    """Of a chain no more than two are needed at a time."""
    model = nn.Sequential(nn.Flatten(), *(nn.Linear(50, 50) for _ in range(20)))
    made = plan.make(derive(model, (50,)), None, Rule(*DENSE))
    assert made.pixels == 21 * 50 + 2 * 50


@needs_kernels
def test_training_fits_into_what_the_method_is_said_to_need():
    """MobileNet v1 (0.25) on 32x32 images at density 0.01, batches of 32.

    What a client holds beside the analytic figures of the sparse method and of dense training;
    activations are nearly all of each.
    """
    shape, batch, slots = (3, 32, 32), 32, 1
    model = models.build("mobilenet-v1", input_shape=shape, classes=10, width=0.25)
    mask = random_mask(models.shapes(model, models.prunable(model)), 0.01)
    program = Program(derive(model, shape), mask, Rule(*SPARSE))
    values = 4 * (program.plan.parameters * (2 + slots) + program._buffer_size)
    index = 4 * program._model.index_words + program.plan.positions.nbytes
    held = program.arena_bytes(batch) + values + index
    cost = ModelCost.of(model, shape)
    sparse = cost.training_memory(mask, optimizer="momentum", batch_size=batch).total
    dense = cost.training_memory(optimizer="momentum", batch_size=batch).total
    assert held <= 0.52 * sparse
    assert held <= 0.5 * dense


# -- forms --------------------------------------------------------------------------------


def forms(model: nn.Module, shape: tuple[int, ...], mask: Mask | None, *rule_of: float):
    made = plan.make(derive(model, shape), mask, Rule(*rule_of))
    return {name: bool(made.ops[op]["sparse"]) for name, op in made.layers.items()}


def test_a_layer_is_sparse_below_the_density_of_its_kind():
    model = nn.Sequential(nn.Conv2d(2, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(20, 4))
    half = np.arange(40).reshape(5, 2, 2, 2) % 2 == 0
    quarter = np.arange(80).reshape(4, 20) % 4 == 0
    mask = Mask.from_arrays({"0.weight": half, "3.weight": quarter})
    shape = (2, 3, 3)
    assert forms(model, shape, mask, 0.25, 0.5) == {"0.weight": False, "3.weight": False}
    assert forms(model, shape, mask, 0.26, 0.5) == {"0.weight": False, "3.weight": True}
    assert forms(model, shape, mask, 0.25, 0.51) == {"0.weight": True, "3.weight": False}
    assert forms(model, shape, None, 1.0, 1.0) == {"0.weight": False, "3.weight": False}
    kept = plan.make(derive(model, shape), mask, Rule(0.26, 0.51)).parameters
    assert kept == 20 + 5 + 20 + 4
    dense = plan.make(derive(model, shape), mask, Rule(0.26, 0.0)).parameters
    assert dense == 40 + 5 + 20 + 4


def test_a_layer_with_groups_is_always_computed_by_its_weights():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(4, 2))
    assert forms(model, (4, 3, 3), None, *DENSE) == {"0.weight": True, "2.weight": False}


# -- the rule of this machine -------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The cache of rules in a folder of its own, and nothing remembered of this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rule.measured.cache_clear()
    yield tmp_path / "fedsparse" / "kernels.json"
    rule.measured.cache_clear()


@needs_kernels
def test_a_measured_rule_is_a_multiple_of_the_step_between_nothing_and_all():
    found = rule.measure()
    for density in (found.linear_below, found.conv_below):
        assert 0 <= density <= 1
        assert density / rule.STEP == pytest.approx(round(density / rule.STEP))


@needs_kernels
def test_a_rule_is_measured_once_and_read_by_the_next_process(cache, monkeypatch):
    monkeypatch.setattr(rule, "measure", lambda: Rule(0.2, 0.35))
    assert rule.measured() == Rule(0.2, 0.35)
    assert [path.name for path in cache.parent.iterdir()] == ["kernels.json"]
    monkeypatch.setattr(rule, "measure", lambda: pytest.fail("measured again"))
    rule.measured.cache_clear()
    assert rule.measured() == Rule(0.2, 0.35)


@needs_kernels
@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", '{"KEY": {}}', '{"KEY": [0.1, 0.2]}', b"\xff"),
        '{"KEY": {"linear_below": "much", "conv_below": 1}}',
        '{"KEY": {"linear_below": 0.1, "conv_below": 1.01}}',
        '{"KEY": {"linear_below": -0.05, "conv_below": 0.5}}',
        '{"KEY": {"linear_below": NaN, "conv_below": 0.5}}',
        '{"another machine": {"linear_below": 0.1, "conv_below": 0.1}}',
    ],
)
def test_a_cache_that_cannot_be_read_is_measured_anew(cache, monkeypatch, content):
    cache.parent.mkdir(parents=True)
    raw = content if isinstance(content, bytes) else content.replace("KEY", rule._key()).encode()
    cache.write_bytes(raw)
    monkeypatch.setattr(rule, "measure", lambda: Rule(0.15, 0.1))
    assert rule.measured() == Rule(0.15, 0.1)
    assert rule._read(rule._key()) == Rule(0.15, 0.1)


@needs_kernels
def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(rule, "measure", lambda: Rule(0.15, 0.1))
    rule.measured.cache_clear()
    assert rule.measured() == Rule(0.15, 0.1)
    rule.measured.cache_clear()


def test_a_file_that_cannot_be_put_in_place_is_removed(cache, monkeypatch):
    def refuse(*paths):
        raise OSError("the disk is full")

    rule._keep("before", Rule(0.3, 0.4))
    monkeypatch.setattr(rule.os, "replace", refuse)
    assert rule._keep("key", Rule(0.1, 0.2)) == Rule(0.1, 0.2)
    assert [path.name for path in cache.parent.iterdir()] == ["kernels.json"]
    assert rule._read("before") == Rule(0.3, 0.4)


def test_what_another_process_kept_meanwhile_is_taken(cache):
    """So that runs that start together compute each layer in the same form."""
    assert rule._keep("key", Rule(0.1, 0.2)) == Rule(0.1, 0.2)
    assert rule._keep("key", Rule(0.5, 0.6)) == Rule(0.1, 0.2)


def test_other_builds_and_processors_keep_their_rules(cache):
    for number in range(rule.BUILDS):
        rule._keep(f"build {number}", Rule(number / 10, 0.5))
    assert all(rule._read(f"build {n}") == Rule(n / 10, 0.5) for n in range(rule.BUILDS))
    rule._keep("one more", Rule(0.5, 0.5))
    assert len(json.loads(cache.read_text())) == rule.BUILDS
    assert rule._read("build 0") is None


def test_whoever_reads_while_others_write_finds_a_whole_rule(cache):
    """A file is put in place, never written there."""
    rule._keep("key", Rule(0.1, 0.2))
    writers = [
        threading.Thread(target=lambda: [rule._keep("key", Rule(0.3, 0.3)) for _ in range(5)]),
        threading.Thread(target=lambda: [rule._keep(f"{n}", Rule(0.3, 0.3)) for n in range(6)]),
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert rule._read("key") == Rule(0.1, 0.2)
    assert [path.name for path in cache.parent.iterdir()] == ["kernels.json"]
