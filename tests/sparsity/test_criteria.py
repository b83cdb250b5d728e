"""Criteria: each paper's equation, by hand and against a second implementation of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedsparse import models
from fedsparse.errors import MaskError, UnknownNameError
from fedsparse.sparsity import Mask
from fedsparse.sparsity.criteria import CRITERIA, NEEDS_DATA, Batch, scores

CLOSE = {"rtol": 2e-4, "atol": 1e-7}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits() -> Batch:
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:20], dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    return x, torch.tensor(labels[:20])


def convnet(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """A convolution, BatchNorm with a history, dropout, and a linear layer."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2),
        nn.BatchNorm2d(3),
        activation(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(27, 10),
    )
    with torch.no_grad():
        net[1].running_mean.uniform_(-0.2, 0.2)
        net[1].running_var.uniform_(0.5, 2)
        net[1].weight.uniform_(-1, 1)
        net[1].bias.uniform_(-0.2, 0.2)
    return net


NAMES = ["0.weight", "5.weight"]


def halves(batch: Batch) -> list[Batch]:
    """Cut a batch in two of unlike size."""
    x, y = batch
    return [(x[:13], y[:13]), (x[13:], y[13:])]


def loss(net: nn.Module, batch: Batch, weights: dict[str, Tensor] | None = None) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(functional_call(net, weights or {}, (x,)), y)


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: net.get_parameter(name).detach().clone() for name in NAMES}


# -- by hand --------------------------------------------------------------------------


def two_weights() -> nn.Module:
    """f(x) = x1 - 2 x2, under squared error."""
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, -2.0]]))
    return net


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("magnitude", [1, 2]),
        ("snip", [6, 4]),
        ("saliency", [6, 4]),
        ("grasp", [120, -80]),
        ("fisher", [18, 8]),
        ("synflow", [0.5, 1]),
    ],
)
def test_two_weights_by_hand(criterion, expected):
    # x = (3, 1), y = 0: f = 1, loss 1, g = 2 f x = (6, 2), H = 2 x x', H g = (120, 40).
    batch = (torch.tensor([[3.0, 1.0]]), torch.tensor([0.0]))
    found = scores(criterion, two_weights(), ["weight"], [batch], rng=rng())
    np.testing.assert_allclose(found["weight"], [expected], rtol=1e-6)


def test_fisher_squares_before_it_averages_and_snip_after():
    # Targets 0 and 2 about f = 1: gradients (6, 2) and (-6, -2) cancel, their squares don't.
    batch = (torch.tensor([[3.0, 1.0], [3.0, 1.0]]), torch.tensor([0.0, 2.0]))
    fisher = scores("fisher", two_weights(), ["weight"], [batch], rng=rng())
    snip = scores("snip", two_weights(), ["weight"], [batch], rng=rng())
    np.testing.assert_allclose(fisher["weight"], [[18, 8]], rtol=1e-6)
    np.testing.assert_allclose(snip["weight"], [[0, 0]], atol=1e-6)


def test_synflow_sums_the_paths_through_a_weight():
    # R = 5 (1 + 2) + 6 (3 + 4) = 57; the last weight carries 42, the most.
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    net.input_shape = (2,)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
        net[2].weight.copy_(torch.tensor([[5.0, -6.0]]))
    found = scores("synflow", net, ["0.weight", "2.weight"], rng=rng())
    np.testing.assert_allclose(found["0.weight"] * 42, [[5, 10], [18, 24]], rtol=1e-6)
    np.testing.assert_allclose(found["2.weight"] * 42, [[15, 42]], rtol=1e-6)


# -- against a second implementation --------------------------------------------------


def test_magnitude_is_the_absolute_weight():
    net = convnet()
    found = scores("magnitude", net, NAMES, rng=rng())
    for name in NAMES:
        assert np.array_equal(found[name], net.get_parameter(name).detach().abs().numpy())


def test_random_is_uniform_and_follows_its_generator():
    net = convnet()
    one, two = (scores("random", net, NAMES, rng=rng()) for _ in range(2))
    other = scores("random", net, NAMES, rng=np.random.default_rng(1))
    for name in NAMES:
        assert np.array_equal(one[name], two[name])
        assert not np.array_equal(one[name], other[name])
        assert 0 <= one[name].min() < 0.2 < 0.8 < one[name].max() < 1


def test_snip_is_weight_times_gradient_of_the_mean_loss(digits):
    net = convnet().eval()
    found = scores("snip", net, NAMES, halves(digits), rng=rng())
    loss(net, digits).backward()
    for name in NAMES:
        parameter = net.get_parameter(name)
        expected = (parameter.grad * parameter).abs().detach().numpy()
        np.testing.assert_allclose(found[name], expected, **CLOSE)


def test_snip_is_the_slope_of_the_loss_in_a_gate_on_the_weight(digits):
    """SNIP's own definition: |dL/dc| at c = 1 for the weights c w."""
    net = convnet().eval()
    gates = {name: torch.ones_like(w, requires_grad=True) for name, w in weights_of(net).items()}
    gated = {name: gates[name] * w for name, w in weights_of(net).items()}
    slopes = torch.autograd.grad(loss(net, digits, gated), list(gates.values()))
    found = scores("snip", net, NAMES, [digits], rng=rng())
    for name, slope in zip(NAMES, slopes, strict=True):
        np.testing.assert_allclose(found[name], slope.abs().numpy(), **CLOSE)


def test_grasp_is_weight_times_hessian_times_gradient(digits):
    net = convnet().eval()
    weights = tuple(weights_of(net).values())

    def mean_loss(*values: Tensor) -> Tensor:
        return loss(net, digits, dict(zip(NAMES, values, strict=True)))

    gradients = torch.autograd.functional.jacobian(mean_loss, weights)
    _, products = torch.autograd.functional.hvp(mean_loss, weights, gradients)
    found = scores("grasp", net, NAMES, halves(digits), rng=rng())
    for name, weight, product in zip(NAMES, weights, products, strict=True):
        expected = (weight * product).numpy()
        np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-6)
        assert (expected < 0).any()


def test_grasps_hessian_times_gradient_is_a_difference_of_gradients(digits):
    net = convnet(nn.Tanh).double().eval()
    weights, batch, step = weights_of(net), (digits[0].double(), digits[1]), 1e-5
    slope = grad(lambda values: loss(net, batch, values))
    flow = slope(weights)
    ahead = slope({name: w + step * flow[name] for name, w in weights.items()})
    behind = slope({name: w - step * flow[name] for name, w in weights.items()})
    found = scores("grasp", net, NAMES, [batch], rng=rng())
    for name, weight in weights.items():
        expected = weight * (ahead[name] - behind[name]) / (2 * step)
        expected = expected.detach().numpy()
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-8)


def test_fisher_is_the_mean_over_single_samples(digits):
    net = convnet().eval()
    weights = weights_of(net)

    def one(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(net, (x[None], y[None]), values)

    gradients = vmap(grad(one), in_dims=(None, 0, 0))(weights, *digits)
    found = scores("fisher", net, NAMES, halves(digits), rng=rng())
    for name, weight in weights.items():
        expected = weight**2 * (gradients[name] ** 2).mean(0) / 2
        np.testing.assert_allclose(found[name], expected.detach().numpy(), **CLOSE)


@pytest.mark.parametrize("criterion", sorted(NEEDS_DATA))
def test_how_data_is_cut_into_batches_does_not_matter(criterion, digits):
    whole = scores(criterion, convnet(), NAMES, [digits], rng=rng())
    parts = scores(criterion, convnet(), NAMES, halves(digits), rng=rng())
    for name in NAMES:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-3, atol=1e-6)


# -- SynFlow --------------------------------------------------------------------------


def deep(layers: int, gain: float) -> nn.Module:
    """A bias-free ReLU network of 6 units a layer."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(6, 6, bias=False), nn.ReLU()]
        nn.init.normal_(parts[-2].weight, std=gain)
    net = nn.Sequential(*parts[:-1])
    net.input_shape = (6,)
    return net


def test_synflow_is_conserved_from_layer_to_layer():
    net = deep(4, 0.5)
    found = scores("synflow", net, models.prunable(net), rng=rng())
    sums = [score.sum(dtype=float) for score in found.values()]
    assert sums == pytest.approx([sums[0]] * 4, rel=1e-5)


def test_synflow_is_conserved_at_every_hidden_unit():
    net = deep(3, 0.5)
    found = list(scores("synflow", net, models.prunable(net), rng=rng()).values())
    for before, after in pairwise(found):
        np.testing.assert_allclose(before.sum(1), after.sum(0), rtol=1e-5)


@pytest.mark.parametrize("gain", [1e-3, 100.0])
def test_synflow_of_a_deep_net_stays_within_single_precision(gain):
    """Sixty layers of gain 1e-3 or 100 put R at about 1e-150 or 1e150."""
    net = deep(60, gain)
    found = scores("synflow", net, models.prunable(net), rng=rng())
    assert max(s.max() for s in found.values()) == 1.0
    assert all((s > 0).all() for s in found.values())


def test_synflow_does_not_see_the_scale_of_a_layer():
    net, scaled = deep(4, 0.5), deep(4, 0.5)
    with torch.no_grad():
        scaled[2].weight.mul_(-1000.0)
    one, two = (scores("synflow", n, models.prunable(n), rng=rng()) for n in (net, scaled))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5)


def test_synflow_of_a_dead_net_is_zero():
    net = deep(3, 0.5)
    with torch.no_grad():
        net[2].weight.zero_()
    found = scores("synflow", net, models.prunable(net), rng=rng())
    assert not any(s.any() for s in found.values())


def test_synflow_passes_through_batchnorm_as_if_it_were_not_there():
    net = convnet()
    bare = nn.Sequential(net[0], nn.Identity(), *net[2:])
    net.input_shape = bare.input_shape = (1, 8, 8)
    one, two = (scores("synflow", n, NAMES, rng=rng()) for n in (net, bare))
    for name in NAMES:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5)


class _Branches(nn.Module):
    """Two linear branches that are added, one of them through BatchNorm."""

    input_shape = (2,)

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(2, 1, bias=False)
        self.normed = nn.Linear(2, 1, bias=False)
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.plain(x) + self.norm(self.normed(x))
        return total


def test_synflow_weighs_a_branch_with_batchnorm_like_one_without():
    net = _Branches()
    with torch.no_grad():
        net.plain.weight.copy_(torch.tensor([[1.0, -4.0]]))
        net.normed.weight.copy_(torch.tensor([[-3.0, 2.0]]))
        net.norm.running_var.fill_(100.0)
    found = scores("synflow", net, ["plain.weight", "normed.weight"], rng=rng())
    np.testing.assert_allclose(found["plain.weight"], [[0.25, 1]], rtol=1e-6)
    np.testing.assert_allclose(found["normed.weight"], [[0.75, 0.5]], rtol=1e-6)


def test_synflow_takes_the_shape_from_a_batch_and_ignores_its_values(digits):
    net = convnet()
    one = scores("synflow", net, NAMES, [digits], rng=rng())
    two = scores("synflow", net, NAMES, [(digits[0] * 0, digits[1])], rng=rng())
    assert all(np.array_equal(one[name], two[name]) for name in NAMES)
    with pytest.raises(MaskError, match="synflow needs the input's shape"):
        scores("synflow", net, NAMES, rng=rng())


@pytest.mark.parametrize("gain", [1.0, 1e-3])
def test_synflow_of_resnet18_is_finite_and_reaches_every_layer(gain):
    torch.manual_seed(0)
    net = models.build("resnet18", input_shape=(3, 16, 16), classes=10, width=0.125)
    net.input_shape = (3, 16, 16)
    with torch.no_grad():
        for name in models.prunable(net):
            net.get_parameter(name).mul_(gain)
    for name, score in scores("synflow", net, models.prunable(net), rng=rng()).items():
        assert np.isfinite(score).all(), name
        assert (score > 0).mean() > 0.99, name


# -- what every criterion does --------------------------------------------------------


def tensors_of(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from net.state_dict(keep_vars=True).items()
    yield from ((f"{n}.grad", p.grad) for n, p in net.named_parameters() if p.grad is not None)


def worn(dtype: torch.dtype) -> nn.Module:
    """A net in use: in training but for its BatchNorm, one layer frozen, one gradient there."""
    net = convnet().to(dtype).train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[5].weight.grad = torch.full_like(net[5].weight, 0.125)
    net.input_shape = (1, 8, 8)
    return net


@contextmanager
def unchanged(net: nn.Module) -> Iterator[None]:
    """Assert at the end that a model's tensors, flags and modes are the very same."""
    before = {name: (tensor, tensor.detach().clone()) for name, tensor in tensors_of(net)}
    flags = [p.requires_grad for p in net.parameters()]
    modes = [module.training for module in net.modules()]
    yield
    after = dict(tensors_of(net))
    assert list(after) == list(before)
    for name, (tensor, value) in before.items():
        assert after[name] is tensor, name
        assert after[name].dtype == value.dtype, name
        assert torch.equal(after[name], value), name
    assert [p.requires_grad for p in net.parameters()] == flags
    assert [module.training for module in net.modules()] == modes


def half_mask() -> Mask:
    random = np.random.default_rng(1)
    shapes = models.shapes(convnet(), NAMES)
    return Mask.from_arrays({name: random.random(shape) < 0.5 for name, shape in shapes.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_model_is_left_exactly_as_it_was(criterion, masked, dtype, digits):
    net = worn(dtype)
    with unchanged(net):
        data = [(digits[0].to(dtype), digits[1])]
        mask = half_mask() if masked else None
        found = scores(criterion, net, NAMES, data, rng=rng(), mask=mask)
    for name in NAMES:
        assert found[name].dtype == np.float32
        assert found[name].shape == tuple(net.get_parameter(name).shape)


@pytest.mark.parametrize(
    "mask",
    [Mask.full({"0.weight": (3, 1, 3, 3), "5.weight": (27, 10)}), Mask.full({"none": (3,)})],
    ids=["unlike", "unknown"],
)
def test_the_model_is_left_as_it_was_when_the_mask_does_not_fit(mask):
    net = worn(torch.float32)
    with unchanged(net), pytest.raises(MaskError):
        scores("magnitude", net, NAMES, rng=rng(), mask=mask)


@pytest.mark.parametrize("criterion", [*sorted(NEEDS_DATA), "synflow"])
def test_the_model_is_left_as_it_was_when_scoring_fails(criterion, digits):
    net = worn(torch.float32)
    net.input_shape = (1, 5, 5)
    batch = (digits[0][:, :, :5, :5], digits[1])
    with unchanged(net), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        scores(criterion, net, NAMES, [batch], rng=rng(), mask=half_mask())


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "random"])
def test_a_masked_model_is_scored_as_one_whose_weights_are_zero(criterion, digits):
    net, zeroed, mask = convnet(), convnet(), half_mask()
    mask.apply_(dict(zeroed.named_parameters()))
    one = scores(criterion, net, NAMES, [digits], rng=rng(), mask=mask)
    two = scores(criterion, zeroed, NAMES, [digits], rng=rng())
    for name in NAMES:
        assert np.array_equal(one[name], two[name])
        assert not one[name][~mask[name]].any()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scoring_is_in_evaluation_mode_whatever_the_models_mode(criterion, digits):
    train, evaluate = convnet().train(), convnet().eval()
    one = scores(criterion, train, NAMES, [digits], rng=rng())
    two = scores(criterion, evaluate, NAMES, [digits], rng=rng())
    assert all(np.array_equal(one[name], two[name]) for name in NAMES)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_come_in_the_order_of_the_names(criterion, digits):
    found = scores(criterion, convnet(), NAMES[::-1], [digits], rng=rng())
    straight = scores(criterion, convnet(), NAMES, [digits], rng=rng())
    assert list(found) == NAMES[::-1]
    if criterion != "random":
        assert all(np.allclose(found[name], straight[name]) for name in NAMES)


# -- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "near"), [("snipp", "snip"), ("magnitud", "magnitude"), ("syn-flow", "synflow")]
)
def test_an_unknown_criterion_proposes_the_nearest(wrong, near):
    with pytest.raises(UnknownNameError, match=f"'{wrong}'; did you mean '{near}'"):
        scores(wrong, convnet(), NAMES, rng=rng())


@pytest.mark.parametrize("criterion", sorted(NEEDS_DATA))
@pytest.mark.parametrize("samples", [None, 0], ids=["no batch", "no sample"])
def test_criteria_that_look_at_data_ask_for_some(criterion, samples, digits):
    batches = [] if samples is None else [(digits[0][:0], digits[1][:0])]
    with pytest.raises(MaskError, match=f"'{criterion}' looks at data"):
        scores(criterion, convnet(), NAMES, batches, rng=rng())


def test_a_parameter_that_is_not_there_is_named():
    with pytest.raises(MaskError, match=r"no parameter '7\.weight'"):
        scores("magnitude", convnet(), ["0.weight", "7.weight"], rng=rng())


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "random"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(criterion, value, digits):
    net = convnet()
    with torch.no_grad():
        net[5].weight[0, 0] = value
    with pytest.raises(MaskError, match=r"scores of '[05]\.weight' are not finite"):
        scores(criterion, net, NAMES, [digits], rng=rng())
