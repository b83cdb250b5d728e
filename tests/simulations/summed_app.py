"""A ClientApp whose model differs by client: what it gets, moved by the client's number.

Client 1 sends NaN, client 2 tells no samples, where the configuration says so.
"""

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsparse import wire

app = ClientApp()
SCHEMA = wire.Schema((("w", (40, 5)), ("b", (5,))))


@app.train()
def train(message: Message, context: Context) -> Message:
    client = context.node_config["partition-id"]
    spoilt = message.content.config_records.get("config", ConfigRecord()).get("spoilt", False)
    state = wire.decode(wire.unpack(message.content["arrays"]), SCHEMA).state
    rng = np.random.default_rng(client)
    moved = {n: v + rng.normal(0, 0.1, v.shape).astype(np.float32) for n, v in state.items()}
    if spoilt and client == 1:
        moved["w"][0, 0] = np.nan
    samples = 0 if spoilt and client == 2 else 10 + client
    metrics = MetricRecord({"num-examples": samples, "loss": 0.5})
    content = RecordDict({"arrays": wire.pack(wire.encode(moved)), "metrics": metrics})
    return Message(content, reply_to=message)
