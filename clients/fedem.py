"""FedEM's client: how much of each component it is, and the components trained by that.

A round is one step of EM: responsibilities of the received components for each sample, mixture
weights from those, and each component trained on its samples as far as it is responsible.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from clients.problems import solve
from clients.program import Outcome, Personal, Program, Tested, Visit
from fedsparse import models
from fedsparse.data import Dataset
from fedsparse.errors import FedSparseError
from fedsparse.models.parts import copied, copy_of
from fedsparse.sparsity import State
from fedsparse.training import local
from fedsparse.training.local import Evaluated, Problem, Trained

MIXTURE = "mixture"
WEIGHTS = "weights"
NEWCOMER_STEPS = 10
"""EM steps in which a client that never trained finds its mixture; they cost one test."""

TINY = float(np.finfo(np.float64).tiny)
"""The least probability of a class: a component that is certain of another has a finite loss."""

Figures = NDArray[np.float64]


class FedEM(Program):
    """Train all components, each on the samples that it is responsible for."""

    def train(self, visit: Visit) -> Outcome:
        """Send the trained components; keep the mixture weights."""
        components = components_of(visit)
        before = recall_mixture(visit)
        shares = responsibilities(
            losses(visit, components), uniform(visit) if before is None else before
        )
        weights = mixture(shares)
        keep_mixture(visit, weights)
        sent: State = {}
        trained = []
        for number, state in enumerate(components):
            problem = Problem(weights=sample_weights(shares, number))
            found, figures = solve(visit, state, problem, purpose="batches")
            sent |= {copied(number, name): value for name, value in found.items()}
            trained.append(figures)
        return Outcome(sent, together(trained, weights))

    def personal(self, visit: Visit) -> Personal:
        """Raise FedSparseError: this client uses several models at once."""
        raise FedSparseError(
            "a client of strategy 'fedem' has no single model: it mixes the outputs of several; "
            "choose another strategy, such as ditto"
        )

    def test(self, visit: Visit) -> Tested:
        """Test the mixture of the components' outputs on the client's held-out samples."""
        components, weights, flops = components_of(visit), recall_mixture(visit), 0.0
        if weights is None:
            weights, found = uniform(visit), losses(visit, components)
            for _ in range(NEWCOMER_STEPS):
                weights = mixture(responsibilities(found, weights))
            flops = found.size * float(visit.job.cost.forward_flops())
        return Tested(evaluate(visit, components, weights), flops)


def responsibilities(losses: Figures, weights: Figures) -> Figures:
    """q_i(m) ~ pi_m exp(-l(h_m(x_i), y_i)), summing to 1 over m (FedEM, E-step)."""
    with np.errstate(divide="ignore"):  # of a component that has lost all weight
        scores = np.log(weights) - losses
    likely = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(likely / likely.sum(1, keepdims=True), np.float64)


def mixture(shares: Figures) -> Figures:
    """pi_m = 1/n sum_i q_i(m) (FedEM, M-step)."""
    return np.asarray(shares.mean(0), np.float64)


def sample_weights(shares: Figures, number: int) -> NDArray[np.float32]:
    """Return what each sample's loss counts for a component: M q_i(m).

    The factor M, which the paper leaves to the learning rate, lets a component that is as
    responsible as the others learn as fast as a single model.
    """
    return np.asarray(shares.shape[1] * shares[:, number], np.float32)


def together(trained: Sequence[Trained], weights: Figures) -> Trained:
    """Return the figures of all components: sum_m of losses by q(m), accuracies by pi_m."""
    loss = sum(figures.loss for figures in trained) / len(trained)
    accuracy = float(np.dot(weights, [figures.accuracy for figures in trained]))
    return Trained(loss, accuracy, trained[0].samples, dict)


def components_of(visit: Visit) -> list[State]:
    """Return the received components."""
    return [copy_of(number, visit.received.state) for number in range(count_of(visit))]


@torch.no_grad()
def outputs(visit: Visit, state: State, data: Dataset) -> torch.Tensor:
    """Return one component's outputs in evaluation mode: samples by classes."""
    model = visit.job.model
    models.load_state(model, state)
    x, _ = local.tensors(data)
    model.eval()
    parts = x.split(local.EVALUATION_BATCH)  # type: ignore[no-untyped-call]
    return torch.cat([model(part) for part in parts])


def losses(visit: Visit, components: Sequence[State]) -> Figures:
    """Return the loss of each training sample under each component: samples by components."""
    data = visit.job.data.train
    loss, (_, y) = local.loss_of(data.classes, "none"), local.tensors(data)
    found = [loss(outputs(visit, state, data), y) for state in components]
    return torch.stack(found, 1).double().numpy()


def evaluate(visit: Visit, components: Sequence[State], weights: Figures) -> Evaluated:
    """Test sum_m pi_m p_m(y | x), of a regression sum_m pi_m h_m(x), on held-out samples."""
    data = visit.job.data.test
    _, y = local.tensors(data)
    found = torch.stack([outputs(visit, state, data) for state in components]).double()
    if data.classes == 1:
        mixed = torch.tensordot(torch.from_numpy(weights), found, 1)
        loss = float(local.loss_of(1)(mixed.float(), y))
        return Evaluated(loss, local.r_squared(loss, y), len(y))
    mixed = torch.tensordot(torch.from_numpy(weights), found.softmax(2), 1)
    loss = float(-mixed[torch.arange(len(y)), y].clamp_min(TINY).log().mean())
    return Evaluated(loss, float((mixed.argmax(1) == y).double().mean()), len(y))


def keep_mixture(visit: Visit, weights: Figures) -> None:
    """Keep the client's mixture weights until its next round."""
    visit.keep(MIXTURE, {WEIGHTS: weights.astype(np.float32)})


def recall_mixture(visit: Visit) -> Figures | None:
    """Return the kept mixture weights, or None."""
    found = visit.recall(MIXTURE, {WEIGHTS: (count_of(visit),)})
    return None if found is None else found[WEIGHTS].astype(np.float64)


def uniform(visit: Visit) -> Figures:
    """Return the mixture weights of a client that knows nothing yet."""
    return np.full(count_of(visit), 1 / count_of(visit))


def count_of(visit: Visit) -> int:
    """Return M, the number of components."""
    return int(visit.settings["components"])
