"""The ClientApp: what a client answers to each kind of message.

A reply is a pure function of (payload, plan, local data, own state, seed), so it is the
same on any grid, with any number of workers, and when it is asked for again.
"""

from contextlib import suppress

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from clients import hostile, memory, promise, secure, selection
from clients.job import Job, Received, client_id, read_job, receive, reply_arrays
from clients.kept_state import keeping
from clients.program import Visit, program_of
from clients.unlearning import federaser
from fedsparse import messages
from fedsparse.data import node
from fedsparse.errors import ConfigError, DataError, MissingTorchError
from fedsparse.kernels import library
from fedsparse.training import price
from fedsparse.training.results import Trained


def name_what_needs_torch(message: Message, context: Context, answer: ClientAppCallable) -> Message:
    """Answer; raises MissingTorchError where what is asked takes torch, which is not here."""
    try:
        return answer(message, context)
    except (ImportError, ConfigError) as error:
        if not _is_torch(error) and not _is_torch(error.__cause__):
            raise
        raise MissingTorchError(_asked(message)) from None


def _is_torch(error: BaseException | None) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name == "torch"


def _asked(message: Message) -> str:
    """Return what a message asks for that takes torch, in words."""
    kind = message.metadata.message_type
    record = message.content.config_records.get(messages.CONFIG, ConfigRecord())
    config, plan = messages.read_config(record)
    if plan.program:
        return f"'{kind}' by the program '{plan.program}'"
    for key, native in (("backend", ("auto", "native")), ("precision", ("f32",))):
        if (value := getattr(config.client, key)) not in native:
            return f"'{kind}' with client.{key} = '{value}'"
    if messages.MODEL_KEY in record:
        return f"'{kind}'"
    try:
        library.load()
    except library.Unavailable as error:
        return f"'{kind}' without native kernels ({error})"
    return f"'{kind}' with model.name = '{config.model.name}'"


app = ClientApp(mods=[promise.keep_quiet, name_what_needs_torch, keeping])


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Answer with the partition id that names this client, and what its node is like.

    That is whether it trains without torch, whether its state outlives a restart and, where the
    run's configuration comes with the question, a schema of the data of its own.
    """
    content = RecordDict()
    metrics = MetricRecord({messages.CLIENT_KEY: client_id(context)})
    content[messages.METRICS] = metrics
    with suppress(library.Unavailable):
        library.load()
        metrics[messages.READS_MODEL_KEY] = 1
    if messages.STATE_PATH_KEY in context.node_config:
        metrics[messages.KEEPS_STATE_KEY] = 1
    asked = message.content.config_records.get(messages.CONFIG)
    if asked is not None:
        told = node.told(messages.read_config(asked)[0], context.node_config)
        if told is not None:
            content[messages.DATA] = promise.told(context, told)
    return Message(content, reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model on local data and return what it became, as the plan says."""
    job = read_job(message, context)
    program = program_of(job.plan.program)
    received = receive(job, message, memory.recall_mask(context, program.mask_shapes(job)))
    memory.remember_mask(context, received.mask)
    outcome = program.train(Visit(job, received, context, message.content.array_records))
    if outcome.held is not None or outcome.mask is not received.mask:
        memory.remember_mask(context, outcome.held or outcome.mask)
    content = RecordDict(
        {
            messages.ARRAYS: reply_arrays(
                outcome.kept, outcome.mask, job, received, told=outcome.told
            ),
            messages.METRICS: train_metrics(job, received, outcome.trained, outcome.price),
        }
    )
    content.metric_records[messages.METRICS].update(outcome.figures)
    if job.config.run.keep_norms:
        told = federaser.norms(outcome.kept, outcome.mask, received)
        content.metric_records[messages.METRICS].update(told)
    content.update(outcome.records)
    hostile.turn(content, job, received, context)
    secure.mask_reply(content, job, outcome, message, context)
    return Message(content, reply_to=message)


def train_metrics(
    job: Job, received: Received, trained: Trained, cost: price.Price | None = None
) -> MetricRecord:
    """Return the figures of a training reply: samples, loss, arithmetic, memory.

    The last two are what the plan costs, unless `cost` says otherwise.
    """
    samples = len(job.data.train.y)
    if cost is None:
        kept = None if received.mask is None else received.mask.layer_kept()
        cost = price.price(job.cost, job.config.client, job.plan, samples, kept)
    return MetricRecord(
        {
            messages.EXAMPLES_KEY: samples,
            messages.ROUND_KEY: job.plan.round,
            "loss": trained.loss,
            "accuracy": trained.accuracy,
            "train-flops": cost.flops,
            "memory-bytes": cost.memory.total,
        }
    )


@app.query("secure_keys")
def secure_keys(message: Message, context: Context) -> Message:
    """Tell the public keys of a round of secure aggregation."""
    return _arrays(message, secure.publish(message, context))


@app.query("secure_shares")
def secure_shares(message: Message, context: Context) -> Message:
    """Deal shares of this client's secrets of the round."""
    return _arrays(message, secure.share(message, context, client_id(context)))


@app.query("secure_unmask")
def secure_unmask(message: Message, context: Context) -> Message:
    """Tell shares of other clients' secrets, so that the sum can be unmasked."""
    return _arrays(message, secure.unmask(message, context, client_id(context)))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the model that this client would use on its own held-out samples."""
    job = read_job(message, context)
    program = program_of(job.plan.program)
    received = receive(job, message, memory.recall_mask(context, program.mask_shapes(job)))
    if not len(job.data.test.y):
        raise DataError("this client has no test samples; raise data.client_test_fraction")
    tested = program.test(Visit(job, received, context))
    metrics = MetricRecord(
        {
            messages.EXAMPLES_KEY: tested.result.samples,
            "loss": tested.result.loss,
            "accuracy": tested.result.accuracy,
        }
    )
    if tested.flops:
        metrics["train-flops"] = tested.flops
    return Message(RecordDict({messages.METRICS: metrics}), reply_to=message)


@app.query("score")
def score(message: Message, context: Context) -> Message:
    """Score every weight on one local batch (SSFL's mask, made by the clients)."""
    job = read_job(message, context)
    received = receive(job, message, None)
    batch = job.draw(job.plan.samples, "score")
    return _answer(message, job, *selection.criterion_scores(job, received, batch))


@app.query("statistics")
def statistics(message: Message, context: Context) -> Message:
    """Measure each candidate's BatchNorm statistics on local data (FedTiny, exchange 1)."""
    job = read_job(message, context)
    candidates = message.content.array_records.get(messages.CANDIDATES)
    if candidates is None:
        raise DataError(f"the message carries no candidates; send them as '{messages.CANDIDATES}'")
    memory.remember_candidates(context, candidates)
    batch = job.draw(job.plan.samples, "development")
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
        job.draw(job.plan.samples, "development"),
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


def _arrays(message: Message, arrays: ArrayRecord) -> Message:
    return Message(RecordDict({messages.ARRAYS: arrays}), reply_to=message)
