"""The round loop: the same over any grid, for any Flower strategy.

It calls Flower's public seams (`configure_train`, `aggregate_train`, ...), of ours `learn`,
and adds what Flower's own loop lacks: rounds numbered from a checkpoint, bytes counted, a row of
figures a round, checkpoints, progress, and a run that stops with a clear error.
"""

import random
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import Strategy

from fedsparse import messages
from fedsparse.config import Config
from fedsparse.errors import RunFolderError, TooFewRepliesError
from fedsparse.messages import Plan
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Progress
from fedsparse.sparsity import Mask, State
from strategies import enlisting, foreign
from strategies.addressing import MeteredGrid, Traffic
from strategies.base import SparseStrategy
from strategies.client_rows import client_rows, remedy
from strategies.ledger_rows import LedgerWriter
from strategies.metrics import average
from strategies.reminding import exchange
from strategies.replies import Reader
from strategies.row_writer import RowWriter, tested
from strategies.seats import Kept, KeptOf
from strategies.task import Task

Row = dict[str, Any]


class RoundLoop:
    """A run under way: its strategy, its model, and where its figures go."""

    def __init__(
        self,
        task: Task,
        strategy: Strategy,
        grid: MeteredGrid,
        folder: RunFolder,
        progress: Progress,
    ) -> None:
        self.task = task
        self.strategy = strategy
        self.grid = grid
        self.folder = folder
        self.progress = progress
        self.arrays = ArrayRecord()
        """The model of a strategy that is not ours; ours keep their own."""
        self.writer = RowWriter(self.write)
        self.ledger = LedgerWriter(task, folder)
        self.left_out: list[Row] = []
        """Rows of clients whose nodes were left out before the first round."""
        self.lost: set[str] = set()
        """Attributes of a strategy that is not ours of which the user knows that they are lost."""

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.task.config

    @property
    def mask(self) -> Mask | None:
        """The strategy's mask, if it is one of ours and sparse."""
        return self.strategy.mask if isinstance(self.strategy, SparseStrategy) else None

    @property
    def plan(self) -> Plan:
        """What the strategy asks of clients in a usual round."""
        return self.strategy.own_plan(1) if isinstance(self.strategy, SparseStrategy) else Plan()

    @property
    def kept(self) -> Kept | KeptOf | None:
        """Kept weights by layer, or how to find a client's; None for a dense model."""
        return self.strategy.kept() if isinstance(self.strategy, SparseStrategy) else None

    @property
    def density(self) -> float:
        """The kept fraction of the prunable weights."""
        return self.strategy.density if isinstance(self.strategy, SparseStrategy) else 1.0

    @property
    def layer_density(self) -> dict[str, float]:
        """The kept fraction by layer."""
        if isinstance(self.strategy, SparseStrategy):
            return self.strategy.layer_density
        return dict.fromkeys(self.task.prunable, 1.0)

    @property
    def fits(self) -> frozenset[str]:
        """What the strategy allows to make smaller for a client with little memory."""
        return self.strategy.fits if isinstance(self.strategy, SparseStrategy) else frozenset()

    @property
    def global_model(self) -> bool:
        """Whether there is a global model to test, and something to test it on."""
        ours = self.strategy if isinstance(self.strategy, SparseStrategy) else None
        return (ours is None or ours.global_model) and len(self.task.data.test) > 0

    @property
    def state(self) -> State:
        """The global model."""
        if isinstance(self.strategy, SparseStrategy):
            return self.strategy.state
        return foreign.state_of(self.arrays, self.task.schema)

    def run(self) -> None:
        """Go from the newest checkpoint, or from the start, to the last round."""
        first = self.restore()
        self.progress.start(self.config.run.rounds, max(first, 0))
        self.watch()
        with self.writer:
            if first < 0:
                self.begin()
            elif self.left_out:
                told = enlisting.unwritten(self.left_out, self.folder.clients(), first)
                self.folder.append_clients(told)
            for number in range(max(first, 0) + 1, self.config.run.rounds + 1):
                self.round(number)
            self.last_test()

    def watch(self) -> None:
        """Look whether a test is done whenever a client has replied, where the grid tells."""
        grid: Any = self.grid.inner
        told = getattr(grid, "progress", None)
        if told is None:
            return

        def replied(done: int, total: int) -> None:
            self.writer.poll()
            told(done, total)

        grid.progress = replied

    # -- one round --------------------------------------------------------------------

    def begin(self) -> None:
        """Make the initial model, with whatever exchanges the strategy needs."""
        started = time.perf_counter()
        self.folder.append_clients(self.left_out)
        if isinstance(self.strategy, SparseStrategy):
            self.strategy.prepare(self.grid)
        else:
            self.arrays = foreign.initial_arrays(self.task)
        self.describe_fleet()
        traffic = self.grid.read_traffic()
        failed = self.strategy.failures if isinstance(self.strategy, SparseStrategy) else {}
        heard = traffic.up.keys() - failed.keys()
        self.ledger.write(0, traffic.down, heard, (None, self.mask), self.state, traffic)
        self.record(0, [], traffic, None, time.perf_counter() - started)
        self.checkpoint(0)

    def describe_fleet(self) -> None:
        """Write down which devices there are and which of them cannot take part."""
        found = self.grid.describe(self.plan, self.kept, self.fits)
        if found is not None:
            self.folder.write_json("devices.json", found)
            if refused := sum(found["refused"].values()):
                reasons = ", ".join(f"{n} by {why}" for why, n in found["refused"].items() if n)
                self.progress.note(
                    f"{refused} of {self.config.fleet.clients} clients cannot hold the training "
                    f"and are never asked: {reasons}"
                )

    def round(self, number: int) -> None:
        """Run one round: ask, wait, aggregate, test, write down."""
        started = time.perf_counter()
        self.seed_foreign(number)
        before = self.mask
        with foreign.guarded(self.strategy, number):
            asked = list(
                self.strategy.configure_train(
                    number, self.arrays, self.message_config(number), self.grid
                )
            )
        client_of = self.grid.directory.client_of
        self.ledger.expect(client_of[message.metadata.dst_node_id] for message in asked)
        timeout = self.config.engine.timeout
        replies = exchange(self.grid, self.strategy, asked, timeout, self.reader())
        traffic = self.grid.read_traffic()
        try:
            self.aggregate(number, replies)
        except TooFewRepliesError as error:
            if not self.grid.lost:
                rows = self.client_rows(number, "train", asked, replies, traffic)
                self.folder.append_clients(rows)
                raise TooFewRepliesError(f"{error}{remedy(rows)}") from error
        rows = self.client_rows(number, "train", asked, replies, traffic)
        self.folder.append_clients(rows)
        self.enter(number, [row["client"] for row in rows], rows, before)
        self.record(number, rows, traffic, before, time.perf_counter() - started)
        if number % self.config.run.checkpoint_every == 0 or number == self.config.run.rounds:
            self.checkpoint(number)

    def reader(self) -> Reader | None:
        """Return how replies are read where they are added up; None if each one is wanted."""
        strategy = self.strategy
        return (
            strategy.round_reader()
            if isinstance(strategy, SparseStrategy) and strategy.adds_up
            else None
        )

    def aggregate(self, number: int, replies: Sequence[Message]) -> None:
        """Let the strategy make the next model; ours aren't asked to pack it, no one reads that."""
        if isinstance(self.strategy, SparseStrategy):
            self.strategy.learn(number, replies)
            return
        with foreign.guarded(self.strategy, number):
            arrays, _ = self.strategy.aggregate_train(number, replies)
        if arrays is not None:
            self.arrays = arrays

    def message_config(self, number: int) -> ConfigRecord:
        """Return the configuration that a strategy of another maker sends on."""
        return messages.write_config(self.config, Plan(round=number))

    def seed_foreign(self, number: int) -> None:
        """Seed the global generators that Flower's own strategies draw from."""
        if not isinstance(self.strategy, SparseStrategy):
            seed = int(self.task.rng(number, "foreign").integers(2**32))
            random.seed(seed)
            np.random.seed(seed)

    def last_test(self) -> None:
        """Let clients test the final model on their own held-out samples, once.

        Of rows that a kill cut off, those that are missing are added.
        """
        fleet, number = self.config.fleet, self.config.run.rounds
        if not fleet.evaluate_clients or not self.config.data.client_test_fraction:
            return
        self.seed_foreign(number)
        with foreign.guarded(self.strategy, number):
            asked = list(
                self.strategy.configure_evaluate(
                    number, self.arrays, self.message_config(number), self.grid
                )
            )
        done = {row["client"] for row in self.folder.clients() if row["kind"] == "evaluate"}
        if len(done) >= len(asked):
            return
        replies = exchange(self.grid, self.strategy, asked, self.config.engine.timeout)
        with foreign.guarded(self.strategy, number):
            self.strategy.aggregate_evaluate(number, replies)
        traffic = self.grid.read_traffic()
        rows = self.client_rows(number, "evaluate", asked, replies, traffic)
        self.folder.append_clients([row for row in rows if row["client"] not in done])

    # -- what is written down ---------------------------------------------------------

    def record(
        self,
        number: int,
        rows: list[Row],
        traffic: Traffic,
        before: Mask | None,
        seconds: float,
        **more: float | None,
    ) -> None:
        """Append the round's figures and show them, once the model is tested."""
        self.writer.settle()  # a test takes what tests for itself
        every = self.config.run.eval_every
        due = number % every == 0 or number == self.config.run.rounds
        good = [row for row in rows if row["status"] == "ok"]
        told = [r for r in good if r["loss"] is not None and r["examples"]]
        ours = self.strategy if isinstance(self.strategy, SparseStrategy) else None
        told = [] if ours and ours.tells_once else told
        statuses = Counter(row["status"] for row in rows)
        row = {
            "round": number,
            "accuracy": None,
            "loss": None,
            "train_loss": (
                average([r["loss"] for r in told], [r["examples"] for r in told]) if told else None
            ),
            "density": self.density,
            "layer_density": self.layer_density,
            "mask_change": self.mask_change(before),
            "bytes_up": traffic.bytes_up,
            "bytes_down": traffic.bytes_down,
            "train_flops": sum(r["train_flops"] or 0.0 for r in good),
            "peak_client_memory_bytes": max((r["memory_bytes"] or 0 for r in good), default=0),
            "clients_asked": len(rows),
            "clients_replied": len(good),
            "clients_failed": len(rows) - len(good),
            "seconds": seconds,
            "clients_late": statuses["late"],
            "clients_dropped": statuses["dropped"],
            **self.grid.figures(self.kept, self.fits),
            **(ours.spent(number) if ours else {}),
            **more,
        }
        test = self.task.test_of(self.state, self.mask) if due and self.global_model else None
        self.writer.start(row, test)

    def enter(
        self, number: int, asked: Sequence[int], rows: list[Row], before: Mask | None
    ) -> None:
        """Write into the ledger who was asked in a round and whose replies the model took in."""
        counted = [row["client"] for row in rows if row["status"] == "ok"]
        self.ledger.write(number, asked, counted, (before, self.mask), self.state)

    def mask_change(self, before: Mask | None) -> int | None:
        """Return how many entries of the mask changed; None where clients have their own."""
        if callable(self.kept):
            return None
        return self.mask.hamming(before) if self.mask and before else 0

    def write(self, row: Row) -> None:
        """Append a whole row and show it."""
        self.folder.append_metrics(row)
        self.progress.round_done(row)

    def client_rows(
        self,
        number: int,
        kind: str,
        asked: Sequence[Message],
        replies: Sequence[Message],
        traffic: Traffic,
    ) -> list[Row]:
        """Return a row for each client that was asked, whether it replied or not."""
        ours = self.strategy if isinstance(self.strategy, SparseStrategy) else None
        return client_rows(
            number,
            kind,
            asked,
            replies,
            traffic,
            client_of=self.grid.directory.client_of,
            failures=ours.failures if ours else {},
            trips=self.grid.trips if kind == "train" else {},
            budget_of=ours.budget_of if ours else None,
        )

    # -- checkpoints ------------------------------------------------------------------

    def checkpoint(self, number: int) -> None:
        """Write everything that the next round depends on."""
        self.tell_lost()
        clock = self.grid.state_dict()
        commit = getattr(self.grid.inner, "commit_states", None)
        self.folder.save_checkpoint(
            number,
            {
                "clock": clock,
                "strategy": (
                    self.strategy.state_dict()
                    if isinstance(self.strategy, SparseStrategy)
                    else foreign.state_dict(self.strategy, self.arrays)
                ),
                "clients": commit(number, self.folder.checkpoints()) if commit else {},
                "untested": self.writer.untested,
            },
        )

    def tell_lost(self) -> None:
        """Say once what of a strategy that is not ours no checkpoint can hold."""
        if isinstance(self.strategy, SparseStrategy):
            return
        new = [name for name in foreign.lost(self.strategy) if name not in self.lost]
        if new:
            self.lost.update(new)
            self.progress.note(
                f"{type(self.strategy).__name__}.{', '.join(new)}: no checkpoint can hold this; "
                "a resumed run starts without it"
            )

    def restore(self) -> int:
        """Load the newest checkpoint and return its round; -1 when there is none."""
        found = self.folder.latest_checkpoint(self.progress.note)
        number, tree = found or (-1, {"clients": {}})
        entries = self.ledger.ledger.until(number)
        if found is None:
            self.restore_clients(-1, {})
            self.folder.rewind(-1)
            self.ledger.go_on(entries, -1)
            return -1
        restored = self.restore_clients(number, tree["clients"])
        self.check_restored(number, restored)
        if isinstance(self.strategy, SparseStrategy):
            self.strategy.load_state_dict(tree["strategy"])
        else:
            self.arrays = foreign.load_state_dict(self.strategy, tree["strategy"])
        self.folder.rewind(number, partial(self.test_again, tree.get("untested")))
        self.ledger.go_on(entries, number)
        self.grid.load_state_dict(tree["clock"])
        if not restored and isinstance(self.strategy, SparseStrategy):
            self.strategy.held.forget()
        return number

    def check_restored(self, number: int, restored: bool) -> None:
        """Refuse to go on where clients have lost what they kept, as Flower's engine lets them."""
        strategy = self.strategy
        if not isinstance(strategy, SparseStrategy) or hasattr(self.grid.inner, "restore_states"):
            return
        if strategy.tells_once and self.config.privacy.entropy == "system":
            raise RunFolderError(
                f"clients of '{self.config.strategy['name']}' answer once, and would answer this "
                "run again under other noise; start again with another --out"
            )
        if strategy.clients_keep and number and not restored:
            raise RunFolderError(
                f"clients of '{self.config.strategy['name']}' have models of their own, which this "
                "engine does not give back; start again with another --out, or on inline or ray"
            )

    def test_again(self, row: Row | None) -> Row | None:
        """Return the row that a checkpoint holds without its test, tested; None for none."""
        return row and tested(row, self.task.evaluate(self.state, self.mask))

    def restore_clients(self, number: int, saved: dict[str, Any]) -> bool:
        """Let a grid that holds its clients' states go on with a round's; tell whether it did."""
        restore = getattr(self.grid.inner, "restore_states", None)
        if restore is not None:
            restore(self.folder.path, number, saved)
        return restore is not None and bool(saved)
