"""A task, its result, and what a client does with it, wherever it is done."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flwr.app import Context, Message, Metadata
from flwr.clientapp import ClientApp

from simulations import flower_internals as internals
from strategies.replies import Reader


@dataclass(frozen=True)
class Task:
    """One message to one client, with what the client needs to answer it."""

    client: int
    clients: int
    message: Message
    state: dict[str, Any] | None
    run_config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskResult:
    """A client's reply and its state afterwards; an error reply leaves the state as it was."""

    client: int
    reply: Message
    state: dict[str, Any]


class Executor(Protocol):
    """What carries tasks to clients: this process, or workers."""

    def run(
        self, tasks: Sequence[Task], timeout: float | None, reader: Reader | None = None
    ) -> Iterator[TaskResult]:
        """Yield results as they come, until all are there or `timeout` seconds are over.

        With a reader, replies may be added up on the way.
        """
        ...

    def close(self) -> None:
        """Stop what was started."""
        ...


def perform(app: ClientApp, task: Task) -> TaskResult:
    """Let a client answer one message; an exception becomes an error reply."""
    sent = task.message
    return answer(
        app, task.client, task.clients, sent.metadata, sent.content, task.state, task.run_config
    )


def answer(
    app: ClientApp,
    client: int,
    clients: int,
    metadata: Metadata,
    records: Mapping[str, Any],
    state: dict[str, Any] | None,
    run_config: Mapping[str, Any],
) -> TaskResult:
    """Let a client answer a message that is in parts, as `perform` does."""
    message = internals.message_of(metadata, records)
    context: Context = internals.new_context(
        metadata.run_id, metadata.dst_node_id, client, clients, run_config, state
    )
    try:
        reply = app(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned {type(reply).__name__}, not a Message")
        return TaskResult(client, reply, internals.plain_state(context.state))
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        reply = internals.error_reply(message, internals.RAISED, reason)
        return TaskResult(client, reply, state or {})


def failure(task: Task, code: int, reason: str) -> TaskResult:
    """Return the result that stands for a client without a reply; its state stays as it was."""
    return TaskResult(
        task.client, internals.error_reply(task.message, code, reason), task.state or {}
    )
