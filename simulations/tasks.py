"""A task, its result, and what a client does with it, wherever it is done."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flwr.app import Context, Message, Metadata
from flwr.clientapp import ClientApp

from fedsparse.state_codec import plain_state
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


@dataclass(frozen=True)
class Part:
    """A task whose message is in parts: what it has for itself, and records that others share."""

    client: int
    clients: int
    metadata: Metadata
    records: Mapping[str, Any]
    state: dict[str, Any] | None
    run_config: Mapping[str, Any]

    @classmethod
    def of(cls, task: Task) -> "Part":
        """Take a task's message apart."""
        sent = task.message
        return cls(
            *(task.client, task.clients, sent.metadata, sent.content),
            *(task.state, task.run_config),
        )

    def message(self) -> Message:
        """Return the message, with records of its own."""
        return internals.message_of(self.metadata, self.records)

    def context(self) -> Context:
        """Return the client's context, with a state of its own."""
        meta = self.metadata
        return internals.new_context(
            *(meta.run_id, meta.dst_node_id, self.client, self.clients),
            *(self.run_config, self.state),
        )


def perform(app: ClientApp, task: Task) -> TaskResult:
    """Let a client answer one message; an exception becomes an error reply."""
    return answer(app, Part.of(task))


def answer(app: ClientApp, part: Part) -> TaskResult:
    """Let a client answer a message that is in parts, as `perform` does."""
    message, context = part.message(), part.context()
    try:
        reply: Message | BaseException = app(message, context)
    except (Exception, SystemExit) as error:
        reply = error
    return result_of(part, message, context, reply)


def result_of(
    part: Part, message: Message, context: Context, reply: Message | BaseException
) -> TaskResult:
    """Return what came of a message; anything but a message is an error."""
    if isinstance(reply, Message):
        try:
            internals.check_reply(reply)
            return TaskResult(part.client, reply, plain_state(context.state))
        except Exception as error:
            reply = error
    if not isinstance(reply, BaseException):
        reply = TypeError(f"the ClientApp returned {type(reply).__name__}, not a Message")
    reason = f"{type(reply).__name__}: {reply}"
    error_reply = internals.error_reply(message, internals.RAISED, reason)
    return TaskResult(part.client, error_reply, part.state or {})


def failure(task: Task, code: int, reason: str) -> TaskResult:
    """Return the result that stands for a client without a reply; its state stays as it was."""
    return TaskResult(
        task.client, internals.error_reply(task.message, code, reason), task.state or {}
    )
