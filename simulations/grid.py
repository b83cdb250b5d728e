"""CohortGrid: Flower's `Grid` interface over clients of this process or of Ray workers.

Any Flower strategy and any ClientApp run on it unmodified. Clients are partition ids;
their state is held here and travels with each message, so a worker can be lost without
losing what a client knew. Nothing is made for a client before it is sent a message: a
million of them can be registered.
"""

import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedsparse.errors import GridError
from simulations import flower_internals as internals
from simulations import garbage
from simulations.adding import Adder
from simulations.cohorts import answer_all, train_together
from simulations.states import ClientStates
from simulations.tasks import Executor, Part, Task, TaskResult, perform
from strategies.consecutive import Consecutive
from strategies.replies import Reader

FIRST_NODE = 1000
"""Node id of client 0; node ids are addresses and mean nothing else."""


class InlineExecutor:
    """Clients one after another in the calling process: for debugging and small runs.

    The time limit is looked at between clients: one that is at work is not stopped, and
    one that ends its process ends the run.
    """

    one_by_one = True
    """A client without a result was not handed its message."""

    def __init__(self, client_app: ClientApp | str) -> None:
        self.app = internals.load_app(client_app) if isinstance(client_app, str) else client_app

    def run(
        self, tasks: Sequence[Task], timeout: float | None, reader: Reader | None = None
    ) -> Iterator[TaskResult]:
        """Yield each client's result in order."""
        end = None if timeout is None else time.monotonic() + timeout
        adder = None if reader is None else Adder(reader, at_once=True)
        for result in self._results(tasks, end):
            if adder is None:
                yield result
            else:
                adder.take(result)
                yield from adder.results()

    def _results(self, tasks: Sequence[Task], end: float | None) -> Iterator[TaskResult]:
        if tasks and all(self._together(task) for task in tasks):
            yield from answer_all([Part.of(task) for task in tasks])
            return
        for task in tasks:
            if end is not None and time.monotonic() > end:
                return
            yield perform(self.app, task)

    def _together(self, task: Task) -> bool:
        message = task.message
        return train_together(self.app, message.metadata.message_type, message.content)

    def close(self) -> None:
        """Nothing was started."""


class CohortGrid(Grid):
    """A grid of `clients` simulated clients; replies come in the order of clients.

    `client_app` is `module:attribute`, or the app itself for a grid in this process.
    """

    progress: Callable[[int, int], None] | None = None
    """Called with (replies so far, messages sent) as replies arrive."""
    reached: set[str] | None = None
    """Ids of the messages that clients were handed, of those sent last; None for all."""

    def __init__(
        self,
        client_app: ClientApp | str | None = None,
        *,
        clients: int,
        executor: Executor | None = None,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        if clients < 1:
            raise GridError(f"a grid of {clients} clients cannot run; register at least one")
        if executor is None:
            if client_app is None:
                raise GridError("a grid needs a ClientApp or an executor")
            executor = InlineExecutor(client_app)
        self.clients = clients
        self.executor = executor
        self.run_config = dict(run_config or {})
        self.run_id = uuid.uuid4().int % 2**63
        self._states = ClientStates()
        self._replies: dict[str, Message] = {}
        self._run: Any = None
        internals.become_server(self.run_id)

    @property
    def clients_by_node(self) -> Consecutive:
        """Node id to partition id of every client."""
        return Consecutive(range(self.clients), self.get_node_ids())

    @property
    def adds_up(self) -> bool:
        """Whether replies can be added up on the way; a subclass that sees to them gets all."""
        return type(self).send_and_receive is CohortGrid.send_and_receive

    def node_of(self, client: int) -> int:
        """Return a client's address; raises GridError for a client that is not there."""
        if not 0 <= client < self.clients:
            raise GridError(f"there is no client {client}; the grid has {self.clients}")
        return FIRST_NODE + client

    def client_of(self, node: int) -> int:
        """Return the client at an address; raises GridError for an unknown one."""
        if not 0 <= node - FIRST_NODE < self.clients:
            raise GridError(f"there is no node {node}; ask get_node_ids")
        return node - FIRST_NODE

    # -- Flower's interface -----------------------------------------------------------

    def get_node_ids(self) -> range:
        """Return every client's address."""
        return range(FIRST_NODE, FIRST_NODE + self.clients)

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        reader: Reader | None = None,
    ) -> list[Message]:
        """Send messages and return the replies that came in time, in the order of clients.

        With a reader, models may be added up on the way: a reply then holds an `AddedUp`.
        """
        return self._exchange(list(messages), timeout, reader)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run messages at once; their replies wait for `pull_messages`."""
        sent = list(messages)
        replies = self._exchange(sent, None)
        self._replies.update({reply.metadata.reply_to_message_id: reply for reply in replies})
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to some messages, each once."""
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message, as Flower's older strategies make them."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def set_run(self, run: Any) -> None:
        """Keep what Flower says of the run."""
        self._run = run

    @property
    def run(self) -> Any:
        """What `set_run` was given."""
        return self._run

    def _exchange(
        self, sent: list[Message], timeout: float | None, reader: Reader | None = None
    ) -> list[Message]:
        internals.become_server(self.run_id)
        end = None if timeout is None else time.monotonic() + timeout
        name = uuid.uuid4().hex
        done: list[TaskResult] = []
        with garbage.kept():
            for number, message in enumerate(sent):
                internals.number(message, f"{name}-{number}")
            waves = self._waves(sent)
        for wave in waves:
            with garbage.kept():
                tasks = [self._task(client, message) for client, message in sorted(wave.items())]
            left = None if end is None else end - time.monotonic()
            results = self.executor.run(tasks, left, reader)
            try:
                for result in results:
                    done.append(result)
                    self._states.keep(result.client, result.state)
                    if self.progress is not None:
                        self.progress(len(done), len(sent))
            finally:  # an error of ours must not leave an executor in the midst of its work
                if isinstance(results, Generator):
                    results.close()
        if getattr(self.executor, "one_by_one", False):
            self.reached = {result.reply.metadata.reply_to_message_id for result in done}
        done.sort(key=lambda result: result.client)
        return [result.reply for result in done]

    def _waves(self, sent: Iterable[Message]) -> list[dict[int, Message]]:
        """Deal messages out so that a client's second one sees the state its first one left."""
        waves: list[dict[int, Message]] = []
        seen: dict[int, int] = {}
        for message in sent:
            client = self.client_of(message.metadata.dst_node_id)
            place = seen[client] = seen.get(client, -1) + 1
            if place == len(waves):
                waves.append({})
            waves[place][client] = message
        return waves

    def _task(self, client: int, message: Message) -> Task:
        return Task(client, self.clients, message, self._states.get(client), self.run_config)

    # -- clients' state, and the end --------------------------------------------------

    def states(self) -> dict[int, dict[str, Any]]:
        """Return the state of every client that has one, in the order of clients.

        The form is that of `plain_state`: nested dicts of bytes, lists and plain values.
        """
        return self._states.all()

    def load_states(self, states: Mapping[int, dict[str, Any]]) -> None:
        """Replace every client's state by what `states` returned earlier."""
        self._states.load(states)

    def commit_states(self, round_number: int, kept: Iterable[int]) -> dict[str, Any]:
        """Put clients' states on the disk as those after a round; see `ClientStates.commit`."""
        return self._states.commit(round_number, kept)

    def restore_states(self, folder: Path, round_number: int, saved: Mapping[str, Any]) -> None:
        """Hold clients' states in a run folder from now on, and go on with those of a round.

        `saved` is what `commit_states` returned, or empty where no client has a state. Raises
        RunFolderError when they are not in the folder as they were.
        """
        self._states.close()
        self._states = ClientStates(folder)
        self._states.restore(round_number, saved)

    def forget_client(self, client: int) -> None:
        """Remove a client's state, at the next checkpoint also from what earlier ones restore."""
        self._states.forget(client)

    def close(self) -> None:
        """Stop the workers, and let the states of clients go."""
        self.executor.close()
        self._states.close()

    def __enter__(self) -> "CohortGrid":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
