"""KNOT (Su and Li, Asynchronous Federated Unlearning, INFOCOM 2023): averaging within clusters.

Each client belongs to one cluster, and each cluster trains a model of its own from one start; only
at the end do they become one, their mean by samples. So the deletion of a client repeats the rounds
of its cluster alone: the other clusters' models never knew it.

Here rounds are synchronous, and who belongs where is drawn once, or dealt by size; the paper
chooses it by training times and likeness, and lets each cluster wait for itself. Devices are
therefore refused: on one clock clusters would wait for each other, and a deletion would change who
is there.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray
from pydantic import Field

from fedsparse import messages
from fedsparse.config import Density
from fedsparse.errors import ConfigError, TooFewRepliesError
from fedsparse.messages import Plan
from fedsparse.sparsity import State
from strategies.addressing import draw, pool, require_replies, round_size
from strategies.replies import Reader, Reply
from strategies.seats import FULL, Seat
from strategies.static_mask import StaticMask, StaticMaskSettings
from strategies.sums import Tally, adds_up
from strategies.task import Task


class KnotSettings(StaticMaskSettings):
    """Keys of `[strategy]` for knot."""

    density: Density = 1.0
    clusters: int = Field(default=3, ge=1, description="a deletion repeats the rounds of one")
    balance: Literal["clients", "samples"] = "clients"


class Knot(StaticMask):
    """Federated averaging inside clusters of clients, under one static mask or none."""

    Settings = KnotSettings
    fits = frozenset({"batch"})
    takes_rules = False

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.models: list[State] = []
        """The model of each cluster; `state` is their mean."""
        self.samples: list[int] = []
        """The samples behind each cluster's replies so far: a client never asked weighs nothing."""
        self.done: frozenset[int] = frozenset()
        """Clusters whose model is final: their clients are not asked any more."""
        clusters, size = self.settings.clusters, self.round_size
        if task.config.fleet.profile is not None:
            raise ConfigError(
                f"fleet.profile = '{task.config.fleet.profile}': clusters of 'knot' would wait for "
                "each other's devices; leave it out, or choose another strategy"
            )
        if clusters > size:
            raise ConfigError(
                f"strategy.clusters = {clusters}: a round asks {size} clients, one of each "
                "cluster at least; lower it or raise fleet.clients_per_round"
            )

    # -- who belongs where ------------------------------------------------------------

    @property
    def round_size(self) -> int:
        """How many clients a round asks while no cluster is done."""
        return min(round_size(self.task.config.fleet), len(self.candidates))

    @property
    def candidates(self) -> Sequence[int]:
        """The clients that are dealt to clusters, absent ones of them too."""
        return pool(self.task.config.fleet, self.task.config.run.seed)

    @cached_property
    def members(self) -> list[list[int]]:
        """The clients of each cluster: as many in each, at random, or the largest first by turns.

        Forgetting changes nobody's cluster: sizes are those before anything is forgotten.
        """
        clients = np.asarray(self.candidates, np.int64)
        order = self.task.rng(0, "clusters").permutation(len(clients))
        if self.settings.balance == "samples":
            own = self.task.data.sizes[clients[order]]
            order = order[np.argsort(-own, kind="stable")]
        cluster = in_turn(len(clients), self.settings.clusters, self.settings.balance == "samples")
        return [np.sort(clients[order[cluster == c]]).tolist() for c in range(cluster.max() + 1)]

    @cached_property
    def cluster_of(self) -> dict[int, int]:
        """The cluster of each client that may be asked."""
        return {client: c for c, own in enumerate(self.members) for client in own}

    # -- rounds -----------------------------------------------------------------------

    def prepare(self, grid: Any) -> None:
        """Make one model for all clusters, and one mask unless the density is 1."""
        if self.settings.density < 1.0:
            super().prepare(grid)
        else:
            s = self.settings
            self.state = self.task.pretrain(s.pretrain_epochs, s.pretrain_lr)
        self.models = [self.state] * self.settings.clusters
        self.samples = [0] * self.settings.clusters

    def choose(self, grid: Any, round_number: int, plan: Plan) -> dict[int, Seat]:
        """Draw each cluster's clients by a stream of its own: none moves another's draws."""
        share, over = divmod(self.round_size, self.settings.clusters)
        chosen: list[int] = []
        for cluster, own in enumerate(self.members):
            if cluster not in self.done:
                rng = self.task.rng(round_number, f"clients of cluster {cluster}")
                chosen += draw(rng, own, share + (cluster < over), self.task.absent)
        return dict.fromkeys(sorted(chosen), FULL)

    def ask_with_model(self, clients: Iterable[int], kind: str, plan: Plan) -> list[Message]:
        """Return one message a client: its cluster's model to train, the mean of all to test."""
        if kind != messages.TRAIN:
            return super().ask_with_model(clients, kind, plan)
        by_cluster: dict[int, list[int]] = {}
        for client in clients:
            by_cluster.setdefault(self.cluster_of[client], []).append(client)
        asked, mean = [], self.state
        for cluster, own in by_cluster.items():
            self.state = self.models[cluster]
            asked += super().ask_with_model(own, kind, plan)
        self.state = mean
        return asked

    def reader(self) -> Reader:
        """Let replies be added up by cluster, which take the places of masks."""
        places = {client: self.cluster_of[client] for client in self.seats}
        return Reader(self.schema, (self.mask,) * self.settings.clusters, places)

    @adds_up
    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Average within each cluster; raises TooFewRepliesError where one has too few.

        Each must have enough by itself: what one cluster does depends on no other.
        """
        got = Counter(self.cluster_of[reply.client] for reply in replies)
        asked = Counter(self.cluster_of[client] for client in self.seats)
        for cluster in sorted(asked):
            self.check(cluster, got[cluster], asked[cluster])
        self.models = [
            self.cluster_mean(cluster) if got[cluster] else model
            for cluster, model in enumerate(self.models)
        ]
        for reply in replies:
            self.samples[self.cluster_of[reply.client]] += reply.examples
        self.state = mean_of(self.models, self.samples)

    def check(self, cluster: int, got: int, asked: int) -> None:
        """Raise TooFewRepliesError, with the cluster, when it has too few replies."""
        failures = {c: why for c, why in self.failures.items() if self.cluster_of[c] == cluster}
        try:
            require_replies(got, asked, self.task.config.fleet.min_replies, failures)
        except TooFewRepliesError as error:
            raise TooFewRepliesError(f"cluster {cluster}: {error}") from None

    def cluster_mean(self, cluster: int) -> State:
        """Return the mean of the replies of one cluster, by samples."""
        assert self.tally is not None
        own = Tally(self.tally.schema, self.tally.masks)
        own.parts = {cluster: self.tally.parts[cluster]}
        return own.mean(self.models[cluster], self.mask)

    # -- state of a run ---------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Add each cluster's model, and which clusters are done."""
        return {
            **super().state_dict(),
            "models": [dict(model) for model in self.models],
            "samples": list(self.samples),
            "done": sorted(self.done),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take each cluster's model, too."""
        super().load_state_dict(saved)
        self.models, self.samples = list(saved["models"]), list(saved["samples"])
        self.done = frozenset(saved["done"])

    def splice(
        self, earlier: dict[str, Any], last: dict[str, Any], forgotten: frozenset[int]
    ) -> dict[str, Any]:
        """Return the state in which only the clusters of `forgotten` clients go on from `earlier`.

        The others have the models of `last`, a run's end, and are done. `forgotten` are the clients
        whose part in the run changes now; what was forgotten before is the same in both.
        """
        touched = {c for c, own in enumerate(self.members) if not forgotten.isdisjoint(own)}
        if not touched:
            return earlier
        by_cluster = [earlier if c in touched else last for c in range(self.settings.clusters)]
        models = [saved["models"][c] for c, saved in enumerate(by_cluster)]
        samples = [saved["samples"][c] for c, saved in enumerate(by_cluster)]
        held = {
            client: 0  # there is one mask for all
            for saved in (earlier, last)
            for client in saved["held"]["clients"]
            if (self.cluster_of.get(int(client)) in touched) == (saved is earlier)
        }
        return {
            **earlier,
            "state": mean_of(models, samples),
            "models": models,
            "samples": samples,
            "done": [c for c in range(len(models)) if c not in touched],
            "held": {"masks": last["held"]["masks"] or earlier["held"]["masks"], "clients": held},
        }


def mean_of(models: Sequence[State], samples: Sequence[int]) -> State:
    """Return sum_c n_c w_c / sum_c n_c; the first model while nobody has trained."""
    if not any(samples):
        return models[0]
    share = np.array(samples) / sum(samples)
    mean: State = {}
    for name, first in models[0].items():
        total = np.zeros(first.shape)
        for part, model in zip(share, models, strict=True):
            if part:
                total += part * model[name].astype(np.float64)
        mean[name] = total.astype(np.float32)
    return mean


def in_turn(clients: int, clusters: int, back_and_forth: bool) -> NDArray[np.int64]:
    """Return the cluster of each place in a row of clients: 0, 1, 2, 0, 1, ...

    Back and forth it is 0, 1, 2, 2, 1, 0, ..., so that falling sizes add up to much the same. The
    first clusters get one more where it does not come out even.
    """
    row, place = np.divmod(np.arange(clients), clusters)
    turned = back_and_forth & (row % 2 == 1) & (row < clients // clusters)
    return np.where(turned, clusters - 1 - place, place)
