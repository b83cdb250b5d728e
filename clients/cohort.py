"""Many training messages answered at once: their clients train together on one device.

Each reply is what the app gives to that message alone, but for rounding; a message that
cannot be answered with others is answered by the app itself.
"""

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import torch
from flwr.app import Context, Message, RecordDict
from torch import nn

from clients import client_app, hostile, memory
from clients.growth import largest_pruned_gradients
from clients.job import Job, Received, read_job, receive, reply_arrays
from clients.unlearning import federaser
from fedsparse import messages as protocol
from fedsparse import seeds
from fedsparse.errors import ConfigError
from fedsparse.training import cohort
from fedsparse.training.cohort import Member, Result
from fedsparse.training.torch_model import TorchModel


@dataclass(frozen=True)
class _Asked:
    """A training message, read: nothing of its client has been changed yet."""

    message: Message
    context: Context
    job: Job
    received: Received
    member: Member


def train_many(
    messages: Sequence[Message], contexts: Sequence[Context]
) -> list[Message | Exception]:
    """Answer training messages, one a client; the replies stand in the messages' order.

    Clients train on `engine.device`, at most `engine.cohort` at once. Where the app would
    raise, the exception stands in the reply's place and reaches no other client.
    """
    replies: dict[int, Message | Exception] = {}
    groups: dict[nn.Module, dict[int, _Asked]] = {}
    for place, (message, context) in enumerate(zip(messages, contexts, strict=True)):
        asked = _read(message, context)
        if asked is not None:
            groups.setdefault(asked.job.model, {})[place] = asked
    for model, group in groups.items():
        replies.update(_train(model, group))
    return [
        replies[place] if place in replies else _alone(message, context)
        for place, (message, context) in enumerate(zip(messages, contexts, strict=True))
    ]


def _alone(message: Message, context: Context) -> Message | Exception:
    try:
        return client_app.app(message, context)
    except Exception as error:
        return error


def _read(message: Message, context: Context) -> _Asked | None:
    """Read a message; None for one that the app must answer, or refuse, by itself."""
    if message.metadata.message_type != protocol.TRAIN:
        return None
    try:
        job = read_job(message, context)
        if job.config.client.backend == "native" or job.plan.program or job.plan.part:
            return None
        received = receive(job, message, memory.recall_mask(context, job.shapes))
        member = _member(context, job, received)
    except Exception:
        return None
    return _Asked(message, context, job, received, member) if cohort.fits(member) else None


def _member(context: Context, job: Job, received: Received) -> Member:
    """Return a client as a member of a cohort, its random stream at the start."""
    kept = job.config.client.keep_optimizer
    return Member(
        state=received.state,
        data=job.data.train,
        settings=job.settings,
        rng=seeds.stream(job.seed, job.plan.stream, job.client, "batches"),
        lr=job.lr,
        mask=received.mask,
        proximal_mu=job.plan.proximal_mu,
        l1=job.plan.l1,
        optimizer_state=memory.recall_optimizer(context, job, received.mask) if kept else {},
    )


def _train(model: nn.Module, group: dict[int, _Asked]) -> dict[int, Message | Exception]:
    """Answer those of a group that could be trained together, by place."""
    first = next(iter(group.values()))
    engine = first.job.config.engine
    try:
        device = cohort.device_of(engine)
    except ConfigError as error:
        return dict.fromkeys(group, error)
    members = [asked.member for asked in group.values()]
    try:
        results = cohort.train(model, members, device, clients=engine.cohort)
    except Exception as error:
        _say(f"clients train one by one: {error}")
        return {}
    found: dict[int, Message | Exception] = {}
    for (place, asked), result in zip(group.items(), results, strict=True):
        found[place] = _reply(asked, result, device) if isinstance(result, Result) else result
    return found


def _reply(asked: _Asked, result: Result, device: torch.device) -> Message | Exception:
    """Return the app's answer to a message whose client has trained."""
    job, received = asked.job, asked.received
    try:
        content = RecordDict(
            {
                protocol.ARRAYS: reply_arrays(result.kept, received.mask, job, received),
                protocol.METRICS: client_app.train_metrics(job, received, result.trained),
            }
        )
        if job.config.run.keep_norms:
            told = federaser.norms(result.kept, received.mask, received)
            content.metric_records[protocol.METRICS].update(told)
        if job.plan.grow and received.mask is not None:
            module = job.model if device.type == "cpu" else _there(job.model, device)
            model = TorchModel(module, result.state, received.mask)
            with cohort.exact():
                found = largest_pruned_gradients(job, received.mask, model)
            content[protocol.GROWTH] = found
        hostile.turn(content, job, received, asked.context)
        memory.remember_mask(asked.context, received.mask)
        if job.config.client.keep_optimizer:
            memory.remember_optimizer(asked.context, result.trained.slots(), received.mask)
        return Message(content, reply_to=asked.message)
    except Exception as error:
        return error


@lru_cache(maxsize=2)
def _there(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a model's copy on a device, made once a worker."""
    return deepcopy(model).to(device)


@lru_cache(maxsize=16)
def _say(line: str) -> None:
    """Log a line once a worker."""
    logging.getLogger(__name__).warning(line)
