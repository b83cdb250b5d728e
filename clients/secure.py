"""The client's side of secure aggregation: keys, shares of its secrets, a masked model, unmasking.

What is secret lies in `Context.state` while the round runs, each part no longer than it is needed,
and is random anew each round. A client answers each step once, and never tells both secrets of
another: its seed if it is left, its key if it is lost (Bonawitz et al. 2017, figure 4).
"""

import struct
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict

from fedsparse import messages, wire
from fedsparse.errors import SecureAggregationError
from fedsparse.messages import SECURE
from fedsparse.secure import keys, letters, masks, shamir
from fedsparse.secure.fixed_point import Figures, FixedPoint

if TYPE_CHECKING:
    from clients.job import Job
    from clients.program import Outcome

SESSION, FOR_SHARES, FOR_MASKS, SEED = "session", "key-for-shares", "key-for-masks", "seed"
PEERS, NEEDED, MEMBERS = "peers", "needed", "members"

LEAST_PEERS = 2
"""Neighbours below which a client takes part in no sum: one could tell the other's part."""

Own = dict[str, bytes]
"""What a client keeps of a round."""


def publish(message: Message, context: Context) -> ArrayRecord:
    """Forget any round before, make two fresh pairs of keys, and tell the public ones (step 0)."""
    session = _told(message)
    own = {SESSION: session, FOR_SHARES: keys.fresh(), FOR_MASKS: keys.fresh()}
    _keep(context, own)
    return wire.pack(keys.public_of(own[FOR_SHARES]) + keys.public_of(own[FOR_MASKS]))


def share(message: Message, context: Context, client: int) -> ArrayRecord:
    """Draw a seed and deal shares of it and of the key for masks, each sealed for one neighbour.

    Step 1. Raises SecureAggregationError for a list of neighbours that no honest server sends.
    """
    own = _recall(message, context)
    if SEED in own or PEERS in own:
        raise SecureAggregationError("this client has dealt its shares of this round already")
    table = _payload(message)
    peers = letters.read_peers(table)
    named = {peer.client for peer in peers}
    if client in named or len(named) < LEAST_PEERS:
        raise SecureAggregationError(
            f"a sum with {len(named - {client})} neighbours is refused; it takes {LEAST_PEERS}"
        )
    needed = letters.needed(_threshold(message), len(peers))
    seed = keys.fresh()
    dealt = zip(
        shamir.split(seed, needed, len(peers)),
        shamir.split(own[FOR_MASKS], needed, len(peers)),
        strict=True,
    )
    sealed = [
        keys.seal(_pair_key(own, peer, (client, peer.client)), b"".join(two), own[SESSION])
        for peer, two in zip(peers, dealt, strict=True)
    ]
    _keep(context, {**own, SEED: seed, PEERS: table, NEEDED: struct.pack("<I", needed)})
    return wire.pack(keys.commitment(seed) + b"".join(sealed))


def mask_reply(
    content: RecordDict, job: "Job", outcome: "Outcome", message: Message, context: Context
) -> None:
    """Put masked words in the place of a training reply's model and figures (step 2).

    Nothing is done unless the run aggregates securely. Raises SecureAggregationError where too few
    neighbours are left, and for what the server asks out of order.
    """
    if not job.config.secure.aggregation:
        return
    own = _recall(message, context)
    if SEED not in own:
        raise SecureAggregationError("this client has no seed of this round; it sends no model")
    if set(content) > {messages.ARRAYS, messages.METRICS}:
        raise SecureAggregationError("the reply holds more than a model; only sums are sent")
    peers = letters.read_peers(own[PEERS])
    members = _members(message)
    left = [peer for peer in peers if peer.client in members]
    (needed,) = struct.unpack("<I", own[NEEDED])
    if job.client not in members or len(left) < needed:
        raise SecureAggregationError(
            f"{len(left)} of {len(peers)} neighbours are left, {needed} are needed to unmask; "
            "this client sends no model"
        )
    fixed = FixedPoint.of(job.config)
    told = content.metric_records[messages.METRICS]
    flat = np.concatenate([value.reshape(-1) for value in outcome.kept.values()])
    words = fixed.encode(flat, _figures(told))
    masks.add_own(words, own[SEED])
    session = own[SESSION]
    pairs = {p.client: masks.pair_seed(own[FOR_MASKS], p.for_masks, session) for p in left}
    masks.add_pairs(words, job.client, pairs)
    payload = letters.write_masked(fixed.pack(words), fixed.bits, session, job.schema, outcome.mask)
    content[messages.ARRAYS] = wire.pack(payload)
    content[messages.METRICS] = MetricRecord(
        {messages.ROUND_KEY: job.plan.round, "memory-bytes": _memory(job, outcome)}
    )
    del own[SEED], own[FOR_MASKS]
    _keep(context, {**own, MEMBERS: letters.write_peers(left)})


def unmask(message: Message, context: Context, client: int) -> ArrayRecord:
    """Tell one share of each neighbour's secrets, and forget the round (step 4).

    Raises SecureAggregationError where fewer are left than it takes, for both secrets of one
    client, and for clients whose masks are not in the sum.
    """
    own = _recall(message, context)
    if MEMBERS not in own:
        raise SecureAggregationError("this client has sent no masked model; it tells no shares")
    wants = letters.read_wants(_payload(message))
    peers = {peer.client: peer for peer in letters.read_peers(own[MEMBERS])}
    (needed,) = struct.unpack("<I", own[NEEDED])
    left = sum(want.kind == letters.SEED_SHARE for want in wants)
    kinds = {want.kind for want in wants}
    if not kinds <= {letters.SEED_SHARE, letters.KEY_SHARE} or left < needed:
        raise SecureAggregationError(
            f"{left} neighbours are left, {needed} are needed; no shares are told"
        )
    told = []
    for want in wants:
        if want.client not in peers:
            raise SecureAggregationError(f"client {want.client} is not in this sum; not told")
        key = _pair_key(own, peers[want.client], (want.client, client))
        opened = keys.unseal(key, want.sealed, own[SESSION])
        begin = want.kind * shamir.SHARE
        told.append(opened[begin : begin + shamir.SHARE])
    del context.state[SECURE]
    return wire.pack(b"".join(told))


def _memory(job: "Job", outcome: "Outcome") -> int:
    """Return the bytes that training takes in the largest batches, whatever samples there are."""
    from fedsparse.training import price

    kept = None if outcome.mask is None else outcome.mask.layer_kept()
    samples = job.settings.batch_size + 1
    return price.price(job.cost, job.config.client, job.plan, samples, kept).memory.total


def _pair_key(own: Own, peer: letters.Peer, pair: tuple[int, int]) -> bytes:
    return masks.share_key(own[FOR_SHARES], peer.for_shares, own[SESSION], pair)


def _figures(told: MetricRecord) -> Figures:
    """Return the figures of a training reply; they are told in the sum alone."""
    found = dict(told.items())
    names = ("loss", "accuracy", "train-flops")
    numbers = [float(value) for n in names if isinstance(value := found[n], int | float)]
    samples = found[messages.EXAMPLES_KEY]
    assert isinstance(samples, int)
    return Figures(samples, 0, *numbers)


# -- what a message says, and what is kept of a round -------------------------------------


def _entry(message: Message, key: str) -> object:
    """Return an entry of the message's record about secure aggregation, None if it isn't there."""
    record = message.content.config_records.get(SECURE)
    return None if record is None else record.get(key)


def _told(message: Message) -> bytes:
    session = _entry(message, messages.SESSION_KEY)
    if not isinstance(session, bytes) or len(session) != letters.SESSION:
        raise SecureAggregationError(
            "the message says no round of secure aggregation; this client sends nothing in plain"
        )
    return session


def _threshold(message: Message) -> float:
    value = _entry(message, messages.THRESHOLD_KEY)
    if not isinstance(value, float) or not 0.5 < value <= 1:
        raise SecureAggregationError("the message's threshold is not above a half; it is refused")
    return value


def _members(message: Message) -> frozenset[int]:
    value = _entry(message, messages.MEMBERS_KEY)
    if not isinstance(value, list):
        raise SecureAggregationError("the message says not who is in the sum; it is refused")
    return frozenset(value)


def _payload(message: Message) -> bytes:
    record = message.content.array_records.get(messages.ARRAYS)
    if record is None:
        raise SecureAggregationError("the message has no list of neighbours; it is refused")
    return wire.unpack(record)


def _keep(context: Context, own: Own) -> None:
    context.state[SECURE] = wire.pack_many(own)


def _recall(message: Message, context: Context) -> Own:
    """Return what is kept of the message's round; raises SecureAggregationError for another's."""
    session = _told(message)
    record = context.state.array_records.get(SECURE)
    own = {} if record is None else wire.unpack_many(record)
    if own.get(SESSION) != session:
        raise SecureAggregationError(
            "the message is of a round of secure aggregation that this client is not in"
        )
    return own
