"""Whole models by the kernels: every gradient of the zoo, tests, and what goes in and out."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsparse import models
from fedsparse.errors import ModelError
from fedsparse.kernels import library
from fedsparse.kernels.graph import derive
from fedsparse.kernels.program import TEST_LANES, Optimizer, Program, program
from fedsparse.kernels.rule import Rule
from fedsparse.sparsity import Mask, State
from tests.kernels.passes import (
    DENSE,
    SPARSE,
    TOLERANCE,
    clear_of_bends,
    errors,
    every_isa,
    native_pass,
    needs_kernels,
    random_mask,
    set_randomly,
    torch_pass,
)
from tests.kernels.test_graph import ZOO as SMALLEST

pytestmark = needs_kernels
ZOO = {**SMALLEST, "mobilenet-v1": (3, 24, 24), "mobilenet-edge": (1, 24, 24)}


def built(name: str, density: float) -> tuple[nn.Module, Mask | None, State]:
    """Return a small model of the zoo, masked, and its state."""
    torch.manual_seed(0)
    model = models.build(name, input_shape=ZOO[name], classes=4, width=0.25)
    weights = models.shapes(model, models.prunable(model))
    mask = None if density == 1 else random_mask(weights, density)
    return model, mask, set_randomly(model, mask)


def samples(name: str, count: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, *ZOO[name])).astype(np.float32)


@pytest.mark.parametrize("density", [1.0, 0.3, 0.05, 0.01])
@pytest.mark.parametrize("name", ZOO)
def test_every_gradient_of_the_zoo_is_torchs(name, density):
    """Against double precision; no further off than 1e-4, or thrice as far as torch in single.

    The second bound is for models in which rounding grows: BatchNorm over a few values whose
    variance is small divides by next to nothing, as at MobileNet's end, on planes of few pixels.
    """
    model, mask, state = built(name, density)
    graph = derive(model, ZOO[name])
    programs = [Program(graph, mask, Rule(*form), input_gradient=True) for form in (DENSE, SPARSE)]
    for frozen in (True, False):
        of = {"mask": mask, "frozen": frozen}
        x, dy, exact = clear_of_bends(model, ZOO[name], 20, 4, **of)
        single = errors(torch_pass(model.float(), x, dy, **of), exact)
        bound = max(TOLERANCE, 3 * max(single.values()))
        models.load_state(model, state)
        for made in programs:
            found = native_pass(made, state, x, dy, frozen=frozen)
            apart = errors(found, exact)
            assert all(each <= bound for each in apart.values()), (frozen, bound, apart)
            for key, bits in () if mask is None else mask.items():
                assert not found.gradients[key][~bits].any()


@every_isa
@pytest.mark.parametrize("name", ["linear", "cnn", "resnet18"])
@pytest.mark.parametrize("count", [1, TEST_LANES, 2 * TEST_LANES + 3])
def test_outputs_loss_and_right_answers_of_a_test_are_torchs(name, count, isa):
    model, mask, state = built(name, 0.5)
    made = Program(derive(model, ZOO[name]), mask, Rule(*SPARSE), library.load(isa))
    x, y = samples(name, count), np.random.default_rng(1).integers(0, 4, count)
    values = made.pack(state)
    before = values.copy()
    outcome, outputs = made.evaluate(values, x, y, outputs=True)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(x))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    loss = nn.functional.cross_entropy(expected, torch.from_numpy(y), reduction="sum")
    assert outcome.loss == pytest.approx(float(loss), rel=1e-5)
    assert outcome.correct == int((expected.argmax(1).numpy() == y).sum())
    np.testing.assert_array_equal(values.buffers, before.buffers)
    _, alone = made.evaluate(values, x, None, outputs=True)
    np.testing.assert_array_equal(alone, outputs)


def test_outputs_of_any_size_do_not_overflow_the_loss():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    made = Program(derive(model, (2,)), None, Rule(*DENSE))
    values = made.pack({"0.weight": np.eye(2, dtype=np.float32) * 500})
    x = np.array([[2, 0], [0, 2]], np.float32)
    outcome, _ = made.evaluate(values, x, np.array([0, 0]))
    assert outcome.loss == pytest.approx(1000.0)
    assert outcome.correct == 1


# -- values -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_a_state_goes_in_and_comes_out_whole_or_as_its_kept_values(form):
    model, mask, state = built("mobilenet-v1", 0.3)
    made = Program(derive(model, ZOO["mobilenet-v1"]), mask, Rule(*form))
    unpruned = {n: v if n not in mask else np.where(mask[n], v, 7) for n, v in state.items()}
    values = made.pack(unpruned)
    out = {**made.whole(values.parameters), **made.statistics(values)}
    assert set(out) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(out[name], value, strict=True)
    kept = made.kept(values.parameters)
    for name, value in kept.items():
        expected = state[name][mask[name]] if name in mask else state[name]
        np.testing.assert_array_equal(value, expected, strict=True)
    sparse = sum(bits.sum() for _, bits in mask.items())
    others = sum(p.numel() for n, p in model.named_parameters() if n not in mask)
    if form == SPARSE:
        assert made.plan.parameters == sparse + others


def test_a_state_of_another_model_is_refused():
    model, mask, state = built("mlp", 0.5)
    made = Program(derive(model, ZOO["mlp"]), mask, Rule(*SPARSE))
    with pytest.raises(ModelError, match=r"the state lacks 'fc2\.bias'"):
        made.pack({n: v for n, v in state.items() if n != "fc2.bias"})
    with pytest.raises(ModelError, match=r"'fc1.weight' has shape \(64, 16\), the model's is"):
        made.pack({**state, "fc1.weight": state["fc1.weight"].T})


def test_programs_are_kept_by_graph_mask_and_rule():
    model, mask, _ = built("mlp", 0.5)
    graph, again = derive(model, ZOO["mlp"]), Mask.from_packed(mask.shapes, mask.packed)
    assert program(graph, mask, Rule(*DENSE)) is program(graph, again, Rule(*DENSE))
    assert program(graph, mask, Rule(*DENSE)) is not program(graph, mask, Rule(*SPARSE))
    assert program(graph, mask, Rule(*DENSE)) is not program(graph, None, Rule(*DENSE))


def test_rounds_of_different_batches_do_not_disturb_each_other():
    """A program's memory is used by clients in turn, whatever their batches."""
    model, mask, state = built("cnn", 0.3)
    made = Program(derive(model, ZOO["cnn"]), mask, Rule(*SPARSE))
    x, y = samples("cnn", 60), np.random.default_rng(1).integers(0, 4, 60)

    def trained(size: int) -> np.ndarray:
        values, sgd = made.pack(state), Optimizer("sgd", 0.1)
        edges = np.array([*range(0, 60, size), 60], np.int64)
        made.train(values, x, y, np.arange(60)[None], edges, sgd, made.slots(sgd))
        return values.parameters

    first = {size: trained(size) for size in (7, 32, 60)}
    for size in (60, 7, 32, 7):
        np.testing.assert_array_equal(trained(size), first[size])


# -- gradients of pruned weights ----------------------------------------------------------


def grown(
    model: nn.Module, shape: tuple[int, ...], mask: Mask, counts: dict[str, int], form, **of
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    state = set_randomly(model, mask)
    made = Program(derive(model, shape), mask, Rule(*form), of.get("api"))
    return made.grow(made.pack(state), of["x"], of["y"], counts)


@pytest.mark.parametrize("form", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_ties_go_to_the_lower_position(form):
    """Two equal inputs have equal gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3))
    x = np.repeat(np.random.default_rng(0).normal(size=(9, 3)), 2, axis=1).astype(np.float32)
    y = np.random.default_rng(0).integers(0, 3, 9)
    mask = Mask.from_arrays({"0.weight": np.zeros((3, 6), bool)})
    for count in (1, 3, 5):
        position, value = grown(model, (6,), mask, {"0.weight": count}, form, x=x, y=y)["0.weight"]
        assert len(position) == count
        assert (np.diff(position) > 0).all()
        odd = position[position % 2 == 1]
        assert set(odd - 1) <= set(position)  # the lower of a pair comes first
        assert len(np.unique(np.abs(value))) == (count + 1) // 2


@every_isa
@pytest.mark.parametrize("form", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_a_layer_of_several_blocks_is_searched_whole(form, isa):
    """40,000 weights: the gradients of 16,384 exist at one time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 4))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 200)).astype(np.float32), rng.integers(0, 4, 30)
    mask = random_mask({"0.weight": (200, 200)}, 0.2)
    api, counts = library.load(isa), {"0.weight": 5000}
    found = grown(model, (200,), mask, counts, form, x=x, y=y, api=api)["0.weight"]
    model = model.double()
    loss = nn.functional.cross_entropy(model(torch.from_numpy(x).double()), torch.from_numpy(y))
    loss.backward()
    gradient = np.where(mask["0.weight"], 0, model[0].weight.grad.numpy()).reshape(-1)
    top = np.sort(np.argsort(-np.abs(gradient), kind="stable")[:5000])
    assert len(np.setdiff1d(found[0], top)) <= 2  # at the edge rounding may decide
    np.testing.assert_allclose(found[1], gradient[found[0]], atol=1e-5 * np.abs(gradient).max())


def test_a_layer_that_keeps_all_has_nothing_to_grow():
    model = nn.Sequential(nn.Linear(4, 3))
    mask = Mask.full({"0.weight": (3, 4)})
    x, y = np.ones((5, 4), np.float32), np.zeros(5, np.int64)
    for form in (DENSE, SPARSE):
        position, value = grown(model, (4,), mask, {"0.weight": 3}, form, x=x, y=y)["0.weight"]
        assert len(position) == len(value) == 0
