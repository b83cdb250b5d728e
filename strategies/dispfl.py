"""DisPFL (Dai et al. 2022): no global model; clients average with a few random neighbours.

A client takes the mean over itself and its neighbours, weight by weight over those whose mask
kept it, under its own mask; then it trains, and moves that mask. A grown weight so begins with
what the neighbours have there, or at zero.

Here the server relays: it holds each client's last model, draws the neighbours, and sends the
mean that a client would have made itself. So a client's one download in the figures stands for
`neighbours` direct ones, and its one upload for one to each client that drew it.
Neighbours are drawn among clients that have trained, also if they don't take part in this round;
who has not trained yet has the initial model under its own mask, which is no part of a mean.
A client's personal model is the one that it trained last.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray
from pydantic import Field

from fedsparse import messages, models, wire
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask, State
from strategies.held import encoded
from strategies.replies import Reply, split
from strategies.seats import FULL
from strategies.sparse_to_sparse import SparseToSparse, SparseToSparseSettings
from strategies.sums import Weighted, own_mask_mean
from strategies.task import Task, masked


class DisPflSettings(SparseToSparseSettings):
    """Keys of `[strategy]` for dispfl."""

    neighbours: int = Field(
        default=10, ge=0, description="clients that a client averages with in a round; 0: none"
    )


class DisPfl(SparseToSparse):
    """Personal sparse models that meet their neighbours', weight by weight."""

    Settings = DisPflSettings
    global_model = False

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.initial: State = models.get_state(task.model)
        self.models: dict[int, Weighted] = {}
        """The last model of each client that has trained, under the mask that it trained with."""

    # -- what a client is sent --------------------------------------------------------

    def ask_with_model(self, clients: Iterable[int], kind: str, plan: Plan) -> list[Message]:
        """Return one message a client: the mean to train on, or its own model to test."""
        training, asked = kind == messages.TRAIN, []
        for client in clients:
            seat = self.seats.get(client, FULL) if training else FULL
            own = self.models.get(client)
            if training or own is None:
                state, mask = self.mean_for(client, plan.round), self.mask_of(client)
            else:
                state, mask = own_state(own), self.mask_to_test(client)
            arrays = self.held.records(state, mask, [client], self.settings.values)[client]
            seated = replace(plan, batch_size=seat.batch_size or plan.batch_size)
            asked += self.ask([client], kind, seated, {messages.ARRAYS: arrays})
        return asked

    def mask_to_test(self, client: int) -> Mask:
        """Return the mask of a client's last model; it has moved since."""
        own = self.models.get(client)
        return self.mask_of(client) if own is None or own.mask is None else own.mask

    def mean_for(self, client: int, round_number: int) -> State:
        """Return w_i = m_i sum_k m_k w_k / sum_k m_k, k over client i and its neighbours.

        What none of them keeps is zero, or initial for a client that has not trained.
        """
        own = self.models.get(client)
        near = [self.models[k] for k in self.neighbours_of(client, round_number)]
        if own is None:
            return masked(own_mask_mean(near, self.initial), self.mask_of(client))
        nothing = {name: np.zeros_like(value) for name, value in self.initial.items()}
        return masked(own_mask_mean([own, *near], nothing), self.mask_of(client))

    def neighbours_of(self, client: int, round_number: int) -> list[int]:
        """Return the clients that a client averages with in a round, ascending.

        Drawn anew in each round, among all others that have trained.
        """
        others, wanted = sorted(self.models.keys() - {client}), self.settings.neighbours
        if len(others) <= wanted:
            return others
        rng = self.task.rng(round_number, f"neighbours of {client}")
        return sorted(int(k) for k in rng.choice(others, wanted, replace=False))

    # -- what clients have become -----------------------------------------------------

    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Take each client's model and next mask.

        The server's state is the mean of the round's models, for those who look; no client gets it.
        """
        for reply in replies:
            self.models[reply.client] = Weighted(reply.kept, reply.mask, 1)
        self.state = own_mask_mean([self.models[r.client] for r in replies], self.state)
        self.note_masks(replies)

    def state_dict(self) -> dict[str, Any]:
        """Add each client's model: its values, and its mask."""
        saved = {
            str(client): {"values": flat(own.kept), "mask": encoded(own.mask)}
            for client, own in self.models.items()
            if own.mask is not None
        }
        return {**super().state_dict(), "models": saved}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take each client's model, too."""
        super().load_state_dict(saved)
        for client, held in saved["models"].items():
            mask = wire.decode_mask(held["mask"], self.mask_shapes)
            kept = split(np.asarray(held["values"]), self.schema, mask)
            self.models[int(client)] = Weighted(kept, mask, 1)


def flat(kept: State) -> NDArray[np.float32]:
    """Return values tensor by tensor, as one vector."""
    return np.concatenate([value.reshape(-1) for value in kept.values()])


def own_state(own: Weighted) -> State:
    """Return a client's model as whole tensors."""
    return dict(own.kept) if own.mask is None else own.mask.spread(own.kept)
