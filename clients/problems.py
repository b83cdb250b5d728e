"""Training for another problem than the mean loss over all weights, as personal methods pose.

It takes torch's path whatever the run's backend is: the kernels know the plain problem alone.
"""

from clients.program import Visit
from fedsparse import models
from fedsparse.sparsity import State
from fedsparse.training import local
from fedsparse.training.local import Problem, Trained


def solve(
    visit: Visit,
    state: State,
    problem: Problem,
    *,
    purpose: str,
    epochs: int | None = None,
    proximal_mu: float = 0.0,
) -> tuple[State, Trained]:
    """Train a dense model on the client's data by the run's settings, and return it.

    `purpose` names the random stream of the batches. Raises as `local.train` does.
    """
    job = visit.job
    models.load_state(job.model, state)
    trained = local.train(
        job.model,
        job.data.train,
        job.settings,
        rng=visit.stream(purpose),
        lr=job.lr,
        epochs=epochs,
        proximal_mu=proximal_mu,
        problem=problem,
    )
    return models.get_state(job.model), trained
