"""A client that sends back the arrays it gets: what is left is the cost of its grid.

It lies in a module of its own, as an app of the main script would be sent to Flower's
workers with every task. What it sends is a copy: one object for all clients of a worker
would be carried once, which no trained model is.
"""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    arrays = {
        name: Array(array.dtype, array.shape, array.stype, bytes(memoryview(array.data)))
        for name, array in message.content["arrays"].items()
    }
    metrics = MetricRecord({"num-examples": 1, "loss": 0.0})
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
    return Message(content, reply_to=message)
