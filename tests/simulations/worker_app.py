"""A ClientApp that misbehaves on request: what may happen to a worker."""

import os
import threading
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


EVERYBODY = -1


def chosen(message: Message, context: Context) -> bool:
    wanted = message.content["config"]["client"]
    return wanted in (EVERYBODY, context.node_config["partition-id"])


def answer(message: Message, **metrics: int) -> Message:
    return Message(RecordDict({"metrics": MetricRecord(dict(metrics))}), reply_to=message)


@app.query("exit_once")
def exit_once(message: Message, context: Context) -> Message:
    marker = Path(str(message.content["config"]["marker"]))
    if chosen(message, context) and not marker.exists():
        marker.touch()
        os._exit(1)
    return answer(message, pid=os.getpid())


@app.query("exit_always")
def exit_always(message: Message, context: Context) -> Message:
    context.state["seen"] = MetricRecord({"n": 1})
    if chosen(message, context):
        os._exit(1)
    return answer(message)


@app.query("sleep")
def sleep(message: Message, context: Context) -> Message:
    if chosen(message, context):
        time.sleep(600)
    return answer(message)


@app.query("leave")
def leave(message: Message, context: Context) -> Message:
    if chosen(message, context):
        raise SystemExit("enough")
    return answer(message)


@app.query("nothing")
def nothing(message: Message, context: Context) -> Message:
    return None  # type: ignore[return-value]


@app.query("unsendable")
def unsendable(message: Message, context: Context) -> Message:
    reply = answer(message)
    if chosen(message, context):
        reply.__dict__["lock"] = threading.Lock()
    return reply


@app.query("scribble")
def scribble(message: Message, context: Context) -> Message:
    """Answer with what came, then write into everything that was received."""
    before = int(message.content["config"].get("calls", 0))
    sizes = len(message.content.array_records.get("arrays", {}))
    message.content["config"]["calls"] = before + 1
    if "arrays" in message.content.array_records:
        message.content["arrays"].clear()
    return answer(message, calls=before, arrays=sizes)


@app.query("remember_then_fail")
def remember_then_fail(message: Message, context: Context) -> Message:
    """Grow a list and an array that are kept; fail after touching them when told to."""
    if "kept" not in context.state:
        context.state["kept"] = MetricRecord({"calls": [1]})
        context.state["arrays"] = ArrayRecord([np.arange(3, dtype=np.float32)])
        return answer(message)
    context.state["kept"]["calls"].append(2)
    raise ValueError("two\nlines")


@app.query("threads")
def threads(message: Message, context: Context) -> Message:
    return answer(message, threads=int(os.environ.get("OMP_NUM_THREADS", "0")))


@app.train()
def train(message: Message, context: Context) -> Message:
    return answer(message)
