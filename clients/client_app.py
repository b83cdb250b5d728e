"""The ClientApp: what a client answers to each kind of message.

A reply is a pure function of (payload, plan, local data, own state, seed), so it is the
same on any grid, with any number of workers, and when it is asked for again.
"""

from typing import Literal

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients import memory, selection
from clients.job import Job, Received, client_id, growth_arrays, read_job, receive, reply_arrays
from fedsparse import messages, models, seeds
from fedsparse.data import Dataset
from fedsparse.errors import DataError
from fedsparse.training import growth, local

app = ClientApp()


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Answer with the partition id that names this client."""
    metrics = MetricRecord({messages.CLIENT_KEY: client_id(context)})
    return Message(RecordDict({messages.METRICS: metrics}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model on local data and return what it became."""
    job = read_job(message, context)
    received = receive(job, message, memory.recall_mask(context, job))
    memory.remember_mask(context, received.mask)
    models.load_state(job.model, received.state)
    kept = job.config.client.keep_optimizer
    trained = local.train(
        job.model,
        job.data.train,
        job.config.client,
        rng=seeds.stream(job.seed, job.plan.round, job.client, "batches"),
        mask=received.mask,
        lr=job.lr,
        proximal_mu=job.plan.proximal_mu,
        optimizer_state=memory.recall_optimizer(context, job, received.mask) if kept else None,
    )
    if kept:
        slots = local.optimizer_slots(trained.optimizer, job.model)
        memory.remember_optimizer(context, slots, received.mask)
    content = RecordDict(
        {
            messages.ARRAYS: reply_arrays(models.get_state(job.model), received, job.plan.values),
            messages.METRICS: train_metrics(job, received, trained),
        }
    )
    if job.plan.grow and received.mask is not None:
        content[messages.GROWTH] = largest_pruned_gradients(job, received)
    return Message(content, reply_to=message)


def train_metrics(job: Job, received: Received, trained: local.Trained) -> MetricRecord:
    """Return the figures of a training reply: samples, loss, arithmetic, memory."""
    settings = job.config.client
    adaptive = settings.optimizer == "adam"
    kind: Literal["sgd", "momentum", "adam"] = (
        "adam" if adaptive else "momentum" if settings.momentum else "sgd"
    )
    flops = job.cost.train_flops(trained.samples, received.mask)
    batch = min(settings.batch_size, len(job.data.train.y))
    if job.plan.grow:
        flops += job.cost.growth_flops(growth_samples(job), job.plan.grow, received.mask)
        batch = max(batch, growth_samples(job))
    memory_bytes = job.cost.training_memory(
        received.mask,
        optimizer=kind,
        batch_size=batch,
        buffer_entries=sum(job.plan.grow.values()),
    ).total
    return MetricRecord(
        {
            messages.EXAMPLES_KEY: len(job.data.train.y),
            "loss": trained.loss,
            "accuracy": trained.accuracy,
            "train-flops": float(flops),
            "memory-bytes": int(memory_bytes),
        }
    )


def growth_samples(job: Job) -> int:
    """Return how many samples the gradient of pruned weights is taken on."""
    return min(job.plan.samples or job.config.client.batch_size, len(job.data.train.y))


def largest_pruned_gradients(job: Job, received: Received) -> ArrayRecord:
    """Return FedTiny's top-a gradients of the scheduled layers, after local training."""
    assert received.mask is not None
    batch = draw(job, growth_samples(job), "growth")
    found = growth.top_gradients(job.model, received.mask, batch, job.plan.grow)
    return growth_arrays(found, received.mask)


def draw(job: Job, samples: int, purpose: str) -> Dataset:
    """Return a random part of the local training data."""
    data = job.data.train
    rng = seeds.stream(job.seed, job.plan.round, job.client, purpose)
    chosen = rng.permutation(len(data.y))[: samples or len(data.y)]
    return Dataset(data.x[chosen], data.y[chosen], data.classes)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the received model on the client's own held-out samples."""
    job = read_job(message, context)
    received = receive(job, message, memory.recall_mask(context, job))
    if not len(job.data.test.y):
        raise DataError("this client has no test samples; raise data.client_test_fraction")
    models.load_state(job.model, received.state)
    result = local.evaluate(job.model, job.data.test)
    metrics = MetricRecord(
        {
            messages.EXAMPLES_KEY: result.samples,
            "loss": result.loss,
            "accuracy": result.accuracy,
        }
    )
    return Message(RecordDict({messages.METRICS: metrics}), reply_to=message)


@app.query("score")
def score(message: Message, context: Context) -> Message:
    """Score every weight on one local batch (SSFL's mask, made by the clients)."""
    job = read_job(message, context)
    received = receive(job, message, None)
    arrays = selection.criterion_scores(job, received, draw(job, job.plan.samples, "score"))
    return _answer(message, job, arrays)


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """Measure each candidate's BatchNorm statistics on local data (FedTiny, exchange 1)."""
    job = read_job(message, context)
    candidates = message.content.array_records.get(messages.CANDIDATES)
    if candidates is None:
        raise DataError(f"the message carries no candidates; send them as '{messages.CANDIDATES}'")
    memory.remember_candidates(context, candidates)
    arrays = selection.candidate_statistics(
        job, candidates, draw(job, job.plan.samples, "development")
    )
    return _answer(message, job, arrays)


@app.query("losses")
def losses(message: Message, context: Context) -> Message:
    """Test each candidate under the given statistics (FedTiny, exchange 2)."""
    job = read_job(message, context)
    records = message.content.array_records
    candidates = records.get(messages.CANDIDATES) or memory.take_candidates(context)
    if candidates is None:
        raise DataError("this client no longer holds the candidates; start the run again")
    values = selection.candidate_losses(
        job,
        candidates,
        records.get(messages.ARRAYS),
        draw(job, job.plan.samples, "development"),
    )
    metrics = MetricRecord({messages.EXAMPLES_KEY: len(job.data.train.y), "losses": values})
    return Message(RecordDict({messages.METRICS: metrics}), reply_to=message)


def _answer(message: Message, job: Job, arrays: ArrayRecord) -> Message:
    metrics = MetricRecord({messages.EXAMPLES_KEY: len(job.data.train.y)})
    content = RecordDict({messages.ARRAYS: arrays, messages.METRICS: metrics})
    return Message(content, reply_to=message)
