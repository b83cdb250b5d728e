"""FedAvg as a PyTorch user writes it without any library: the line that ratios refer to.

    python -m benchmarks.rivals.plain_torch --job FOLDER --model tiny

One process, one thread, `torch.optim.SGD`, batches by index, states averaged.
"""

import torch
from torch import Tensor, nn

from benchmarks.rivals import job, models


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Train one epoch on one client's samples, in place."""
    optimizer = torch.optim.SGD(model.parameters(), lr=job.LR)
    model.train()
    for index in torch.randperm(len(y)).split(job.BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, work: job.Job) -> float:
    """Return the accuracy on the test samples."""
    model.eval()
    found = model(torch.from_numpy(work.test_x)).argmax(1)
    return float((found == torch.from_numpy(work.test_y)).float().mean())


def main() -> None:
    """Run the job and print its line."""
    given = job.arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    work = job.read(given.job)
    model = models.MODELS[given.model]()
    x, y = torch.from_numpy(work.x), torch.from_numpy(work.y)
    parts = [torch.from_numpy(part) for part in work.parts]
    watch = job.Stopwatch()
    watch.start()
    for number in range(given.rounds + 1):
        start = {name: value.clone() for name, value in model.state_dict().items()}
        mean = {name: torch.zeros_like(value) for name, value in start.items()}
        for client in work.cohorts[number]:
            model.load_state_dict(start)
            train(model, x[parts[client]], y[parts[client]])
            share = len(parts[client]) / work.samples(number)
            for name, value in model.state_dict().items():
                # BatchNorm's count of batches is no float; nobody reads it.
                mean[name] += (share * value).to(value.dtype)
        model.load_state_dict(mean)
        watch.lap(work.samples(number))
    watch.report(
        "plain PyTorch loop",
        given.model,
        ("torch", "numpy"),
        parameters=models.parameters(model),
        processes=1,
        threads=1,
        accuracy=accuracy(model, work),
    )


if __name__ == "__main__":
    main()
