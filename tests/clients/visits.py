"""A client's visit as its program sees it, of a strategy's message, without a grid."""

from collections.abc import Sequence
from typing import Any

from flwr.app import Context, Message, RecordDict

from clients.job import read_job, receive
from clients.program import Visit
from fedsparse import messages, wire
from fedsparse.sparsity import Mask, State
from simulations import flower_internals as internals
from strategies import foreign
from strategies.task import Task
from tests.tiny_runs import tiny

SMALL = ("model.name=mlp", "model.width=0.25", "data.samples=160", "client.backend=torch")
"""64-16-16-10 units and 100 samples on 4 clients; layers 1, 3 and 5 hold weights."""


def strategy(name: str, *assignments: str, small: Sequence[str] = SMALL) -> Any:
    """Return a strategy with its initial model, of a run on a few digits."""
    made = foreign.make(Task.of(tiny(*small, f"strategy.name={name}", *assignments)))
    made.prepare(None)
    return made


def context(client: int = 0) -> Context:
    """Return what a client holds that has received nothing yet."""
    node = {messages.CLIENT_KEY: client}
    return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})


def visit(
    strategy: Any,
    state: State | None = None,
    mask: Mask | None = None,
    *,
    held: Context | None = None,
    number: int = 1,
) -> Visit:
    """Return the visit of client 0, or of whose memory is `held`, with a model and a plan."""
    held = held or context()
    sent = strategy.shared if state is None else state
    internals.become_server(1)
    content = RecordDict(
        {
            messages.ARRAYS: wire.pack(wire.encode(sent, mask=mask)),
            messages.CONFIG: messages.write_config(strategy.task.config, strategy.plan(number)),
        }
    )
    message = Message(content, 1, messages.TRAIN)
    job = read_job(message, held)
    return Visit(job, receive(job, message, None), held)
