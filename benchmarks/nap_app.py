"""A client that sleeps for half a second: work whose time does not depend on the machine."""

import time

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

SECONDS = 0.5

app = ClientApp()


@app.query("nap")
def nap(message: Message, context: Context) -> Message:
    time.sleep(SECONDS)
    return Message(RecordDict(), reply_to=message)
