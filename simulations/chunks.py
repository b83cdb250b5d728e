"""What a worker reports: results, and of clients in a sum no more than their figures.

Such a client's reply is taken apart to be carried, and put together again where it arrives.
"""

from dataclasses import dataclass
from typing import Any

from fedsparse import messages
from simulations import flower_internals as internals
from simulations.tasks import TaskResult
from strategies.added import AddedUp


@dataclass(frozen=True)
class Chunk:
    """What a worker has done since it last reported.

    `digests` are those of the states that it keeps, by client; of clients in `missing` it does
    not hold the state that the parcel's digest stands for. Sums are in the results' replies.
    """

    results: list[TaskResult]
    digests: dict[int, bytes]
    missing: list[int]
    seconds: float

    def __reduce__(self) -> tuple[Any, ...]:
        whole: list[TaskResult] = []
        rows: list[_Row] = []
        seen: dict[Any, Any] = {}
        for result in self.results:
            row = _row(result, seen)
            if row is None:
                whole.append(result)
            else:
                rows.append(row)
        return _arrived, (rows, whole, self.digests, self.missing, self.seconds)


_Row = tuple[int, internals.Told, AddedUp, dict[str, Any]]


def _row(result: TaskResult, seen: dict[Any, Any]) -> _Row | None:
    """Return what is to be carried of a client in a sum; None for any other.

    What is equal in many rows is made one object of, which is carried once.
    """
    reply = result.reply
    stand = reply.content.get(messages.ARRAYS) if reply.has_content() else None
    if type(stand) is not AddedUp:
        return None
    try:
        own, alike, metrics, others = internals.told(reply, messages.ARRAYS)
        return (
            result.client,
            (own, seen.setdefault(alike, alike), metrics, others),
            stand,
            result.state,
        )
    except (KeyError, TypeError):  # a client has written into its reply's metadata
        return None


def _arrived(
    rows: list[_Row],
    whole: list[TaskResult],
    digests: dict[int, bytes],
    missing: list[int],
    seconds: float,
) -> Chunk:
    results = [
        TaskResult(client, internals.reply_of(told, messages.ARRAYS, stand), state)
        for client, told, stand, state in rows
    ]
    return Chunk(results + whole, digests, missing, seconds)
