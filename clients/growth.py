"""FedTiny's growth at a client: the largest gradients of pruned weights, after training."""

from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord

from clients.job import Job
from fedsparse import wire
from fedsparse.sparsity import Mask, State
from fedsparse.training import price
from fedsparse.training.backend import LocalModel


def largest_pruned_gradients(job: Job, mask: Mask, model: LocalModel) -> ArrayRecord:
    """Return FedTiny's top-a gradients of the scheduled layers, after local training."""
    wanted = price.growth_samples(job.settings, job.plan, len(job.data.train.y))
    batch = job.draw(wanted, "growth")
    return growth_arrays(model.top_gradients(batch, job.plan.grow), mask)


def growth_arrays(found: Mapping[str, tuple[np.ndarray, np.ndarray]], mask: Mask) -> ArrayRecord:
    """Encode the largest pruned gradients as a sparse payload over the grown layers.

    The layers stand in the mask's order, whichever order they were asked for in.
    """
    state: State = {}
    bits = {}
    for name in (name for name in mask.names if name in found):
        index, value = found[name]
        dense = np.zeros(mask.shapes[name], np.float32)
        dense.reshape(-1)[index] = value
        chosen = np.zeros(mask.shapes[name], bool)
        chosen.reshape(-1)[index] = True
        state[name], bits[name] = dense, chosen
    return wire.pack(wire.encode(state, mask=Mask.from_arrays(bits)))
