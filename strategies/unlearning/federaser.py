"""FedEraser (Liu et al., IWQoS 2021): replay stored updates without the client, calibrated.

The run that is to forget must have kept the norms of its clients' updates (run.keep_norms); of the
updates themselves nothing else is needed. The replay begins with the initial model, prepared as the
parent's but without the client. In the place of every so many rounds the clients that took part
and remain train briefly: the new update gives the direction, the stored one the length. Where a
parent's mask moved with its rounds, the replay keeps the first one.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from flwr.serverapp import Grid
from pydantic import Field

from fedsparse.config import Finite
from fedsparse.errors import RunFolderError
from fedsparse.messages import Plan
from fedsparse.sparsity import State
from strategies import foreign
from strategies.addressing import MeteredGrid
from strategies.base import SparseStrategy
from strategies.replies import Reply
from strategies.seats import Seat
from strategies.sums import mean_of
from strategies.task import Task, masked
from strategies.unlearning import parent
from strategies.unlearning.base import Unlearning, UnlearningSettings

STATISTICS = ("running_mean", "running_var")
"""Ends of names of what no gradient moves, and no length calibrates."""


class FedEraserSettings(UnlearningSettings):
    """Keys of `[strategy]` for federaser."""

    interval: int = Field(default=2, ge=1, le=1000, description="rounds between replayed ones")
    ratio: Finite = Field(
        default=0.5, gt=0, le=1, description="of the local epochs, those of a replayed update"
    )


class FedEraser(Unlearning):
    """Replay the run without the client: new directions, stored lengths."""

    Settings = FedEraserSettings
    program = "federaser"
    targets: ClassVar[frozenset[str]] = frozenset({"client"})
    knob: ClassVar[str] = "interval"
    grid: ClassVar[tuple[float, ...]] = (4, 2, 1)

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        kept = parent.norms(self.parent.folder)
        present = set(task.present)
        remaining = {j: {c: n for c, n in told.items() if c in present} for j, told in kept.items()}
        every = range(self.settings.interval, max(kept) + 1, self.settings.interval)
        self.replayed = [remaining[j] for j in every if remaining.get(j)]
        """Norms by client of each replayed round."""
        if not self.replayed:
            raise RunFolderError(
                f"no round of '{self.parent.folder.path}' in {self.settings.interval} has clients "
                "that remain; lower strategy.interval"
            )

    @classmethod
    def usual_rounds(cls, parent_rounds: int, strength: float | None = None) -> int:
        """Return how many rounds are replayed."""
        interval = FedEraserSettings.model_fields["interval"].default
        return max(1, parent_rounds // int(strength or interval))

    def works(self, round_number: int) -> bool:
        """Replay until there is nothing more to replay; then train plainly."""
        return round_number <= len(self.replayed)

    @property
    def work(self) -> float:
        """A part of the local epochs, one at least."""
        epochs = self.task.config.client.local_epochs
        return max(1, round(float(self.settings.ratio) * epochs)) / epochs

    def alter(self, grid: MeteredGrid) -> None:
        """Prepare the parent's initial model and mask anew, without what is forgotten."""
        ours = self.task.config
        config = self.parent.folder.config.model_copy(
            update={"forget": ours.forget, "engine": ours.engine, "client": ours.client}
        )
        made = foreign.make(Task.of(config))
        if not isinstance(made, SparseStrategy):
            self.state, self.mask = self.task.pretrain(0, 0.0), None
            return
        made.directory = self.directory
        made.prepare(grid)
        self.mask = made.mask if made.mask_shapes == self.task.shapes else None
        self.state = masked(made.state, self.mask)

    def choose(self, grid: Grid, round_number: int, plan: Plan) -> dict[int, Seat]:
        """Ask the clients of the replayed round that remain."""
        if not self.works(round_number):
            return super().choose(grid, round_number, plan)
        return self.seated(grid, sorted(self.replayed[round_number - 1]), plan)

    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Take the mean of calibrated updates; after the replay, of models."""
        if self.works(round_number):
            lengths = self.replayed[round_number - 1]
            replies = [self.calibrated(reply, lengths[reply.client]) for reply in replies]
        self.state = mean_of(replies, self.state, self.mask)

    def calibrated(self, reply: Reply, lengths: Sequence[float]) -> Reply:
        """Return a reply with its update's direction and the stored update's length."""
        before = self.state if reply.mask is None else reply.mask.take(self.state)
        if len(lengths) != len(reply.kept):
            raise RunFolderError(
                f"'{self.parent.folder.path}' kept {len(lengths)} norms of an update, the model "
                f"has {len(reply.kept)} tensors; they are of another model"
            )
        return replace(reply, kept=calibrated(before, reply.kept, lengths))


def calibrated(before: State, after: State, lengths: Sequence[float]) -> State:
    """w + |U| Uhat / |Uhat| tensor by tensor; BatchNorm's statistics are the new ones."""
    found = {}
    for (name, value), length in zip(after.items(), lengths, strict=True):
        update = value.astype(np.float64) - before[name]
        size = float(np.linalg.norm(update.reshape(-1)))
        if name.endswith(STATISTICS) or not size:
            found[name] = value
        else:
            found[name] = np.asarray(before[name] + update * (length / size), np.float32)
    return found
