"""A ClientApp as other people write them: plain arrays, Flower's own keys, nothing of ours."""

import os
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Move every weight towards the client's number."""
    client = int(context.node_config["partition-id"])
    arrays = [a + 0.1 * (client - a) for a in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 10 + client, "loss": float(np.abs(arrays[0]).sum())})
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Return a loss."""
    loss = float(np.square(message.content["arrays"].to_numpy_ndarrays()[0]).mean())
    metrics = MetricRecord({"num-examples": 5, "loss": loss})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@app.query("count")
def count(message: Message, context: Context) -> Message:
    """Count calls in the state that outlives a message."""
    before = context.state.metric_records.get("calls", MetricRecord({"n": 0}))
    context.state["calls"] = MetricRecord({"n": int(before["n"]) + 1})
    reply = RecordDict({"metrics": MetricRecord({"n": int(before["n"]) + 1, "pid": os.getpid()})})
    return Message(reply, reply_to=message)


@app.query("remember")
def remember(message: Message, context: Context) -> Message:
    """Keep an array of the number that came, in memory of the client's own."""
    number = int(str(message.content["config"]["number"]))
    context.state["mask"] = ArrayRecord([np.full(1000, number, np.uint8)])
    return Message(RecordDict(), reply_to=message)


@app.query("raise")
def raise_(message: Message, context: Context) -> Message:
    """Fail at odd clients."""
    if int(context.node_config["partition-id"]) % 2:
        raise ValueError("an odd client")
    return Message(RecordDict(), reply_to=message)


@app.query("die")
def die(message: Message, context: Context) -> Message:
    """Kill the worker: client 1 always, client 2 once (a marker file says that it did)."""
    client = int(context.node_config["partition-id"])
    marker = Path(str(message.content["config"]["marker"]))
    if client == 1 or (client == 2 and not marker.exists()):
        marker.touch()
        os._exit(1)
    return Message(RecordDict(), reply_to=message)
