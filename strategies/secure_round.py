"""One round of secure aggregation, as the server plays it (Bonawitz et al. 2017, figure 4).

Keys, shares, training under masks, unmasking: four exchanges. Whoever misses one is left out, and
what its neighbours' masks then lack is found from their shares. Neighbours are all of the round, or
a ring of them drawn anew (Bell et al. 2020).
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from fedsparse import messages, wire
from fedsparse.errors import FedSparseError, SecureAggregationError, WireError
from fedsparse.sections import SecureConfig
from fedsparse.secure import keys, letters, masks, shamir
from fedsparse.secure.fixed_point import HEAD, Figures, FixedPoint
from fedsparse.secure.letters import KEY_SHARE, SEED_SHARE, Peer, Want
from strategies import metrics
from strategies.checks import trusted
from strategies.replies import Reader, inspect_records

T = TypeVar("T")
Exchange = Callable[[Iterable[Message]], list[Message]]


@dataclass(frozen=True)
class Summed:
    """What a round came to: the clients' sum, and their replies to training.

    `values` are in units of the fixed point.
    """

    values: NDArray[np.int64]
    figures: Figures
    replies: Mapping[int, Message]


@dataclass
class SecureRound:
    """A round under way; `dropped` says at which step a client was lost, and why."""

    config: SecureConfig
    fixed: FixedPoint
    reader: Reader
    exchange: Exchange
    node_of: Mapping[int, int]
    client_of: Mapping[int, int]
    session: bytes = field(default_factory=lambda: secrets.token_bytes(letters.SESSION))
    dropped: dict[int, str] = field(default_factory=dict)
    there: set[int] = field(default_factory=set)
    """Clients that have not been lost so far."""

    def play(self, asked: Mapping[int, Message]) -> Summed:
        """Play the round with the training message of each client.

        Raises SecureAggregationError where too few are left for the sum to be unmasked.
        """
        self.there = set(asked)
        peers = self.ask_keys(asked)
        near = neighbours(list(peers), self.config.neighbours)
        dealt = self.ask_shares(peers, near)
        self.require(near, dealt, dealt)
        total, replies = self.ask_training(asked, list(dealt))
        members = {i: [j for j in near[i] if j in dealt] for i in dealt}
        self.require(near, members, replies)
        seeds, lost = self.ask_unmasking(peers, near, members, dealt, list(replies))
        for seed in seeds.values():
            masks.add_own(total, seed, -1)
        for client, private in lost.items():
            for other in members[client]:
                if other in replies:
                    seed = masks.pair_seed(private, peers[other].for_masks, self.session)
                    masks.add_pairs(total, other, {client: seed}, -1)
        values, figures = self.fixed.decode(total)
        self.check(figures, len(replies))
        return Summed(values, figures, replies)

    def check(self, figures: Figures, clients: int) -> None:
        """Raise SecureAggregationError for a sum that so many honest clients cannot have."""
        if not clients <= figures.samples <= clients * self.fixed.most_samples:
            raise SecureAggregationError(
                f"the sum tells {figures.samples} samples, which {clients} clients cannot have"
            )

    def require(
        self, near: Mapping[int, Sequence[int]], among: Iterable[int], left: Iterable[int]
    ) -> None:
        """Raise SecureAggregationError where a client of a sum has too few neighbours left."""
        there = set(left)
        for client in among:
            still = len(there.intersection(near[client]))
            if still < (least := self.needed(near[client])):
                raise SecureAggregationError(
                    f"{len(there)} clients are left, of client {client} {still} of "
                    f"{len(near[client])} neighbours; secure.threshold = "
                    f"{self.config.threshold:g} asks for {least}"
                )
        if not there:
            raise SecureAggregationError("no client is left")

    def needed(self, near: Sequence[int]) -> int:
        """Return how many of these neighbours put a client's secrets together."""
        return letters.needed(self.config.threshold, len(near))

    # -- the steps --------------------------------------------------------------------

    def ask_keys(self, asked: Iterable[int]) -> dict[int, Peer]:
        """Step 0: return the public keys of each client that tells them."""

        def read(client: int, message: Message) -> Peer:
            return Peer(client, *letters.pieces(payload(message), keys.KEY, 2, "public keys"))

        contents = {client: self.content() for client in asked}
        return self.ask("keys", messages.SECURE_KEYS, contents, read)

    def ask_shares(
        self, peers: Mapping[int, Peer], near: Mapping[int, Sequence[int]]
    ) -> dict[int, list[bytes]]:
        """Step 1: return each client's commitment to its seed, then its sealed shares."""

        def read(client: int, message: Message) -> list[bytes]:
            content, first = payload(message), keys.KEY
            sealed = letters.pieces(
                content[first:], letters.SEALED, len(near[client]), "sealed shares"
            )
            return [content[:first], *sealed]

        contents = {
            client: self.content(letters.write_peers([peers[other] for other in near[client]]))
            for client in peers
        }
        return self.ask("shares", messages.SECURE_SHARES, contents, read)

    def ask_training(
        self, asked: Mapping[int, Message], members: Sequence[int]
    ) -> tuple[keys.Words, dict[int, Message]]:
        """Step 2: return the sum of the masked words, and the replies that are in it."""
        size = HEAD + letters.values_under(self.reader.schema, self.reader.masks[0])
        total = np.zeros(size, self.fixed.kind)

        def read(client: int, message: Message) -> Message:
            total_of = self.words(message, size)
            np.add(total, total_of, out=total)
            return message

        about = self.about()
        about[messages.MEMBERS_KEY] = sorted(members)
        alike: dict[int, RecordDict] = {}  # those who are asked alike share one content
        contents = {}
        for client in members:
            told = asked[client].content
            if id(told) not in alike:
                alike[id(told)] = RecordDict({**told, messages.SECURE: about})
            contents[client] = alike[id(told)]
        return total, self.ask("training", messages.TRAIN, contents, read)

    def words(self, message: Message, size: int) -> keys.Words:
        """Return the masked words of a reply; raises SecureAggregationError or WireError."""
        inspect_records(message, {messages.ARRAYS: 64 + size * self.fixed.bits // 8})
        metrics.read(message, "memory_bytes")
        number, now = messages.metrics_of(message).get(messages.ROUND_KEY), self.reader.round_number
        if number != now:
            raise WireError(f"the reply is of round {metrics.named(number)}; this is round {now}")
        schema, mask = self.reader.schema, self.reader.masks[0]
        masked = letters.read_masked(payload(message), self.fixed.bits, self.session, schema, mask)
        return self.fixed.unpack(masked, size)

    def ask_unmasking(
        self,
        peers: Mapping[int, Peer],
        near: Mapping[int, Sequence[int]],
        members: Mapping[int, Sequence[int]],
        dealt: Mapping[int, Sequence[bytes]],
        left: Sequence[int],
    ) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """Step 3: return the seeds of those whose words are in the sum, and the keys of the lost.

        A lost client of whom nobody's masks are in the sum is passed over.
        """
        there = set(left)
        place = {i: {j: at for at, j in enumerate(near[i], 1)} for i in members}
        wants = {
            j: [
                Want(i, SEED_SHARE if i in there else KEY_SHARE, dealt[i][place[i][j]])
                for i in members[j]
            ]
            for j in left
        }

        def read(client: int, message: Message) -> list[bytes]:
            return letters.pieces(payload(message), shamir.SHARE, len(wants[client]), "shares")

        contents = {j: self.content(letters.write_wants(wants[j])) for j in left}
        told = self.ask("unmasking", messages.SECURE_UNMASK, contents, read, needed=False)
        shares: dict[int, dict[int, bytes]] = {i: {} for i in members}
        for j, given in told.items():
            for want, share in zip(wants[j], given, strict=True):
                shares[want.client][place[want.client][j]] = share

        def right(i: int, secret: bytes) -> bool:
            if i in there:
                return keys.commitment(secret) == dealt[i][0]
            return keys.public_of(secret) == peers[i].for_masks

        known = {
            i: secret_of(i, shares[i], self.needed(near[i]), partial(right, i))
            for i in members
            if i in there or there.intersection(members[i])
        }
        seeds = {i: secret for i, secret in known.items() if i in there}
        lost = {i: secret for i, secret in known.items() if i not in there}
        return seeds, lost

    # -- messages ---------------------------------------------------------------------

    def about(self) -> ConfigRecord:
        """Return what each message says of the round."""
        return ConfigRecord(
            {
                messages.SESSION_KEY: self.session,
                messages.THRESHOLD_KEY: float(self.config.threshold),
            }
        )

    def content(self, arrays: bytes | None = None) -> RecordDict:
        """Return the content of a message of a step."""
        number = ConfigRecord({messages.ROUND_KEY: self.reader.round_number})
        content = RecordDict({messages.CONFIG: number, messages.SECURE: self.about()})
        if arrays is not None:
            content[messages.ARRAYS] = wire.pack(arrays)
        return content

    def ask(
        self,
        step: str,
        kind: str,
        contents: Mapping[int, RecordDict],
        read: Callable[[int, Message], T],
        *,
        needed: bool = True,
    ) -> dict[int, T]:
        """Ask clients and return by client what the replies hold that can be trusted.

        Of the others the reason is noted; they are lost unless their part is in the sum already.
        """
        sent = [Message(content, self.node_of[k], kind) for k, content in contents.items()]
        good, failures = trusted(self.exchange(sent), self.client_of, partial(opened, read))
        found = dict(good)
        if needed:
            for client in contents.keys() - found.keys():
                reason = failures.get(client, "no reply in time")
                self.dropped[client] = f"secure aggregation, {step}: {reason}"
            self.there &= found.keys()
        return found


def opened(read: Callable[[int, Message], T], client: int, message: Message) -> tuple[int, T]:
    """Return a client with what its reply holds; whatever is wrong with that ends no run."""
    try:
        return client, read(client, message)
    except (FedSparseError, KeyError, MemoryError):
        raise
    except Exception as error:
        raise WireError(f"the reply cannot be read: {type(error).__name__}: {error}") from error


def payload(message: Message) -> bytes:
    """Return the bytes of a reply's arrays; raises KeyError or WireError where there are none."""
    found: ArrayRecord = messages.arrays_of(message)
    return wire.unpack(found)


def neighbours(clients: Sequence[int], wanted: int) -> dict[int, list[int]]:
    """Return each client's neighbours: all others, or those nearest on a ring drawn anew.

    `wanted` of them, rounded up to an even number; 0 for all. Who is whose neighbour is mutual.
    """
    if not wanted or wanted >= len(clients) - 1:
        return {i: [j for j in clients if j != i] for i in clients}
    ring = list(clients)
    secrets.SystemRandom().shuffle(ring)
    steps = [step for n in range(1, (wanted + 1) // 2 + 1) for step in (n, -n)]
    near = {
        client: sorted({ring[(at + step) % len(ring)] for step in steps} - {client})
        for at, client in enumerate(ring)
    }
    return {client: near[client] for client in clients}


def secret_of(
    client: int, shares: Mapping[int, bytes], needed: int, right: Callable[[bytes], bool]
) -> bytes:
    """Return a client's secret from enough shares, also where one of more than enough is wrong.

    Raises SecureAggregationError where there are too few, or wrong ones.
    """
    if len(shares) < needed:
        raise SecureAggregationError(
            f"{len(shares)} shares of client {client}'s secret were told, it takes {needed}"
        )
    places = sorted(shares)
    for first in range(len(places)):
        some = [places[(first + step) % len(places)] for step in range(needed)]
        try:
            secret = shamir.combine({place: shares[place] for place in some})
        except SecureAggregationError:
            continue
        if right(secret):
            return secret
    raise SecureAggregationError(f"the shares of client {client}'s secret are wrong ones")
