"""The ClientApp of `flower_engine.py`, in a module of its own as in Flower's quickstarts.

An app defined in `__main__` would be pickled by value with every task and read its data each
time. A worker keeps model and data between the clients that it serves, and trains in one thread.
"""

from functools import lru_cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from benchmarks.rivals import job, models, plain_torch

app = ClientApp()


@lru_cache(maxsize=1)
def loaded(folder: str, model: str) -> tuple[nn.Module, job.Job]:
    """Return a worker's model and data, made once."""
    torch.set_num_threads(1)
    return models.MODELS[model](), job.read(folder)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model for one epoch on this client's samples."""
    config = message.content["config"]
    model, work = loaded(str(config["job"]), str(config["model"]))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    x, y = work.own(int(context.node_config["partition-id"]))
    plain_torch.train(model, torch.from_numpy(x), torch.from_numpy(y))
    metrics = MetricRecord({"num-examples": len(y)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)
