"""The rows of a round's clients: what each that was asked came to, whether it replied or not."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from flwr.app import Message

from fedsparse.runs.tables import Row
from strategies import metrics
from strategies.addressing import Traffic
from strategies.reasons import reason_of
from strategies.trips import Trip


def client_rows(
    number: int,
    kind: str,
    asked: Sequence[Message],
    replies: Sequence[Message],
    traffic: Traffic,
    *,
    client_of: Mapping[int, int],
    failures: Mapping[int, str],
    trips: Mapping[int, Trip],
    budget_of: Callable[[int], float] | None,
) -> list[Row]:
    """Return a row for each client that was asked in a round, ascending.

    `failures` are the reasons of replies that were left out, `trips` what the simulated clock
    knows; where clients tell the density that they came to, it stands beside their budget.
    """
    first = {client_of[r.metadata.src_node_id]: r for r in reversed(replies)}
    rows = []
    for client in sorted(client_of[message.metadata.dst_node_id] for message in asked):
        reply, trip = first.get(client), trips.get(client)
        lost = trip if trip and trip.status in ("late", "dropped") else None
        reason = lost.reason if lost else failures.get(client) or _failure(reply)
        told = {} if reason or reply is None else metrics.fitting(reply)
        row = {
            "round": number,
            "client": client,
            "kind": kind,
            "status": lost.status if lost else _status(reply, reason),
            "reason": reason,
            "examples": told.get("examples"),
            "loss": told.get("loss"),
            "accuracy": told.get("accuracy"),
            "bytes_up": traffic.up.get(client, 0),
            "bytes_down": traffic.down.get(client, 0),
            "train_flops": told.get("train_flops"),
            "memory_bytes": told.get("memory_bytes"),
        }
        if reply is not None and not reason and (norms := metrics.norms(reply)):
            row["update_norms"] = norms
        if "density" in told and budget_of is not None:
            row |= {"budget": budget_of(client), "density": told["density"]}
        rows.append(row | (trip.row() if trip else {}))
    return rows


def remedy(rows: Sequence[Row]) -> str:
    """Return what to change where the simulated clock took replies away."""
    lost = Counter(row["status"] for row in rows)
    told = [
        f"{lost[status]} came {status}" if status == "late" else f"{lost[status]} dropped out"
        for status in ("late", "dropped")
        if lost[status]
    ]
    if not told:
        return ""
    change = "raise fleet.deadline or fleet.over_selection, or lower fleet.min_replies"
    return f"; {' and '.join(told)}: {change}, and start again with another --out"


def _status(reply: Message | None, reason: str | None) -> str:
    """Return whether a reply was used, was refused, or never came as one."""
    if not reason:
        return "ok"
    return "failed" if reply is None or reply.has_error() else "rejected"


def _failure(reply: Message | None) -> str | None:
    """Return why a client has no usable reply, or None."""
    if reply is None:
        return "no reply in time"
    return reason_of(reply) if reply.has_error() else None
