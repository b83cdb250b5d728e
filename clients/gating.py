"""pFedGate at a client (Chen et al., ICML 2023): a gate that picks blocks of the shared model.

The gate is the client's own and never leaves it. For each batch it says which blocks of the
received model are used, within the client's budget, and by how much they are weighed; gate and
model learn together (`gated_model.py`). What goes back are the blocks that were used in some batch,
and which ones the client would like next. The personal model is the received one under the gate's
mean over the client's data: a static mask and static weights.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.gate_layer import Gate
from clients.gated_model import GATE, Gated, train
from clients.job import Job
from clients.program import Outcome, Personal, Program, Visit
from fedsparse import messages, models, wire
from fedsparse.sparsity import Mask, State
from fedsparse.sparsity.blocks import Blocks, Counts
from fedsparse.sparsity.cost import gate_entries, gate_flops
from fedsparse.training import batchnorm, local
from fedsparse.training.price import Price, price


class GatedProgram(Program):
    """Train a gate and the shared model; send the blocks that were used."""

    def mask_shapes(self, job: Job) -> Mapping[str, tuple[int, ...]]:
        """Return every parameter: biases and norms lie in blocks, too."""
        return {name: tuple(p.shape) for name, p in job.model.named_parameters()}

    def train(self, visit: Visit) -> Outcome:
        """Train for the local epochs, and return the used blocks and the ones wished for next."""
        own = self.open(visit)
        epochs = visit.job.settings.local_epochs
        trained, used, mean_used = train(
            own, visit.job.data.train, model_lr=visit.job.lr, epochs=epochs
        )
        own.keep()
        mask = own.blocks.mask(used)
        wish = self.wish(own)
        record = wire.pack(own.blocks.to_bytes(wish))
        return Outcome(
            mask.take(models.get_state(visit.job.model)),
            trained,
            mask,
            {messages.USED: wire.pack(own.blocks.to_bytes(used)), messages.WISH: record},
            self.price(own, used, mean_used, epochs),
            held=own.blocks.mask(wish),
            figures=self.shares(own, mean_used),
            told=True,
        )

    def shares(self, own: Gated, mean_used: NDArray[np.float64]) -> dict[str, float | list[float]]:
        """Return the fractions that batches used on average: of the model, and of its layers."""
        sizes, places = own.blocks.sizes, own.blocks.places
        layers = [places[name] for name in own.visit.job.shapes]
        return {
            "density": float(mean_used.sum() / own.blocks.entries),
            "layer-density": [float(mean_used[p].sum() / sizes[p].sum()) for p in layers],
        }

    def open(self, visit: Visit) -> Gated:
        """Return the client's gate, as it was or fresh, beside the received model."""
        job, options = visit.job, visit.settings
        blocks = Blocks.of(job.model, int(options["blocks"]))
        heads = int(options["heads"])
        shape = job.data.train.x.shape[1:]
        with torch.random.fork_rng(devices=[]):
            rng = visit.constant_stream("gate")
            torch.manual_seed(int(rng.integers(2**63 - 1)))
            gate = Gate(shape, len(blocks), heads, float(options["gate_start"]))
        fresh = models.get_state(gate)
        kept = visit.recall(GATE, {name: value.shape for name, value in fresh.items()})
        models.load_state(gate, kept or fresh)
        mask = visit.received.mask
        available = blocks.sizes if mask is None else blocks.counts(mask)
        state = visit.received.state
        return Gated(visit, blocks, available, state, gate, kept is None, options)

    def wish(self, own: Gated) -> Counts:
        """Return the blocks that this client's gate may need next: its budget's and some more."""
        x, _ = local.tensors(own.visit.job.data.train)
        more = min(1.0, own.budget * (1 + float(own.options["spare"])))
        return own.choose(own.over_all(x)[0], more, None)

    def price(self, own: Gated, used: Counts, mean_used: NDArray[np.float64], epochs: int) -> Price:
        """Return what training costs: the arithmetic is what batches used on average."""
        job, names = own.visit.job, list(own.visit.job.shapes)
        samples = len(job.data.train.y)
        steps = 2 if own.options["optimise"] == "alternating" else 1
        shape, heads = job.data.train.x.shape[1:], int(own.options["heads"])
        unused = int((own.available - used).sum())
        gate = 2 * gate_entries(shape, len(own.blocks), heads)
        plan = replace(job.plan, held=gate + unused, work=1.0)
        kept = own.blocks.layer_kept(used, names)
        cost = price(job.cost, job.config.client, plan, samples, kept)
        mean = {name: float(mean_used[own.blocks.places[name]].sum()) for name in names}
        flops = job.cost.flops_of(mean) + gate_flops(shape, len(own.blocks), heads)
        return Price(3 * samples * epochs * steps * flops, cost.memory)

    def personal(self, visit: Visit) -> Personal:
        """Return the received model under the gate's mean over the client's data.

        A client that has no gate yet, such as one that never trained, first trains one for
        `novel_epochs`, the model as it is. Then gate and model train for `finetune_epochs`.
        """
        own, flops = self.open(visit), 0.0
        data = visit.job.data.train
        alone = int(own.options["novel_epochs"]) if own.fresh else 0
        for epochs, lr in ((alone, 0.0), (int(own.options["finetune_epochs"]), visit.job.lr)):
            if epochs:
                _, used, mean_used = train(own, data, model_lr=lr, epochs=epochs)
                flops += self.price(own, used, mean_used, epochs).flops
        x, _ = local.tensors(data)
        importance, weight = own.over_all(x)
        used = own.choose(importance, own.budget, own.available)
        return Personal(*compiled(own, importance, weight, used, x), flops)


def compiled(
    own: Gated, importance: Tensor, weight: Tensor, used: Counts, x: Tensor
) -> tuple[State, Mask]:
    """Return a static model and its mask: blocks weighed, BatchNorm measured on the client's data.

    The shared statistics are those of models under other clients' gates.
    """
    model = own.visit.job.model
    own.store(own.flat * own.spread(own.factor(importance, weight, used), used))
    if len(x) > 1 and batchnorm.norms(model):
        batchnorm.measure(model, x[:1024])
    return models.get_state(model), own.weights_mask(used)
