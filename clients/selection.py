"""The client's part in choosing a mask: scores, BatchNorm statistics, candidate losses.

FedTiny's adaptive BatchNorm selection (ICDCS 2023, section "adaptive BatchNorm
selection") takes two exchanges; SSFL's scoring takes one. Each answer comes with the FLOPs
that it took.
"""

from collections.abc import Iterator

from flwr.app import ArrayRecord

from clients.job import Job, Received
from fedsparse import seeds, wire
from fedsparse.data import Dataset
from fedsparse.errors import DataError


def criterion_scores(job: Job, received: Received, batch: Dataset) -> tuple[ArrayRecord, float]:
    """Return the criterion's score of every prunable weight on one batch: one training step."""
    from fedsparse import models
    from fedsparse.sparsity.criteria import scores
    from fedsparse.training import local

    models.load_state(job.model, received.state)
    found = scores(
        job.plan.criterion,
        job.model,
        models.prunable(job.model),
        [local.tensors(batch)],
        rng=seeds.stream(job.seed, job.plan.round, job.client, "scores"),
    )
    return wire.pack(wire.encode(found)), job.cost.train_flops(len(batch), received.mask)


def candidate_statistics(
    job: Job, candidates: ArrayRecord, batch: Dataset
) -> tuple[ArrayRecord, float]:
    """Return the BatchNorm statistics of each candidate on local data: forward only."""
    if len(batch.y) < 2:
        raise DataError("BatchNorm statistics need two samples; raise data.min_per_client")
    measured, flops = {}, 0.0
    for key, candidate in _decoded(job, candidates):
        model = job.backend.load(candidate.state, candidate.mask)
        measured[key] = wire.encode(model.measure(batch))
        flops += len(batch) * job.cost.forward_flops(candidate.mask)
    return wire.pack_many(measured), flops


def candidate_losses(
    job: Job, candidates: ArrayRecord, statistics: ArrayRecord | None, batch: Dataset
) -> tuple[list[float], float]:
    """Return each candidate's loss in evaluation mode, under global statistics if given."""
    given = wire.unpack_many(statistics) if statistics is not None else {}
    losses, flops = [], 0.0
    for key, candidate in _decoded(job, candidates):
        model = job.backend.load(candidate.state, candidate.mask)
        if key in given:
            told = wire.decode(given[key], wire.Schema.of(model.statistics())).state
            model = job.backend.load({**candidate.state, **told}, candidate.mask)
        losses.append(model.evaluate(batch).loss)
        flops += len(batch) * job.cost.forward_flops(candidate.mask)
    return losses, flops


def _decoded(job: Job, candidates: ArrayRecord) -> Iterator[tuple[str, wire.Decoded]]:
    for key, payload in wire.unpack_many(candidates).items():
        yield key, wire.decode(payload, job.schema)
