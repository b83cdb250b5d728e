"""The job on pfl-research: FederatedAveraging over its SimulatedBackend.

    python -m benchmarks.rivals.pfl_research --job FOLDER --model tiny
    torchrun --standalone --nproc-per-node=2 -m benchmarks.rivals.pfl_research --job FOLDER

Users' samples are tensors in memory, its documentation's fastest form. Under torchrun each process
trains its share of a cohort. It evaluates the users of its first iteration before and after they
train: that falls into the warm-up round.
"""

import os

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from benchmarks.rivals import job, models, plain_torch


class Classifier(nn.Module):
    """A model with the loss and the metrics that pfl asks for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.inner(x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        self.train()
        return nn.functional.cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        """Return the accuracy of a batch."""
        self.eval()
        return {"accuracy": Weighted(int((self(x).argmax(1) == y).sum()), len(y))}


class RoundDone(TrainingProcessCallback):
    """Notes the end of each round."""

    def __init__(self, watch: job.Stopwatch, work: job.Job) -> None:
        self.watch, self.work = watch, work

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Read the clock after an iteration."""
        self.watch.lap(self.work.samples(central_iteration))
        return False, Metrics()


def main() -> None:
    """Run the job and print its line."""
    given = job.arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    work = job.read(given.job)
    x, y = torch.from_numpy(work.x), torch.from_numpy(work.y)
    users = [(x[torch.from_numpy(part)], y[torch.from_numpy(part)]) for part in work.parts]
    clients = iter(work.cohorts.reshape(-1).tolist())
    data = FederatedDataset.from_slices(users, lambda: next(clients))
    module = Classifier(models.MODELS[given.model]())
    model = PyTorchModel(
        module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), 1.0),
    )
    watch = job.Stopwatch()
    watch.start()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=given.rounds + 1,
            evaluation_frequency=10**9,
            train_cohort_size=work.cohorts.shape[1],
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(data, None, postprocessors=[WeightByDatapoints()]),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=job.LR, local_batch_size=job.BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=512),
        callbacks=[RoundDone(watch, work)],
        send_metrics_to_platform=False,
    )
    if int(os.environ.get("RANK", "0")):
        return
    watch.report(
        "pfl-research",
        given.model,
        ("pfl", "torch", "numpy"),
        parameters=models.parameters(module),
        processes=int(os.environ.get("WORLD_SIZE", "1")),
        threads=1,
        accuracy=plain_torch.accuracy(module, work),
    )


if __name__ == "__main__":
    main()
