"""FjORD's client: narrow steps touch nothing else, costs are what was drawn, distillation."""

import math

import numpy as np
import pytest
import torch

from clients.fjord import Fjord, distillation, narrowed
from fedsparse import models, seeds
from fedsparse.errors import ConfigError, TrainingError
from fedsparse.training.local import largest_batch
from tests.clients.visits import SMALL, strategy, visit

CNN = ("model.name=cnn", "model.width=0.5", "data.samples=160", "client.backend=torch")
FJORD = ("strategy.static_norm=false",)


def visited(*settings, small=SMALL, width=1.0, number=1):
    """Return the visit of client 0, whose width is the first, with its model."""
    made = strategy("fjord", *FJORD, *settings, small=small)
    found = made.slice_of(width)
    mask = None if found is None else found.mask
    state = {name: value.copy() for name, value in made.state.items()}
    if mask is not None:
        mask.apply_(state)
    asked = visit(made, state, mask, number=number)
    object.__setattr__(asked.job, "plan", _with_budget(asked.job.plan, width))
    return made, asked


def _with_budget(plan, width):
    return type(plan)(**{**plan.__dict__, "budget": width})


def test_a_narrow_step_moves_what_its_width_has_and_nothing_else():
    """Of a client that holds everything, but draws only the quarter (momentum 0)."""
    made, asked = visited("strategy.widths=[0.25]", "client.momentum=0.0", small=CNN, width=0.25)
    object.__setattr__(asked.received, "mask", None)
    object.__setattr__(asked.received, "state", dict(made.state))
    outcome = Fjord().train(asked)
    for name, bits in made.slice_of(0.25).held.items():
        changed = outcome.kept[name] != made.state[name]
        assert not changed[~bits].any(), name
        assert changed[bits].mean() > 0.5, name


def test_widths_are_drawn_up_to_the_clients_own_and_cost_what_they_keep():
    widths = [1.0, 0.5, 0.25]
    made, asked = visited(
        f"strategy.widths={widths}",
        "strategy.distillation=0.0",
        "client.batch_size=4",
        width=0.5,
        number=3,
    )
    outcome = Fjord().train(asked)
    samples, size = len(asked.job.data.train.y), asked.job.settings.batch_size
    edges = [*range(0, samples, size), samples]
    if largest_batch(samples, size) > size:
        del edges[-2]
    rng = seeds.stream(made.task.config.run.seed, 3, 0, "widths")
    drawn = [[0.5, 0.25][int(rng.integers(2))] for _ in edges[1:]]
    assert len(set(drawn)) == 2
    kept = {w: made.slice_of(w).mask.layer_kept() for w in (0.5, 0.25)}
    flops = sum(
        3 * (after - before) * made.task.cost.flops_of(kept[width])
        for before, after, width in zip(edges, edges[1:], drawn, strict=False)
    )
    assert outcome.price.flops == pytest.approx(flops)
    assert outcome.mask == asked.received.mask
    assert outcome.kept["fc1.weight"].shape == (64 * 8,)


def test_a_teacher_costs_a_full_step_beside_each_narrower_one():
    """Both widths draw the same batches: a teacher adds the full width where it isn't drawn."""
    settings = ("strategy.widths=[1.0,0.5]", "data.samples=400")
    costs = []
    for share in (0.0, 0.5):
        made, asked = visited(f"strategy.distillation={share}", *settings)
        costs.append(Fjord().train(asked).price.flops)
    full = 3 * len(asked.job.data.train.y) * made.task.cost.flops_of(None)
    half = made.task.cost.flops_of(made.slice_of(0.5).mask.layer_kept())
    narrow = (full - costs[0]) / (1 - half / made.task.cost.flops_of(None))
    assert costs[1] == pytest.approx(costs[0] + narrow)
    assert costs[1] <= made.work * full
    assert costs[0] < full < costs[1]


def test_a_width_is_the_masked_model_and_leaves_other_statistics():
    made, asked = visited(small=CNN)
    backend, module = asked.job.backend, asked.job.model
    models.load_state(module, made.state)
    narrow = narrowed(backend, 0.4)
    x = torch.from_numpy(asked.job.data.train.x[:8])
    module.train()
    before = models.get_state(module)
    with torch.no_grad(), narrow.alone(module):
        output = narrow.outputs(module, x)
    after = models.get_state(module)
    held = made.slice_of(0.4).held
    for name in ("norm1.running_mean", "norm2.running_var"):
        assert np.array_equal(after[name][~held[name]], before[name][~held[name]])
        assert (after[name] != before[name])[held[name]].all()
    state = {name: value.copy() for name, value in made.state.items()}
    made.slice_of(0.4).mask.apply_(state)
    models.load_state(module, state)
    with torch.no_grad():
        torch.testing.assert_close(output, module.train()(x))


def test_distillation_is_the_divergence_of_the_teachers_chances():
    """Chances 3/4, 1/4 against 1/2, 1/2: 3/4 log 3/2 + 1/4 log 1/2."""
    teacher, output = torch.tensor([[math.log(3.0), 0.0]] * 2), torch.zeros(2, 2)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(distillation(output, teacher)) == pytest.approx(expected, rel=1e-5)
    assert float(distillation(teacher, teacher)) == pytest.approx(0.0, abs=1e-7)


def test_a_regression_has_no_chances_to_distil():
    regression = ("data.name=synthetic-regression", "model.name=mlp", "data.partition=iid")
    with pytest.raises(ConfigError, match=r"strategy\.distillation = 0\.5 .* set it to 0"):
        strategy("fjord", *regression, "strategy.distillation=0.5", small=())


def test_batches_of_one_cannot_be_normed():
    _, asked = visited("model.name=paper-cnn", "client.batch_size=1")
    with pytest.raises(TrainingError, match=r"raise client\.batch_size \(now 1\)"):
        Fjord().train(asked)
