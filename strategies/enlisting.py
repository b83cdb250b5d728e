"""Before the first round: whether each node's own data fit the run's model, and who is left out.

A node that says it has none of its own uses its part of the run's data set. One whose data do not
fit is never asked; the run goes on while `fleet.min_replies` of the clients are left. Nodes that
would lose what the run keeps there are named.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedsparse import data, messages
from fedsparse.data import nodes
from fedsparse.data.schema import Schema, shape_text
from fedsparse.errors import ConfigError, GridError
from fedsparse.runs.tables import Row
from strategies.addressing import least_replies
from strategies.base import SparseStrategy
from strategies.secure import LEAST_CLIENTS
from strategies.task import Task

Told = Mapping[int, Schema | str]
"""What nodes tell of data of their own, by client: a schema, or why there is none."""

KIND = "data"
"""Of the rows of clients that were left out."""


def check(task: Task, told: Told, note: Callable[[str], None]) -> dict[int, str]:
    """Leave out the clients whose data do not fit, say why, and return the reasons by client.

    Raises GridError where fewer are left than `fleet.min_replies` asks for, or than a secure sum.
    """
    fleet = task.config.fleet
    refused = {c: wrong for c, one in sorted(told.items()) if (wrong := misfit(task, one))}
    for client, reason in refused.items():
        note(f"the node of client {client} is left out: {reason}")
    left = set(range(fleet.training_clients)) - task.data.absent - set(refused)
    needed = least_replies(fleet.training_clients, fleet.min_replies)
    if refused and len(left) < needed:
        client, reason = next(iter(refused.items()))
        raise GridError(
            f"{len(left)} of {fleet.training_clients} clients have data that fit, "
            f"fleet.min_replies = {fleet.min_replies:g} asks for {needed}; "
            f"the node of client {client}: {reason}"
        )
    if refused and task.config.secure.aggregation and len(left) < LEAST_CLIENTS:
        raise GridError(
            f"secure.aggregation = true: {len(left)} clients have data that fit, and each could "
            f"tell the other's model from the sum; mend others, {LEAST_CLIENTS} are needed"
        )
    task.left_out.update(refused)
    return refused


def misfit(task: Task, told: Schema | str) -> str | None:
    """Return what is wrong with a node's own data for the run's model, and what to do; or None."""
    if isinstance(told, str):
        return told
    tokens = task.data.train.x.dtype.kind == "i"
    wrong = told.misfit(task.data.input_shape, task.data.classes, tokens)
    secure = task.config.secure
    trained = told.samples - round(task.config.data.client_test_fraction * told.samples)
    if wrong is None and secure.aggregation and trained > secure.max_examples:
        return (
            f"it trains on {trained} samples or more, and secure.max_examples = "
            f"{secure.max_examples}; raise it, and secure.bits where sums become too coarse"
        )
    return wrong


def warn_of_loss(
    task: Task, strategy: Strategy, forgetful: Collection[int], note: Callable[[str], None]
) -> None:
    """Name the clients that keep more than a mask from round to round, in memory alone."""
    ours = isinstance(strategy, SparseStrategy) and strategy.clients_keep
    who = sorted(set(forgetful) - task.absent)
    if who and (ours or task.config.client.keep_optimizer):
        named = ", ".join(map(str, who[:10])) + (", ..." if who[10:] else "")
        note(
            f"the nodes of clients {named} keep what this run needs in memory alone: one that is "
            "started again may begin anew without a word, and change the result; give each a "
            f"{messages.STATE_PATH_KEY}"
        )


def check_testable(task: Task) -> None:
    """Raise ConfigError for a target where the server has nothing to test a model on."""
    target = task.config.run.target_accuracy
    if target is not None and not len(task.data.test):
        raise ConfigError(
            f"run.target_accuracy = {target:g}: the server has no test data to reach it on; set "
            "data.path to a file at the server, or leave the target out"
        )


def rows(refused: Mapping[int, str]) -> list[Row]:
    """Return the rows of clients that were left out."""
    nothing = {"bytes_up": 0, "bytes_down": 0}
    return [
        {
            "round": 0,
            "client": client,
            "kind": KIND,
            "status": "failed",
            "reason": reason,
            **nothing,
        }
        for client, reason in refused.items()
    ]


def unwritten(left_out: Iterable[Row], there: Iterable[Row], number: int) -> list[Row]:
    """Return the rows of clients left out that a folder lacks, as of the round that is done.

    A run that goes on asks its nodes again, and what was wrong may be another node, or another
    thing.
    """
    known = {(row["client"], row.get("reason")) for row in there if row["kind"] == KIND}
    return [
        {**row, "round": number} for row in left_out if (row["client"], row["reason"]) not in known
    ]


def samples(told: Told) -> dict[int, int]:
    """Return how many samples each node says it has of its own."""
    return {client: one.samples for client, one in told.items() if isinstance(one, Schema)}


def partition(task: Task, told: Told, refused: Mapping[int, str]) -> dict[str, Any]:
    """Return what the run folder says of who holds what, and who is left out.

    Of nodes' own data that is what they tell.
    """
    own = bool(told) or task.config.data.name == nodes.NAME
    counts = [[] for _ in range(task.data.clients)] if own else data.partition_counts(task.data)
    found: dict[str, Any] = {
        "kind": nodes.NAME if own else task.config.data.partition,
        "classes": task.data.classes,
        "clients": task.data.clients,
        "counts": counts,
    }
    if told:
        found["nodes"] = {str(client): _said(one) for client, one in sorted(told.items())}
    if refused:
        found["left_out"] = {str(client): reason for client, reason in refused.items()}
    return found


def _said(told: Schema | str) -> dict[str, Any]:
    if isinstance(told, str):
        return {"problem": told}
    return {
        "samples": told.samples,
        "shape": shape_text(told.shape),
        "dtype": told.dtype,
        "classes_seen": told.seen,
        "highest_label": told.highest,
    }
