"""The ClientApp: what a client answers to each kind of message.

A reply is a pure function of (payload, plan, local data, own state, seed), so it is the
same on any grid, with any number of workers, and when it is asked for again.
"""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients import memory, selection
from clients.job import Job, Received, client_id, growth_arrays, read_job, receive, reply_arrays
from fedsparse import messages, seeds
from fedsparse.data import Dataset
from fedsparse.errors import DataError
from fedsparse.sparsity import Mask
from fedsparse.training import local, price
from fedsparse.training.backend import LocalModel

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
    model = job.backend.load(received.state, received.mask)
    kept = job.config.client.keep_optimizer
    trained = model.train(
        job.data.train,
        job.settings,
        rng=seeds.stream(job.seed, job.plan.stream, job.client, "batches"),
        lr=job.lr,
        proximal_mu=job.plan.proximal_mu,
        optimizer_state=memory.recall_optimizer(context, job, received.mask) if kept else None,
    )
    if kept:
        memory.remember_optimizer(context, trained.slots(), received.mask)
    content = RecordDict(
        {
            messages.ARRAYS: reply_arrays(model.kept(), job, received),
            messages.METRICS: train_metrics(job, received, trained),
        }
    )
    if job.plan.grow and received.mask is not None:
        content[messages.GROWTH] = largest_pruned_gradients(job, received.mask, model)
    return Message(content, reply_to=message)


def train_metrics(job: Job, received: Received, trained: local.Trained) -> MetricRecord:
    """Return the figures of a training reply: samples, loss, arithmetic, memory."""
    kept = None if received.mask is None else received.mask.layer_kept()
    samples = len(job.data.train.y)
    cost = price.price(job.cost, job.config.client, job.plan, samples, kept)
    return MetricRecord(
        {
            messages.EXAMPLES_KEY: samples,
            "loss": trained.loss,
            "accuracy": trained.accuracy,
            "train-flops": cost.flops,
            "memory-bytes": cost.memory.total,
        }
    )


def largest_pruned_gradients(job: Job, mask: Mask, model: LocalModel) -> ArrayRecord:
    """Return FedTiny's top-a gradients of the scheduled layers, after local training."""
    wanted = price.growth_samples(job.settings, job.plan, len(job.data.train.y))
    batch = draw(job, wanted, "growth")
    return growth_arrays(model.top_gradients(batch, job.plan.grow), mask)


def draw(job: Job, samples: int, purpose: str) -> Dataset:
    """Return a random part of the local training data."""
    data = job.data.train
    rng = seeds.stream(job.seed, job.plan.stream, job.client, purpose)
    chosen = rng.permutation(len(data.y))[: samples or len(data.y)]
    return Dataset(data.x[chosen], data.y[chosen], data.classes)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the received model on the client's own held-out samples."""
    job = read_job(message, context)
    received = receive(job, message, memory.recall_mask(context, job))
    if not len(job.data.test.y):
        raise DataError("this client has no test samples; raise data.client_test_fraction")
    result = job.backend.load(received.state, received.mask).evaluate(job.data.test)
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
    batch = draw(job, job.plan.samples, "score")
    return _answer(message, job, *selection.criterion_scores(job, received, batch))


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """Measure each candidate's BatchNorm statistics on local data (FedTiny, exchange 1)."""
    job = read_job(message, context)
    candidates = message.content.array_records.get(messages.CANDIDATES)
    if candidates is None:
        raise DataError(f"the message carries no candidates; send them as '{messages.CANDIDATES}'")
    memory.remember_candidates(context, candidates)
    batch = draw(job, job.plan.samples, "development")
    return _answer(message, job, *selection.candidate_statistics(job, candidates, batch))


@app.query("losses")
def losses(message: Message, context: Context) -> Message:
    """Test each candidate under the given statistics (FedTiny, exchange 2)."""
    job = read_job(message, context)
    records = message.content.array_records
    candidates = records.get(messages.CANDIDATES) or memory.take_candidates(context)
    if candidates is None:
        raise DataError("this client no longer holds the candidates; start the run again")
    values, flops = selection.candidate_losses(
        job,
        candidates,
        records.get(messages.ARRAYS),
        draw(job, job.plan.samples, "development"),
    )
    metrics = MetricRecord(
        {
            messages.EXAMPLES_KEY: len(job.data.train.y),
            "losses": values,
            messages.QUERY_FLOPS_KEY: flops,
        }
    )
    return Message(RecordDict({messages.METRICS: metrics}), reply_to=message)


def _answer(message: Message, job: Job, arrays: ArrayRecord, flops: float) -> Message:
    metrics = MetricRecord(
        {messages.EXAMPLES_KEY: len(job.data.train.y), messages.QUERY_FLOPS_KEY: flops}
    )
    content = RecordDict({messages.ARRAYS: arrays, messages.METRICS: metrics})
    return Message(content, reply_to=message)
