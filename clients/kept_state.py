"""A client's state on its node's disk, so that it survives the node's restart.

Flower holds `Context.state` in a SuperNode's memory for the length of a run. Where the node is told
`state-path`, the disk holds it, too: a file for each run and client, replaced as a whole after each
message that changed the state, before the reply leaves. What is on the disk counts, whatever
Flower's memory holds.

A reply is a pure function of its message and the state, so a message that is asked again must find
the state that it found before. A node may die after the file was replaced and before the reply
left; a server may ask a round again. The file therefore holds two states, before and after its last
message, and which message that was: its kind and the run's configuration and plan, with the round.
The same message finds the first, any other the second. One of an earlier round than the last finds
neither and is refused, as is one that meets a file that is damaged or of another run: to begin anew
without a word would change the run's result. Where the file cannot be written, as on a full disk,
the message fails and the old state stays.

What a client told under local privacy stays in both states: it is random, and the same message
would be answered under other noise, again and again.

What is secret of a round of secure aggregation never goes to the disk, and is never put back: each
of its steps is answered once, or a server could ask again for what it must not have as well. A node
that restarts within such a round is lost to it.
"""

import errno
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients import memory
from clients.job import client_id
from fedsparse import messages, state_codec
from fedsparse.data import node
from fedsparse.errors import StateError
from fedsparse.runs.atomic import write_file
from fedsparse.state_codec import State

PATH = messages.STATE_PATH_KEY
MAGIC = b"fedsparse state 1\n"
DIGEST_BYTES = 32
MOST_RUNS = 8
"""Runs of which a client's state is kept; those that were written to longest ago go."""
LEAST_SECONDS = 7 * 86400.0
"""Age below which none goes: a run that others overtook may be in progress still, and a client
that meets it without its state would begin anew without a word."""

UNREADABLE = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError),
    *(RecursionError, OverflowError, MemoryError),
)
"""What comes of JSON and records that are other than they should be."""

PASSED = (messages.IDENTIFY, *messages.MASKING)
"""Kinds of messages that change nothing of what is kept here."""

Answer = Callable[[Message, Context], Message]


@dataclass(frozen=True)
class Kept:
    """What a state's file holds: the last message that changed it, its round, and both states."""

    asked: str
    round: int
    before: State
    after: State


def keeping(message: Message, context: Context, answer: Answer) -> Message:
    """Answer a message with the state of the node's disk, where it is told to keep it there.

    A Flower mod. A message that fails leaves the state as it was, in memory as on the disk. Raises
    StateError where the file cannot be used or written, and what answering raises.
    """
    path = None if message.metadata.message_type in PASSED else place_of(context)
    if path is None:
        return _whole(message, context, answer)
    asked, number = named(message)
    kept = None if not path.exists() else read(path)
    if kept is not None:
        secret = context.state.get(messages.SECURE)
        context.state = records(_found(path, kept, asked, number))
        if secret is not None:
            context.state[messages.SECURE] = secret
    before = plain(context.state)

    def kept_on_disk(message: Message, context: Context) -> Message:
        reply = answer(message, context)
        after = plain(context.state)
        if after != before:
            write(path, Kept(asked, number, before, after))
        return reply

    return _whole(message, context, kept_on_disk)


def _whole(message: Message, context: Context, answer: Answer) -> Message:
    """Answer, or put the records of the state back as they were."""
    before = dict(context.state.items())
    try:
        return answer(message, context)
    except BaseException:
        context.state = RecordDict(before)
        raise


def _found(path: Path, kept: Kept, asked: str, number: int) -> State:
    """Return the state that a message has to meet; raises StateError where it is gone."""
    if asked == kept.asked:
        return _answered(kept)
    if number < kept.round:
        raise StateError(
            f"'{path}' holds the state after round {kept.round}, and round {number} is asked: what "
            "this client kept then is gone; start the run anew"
        )
    return kept.after


def _answered(kept: Kept) -> State:
    """Return the state before the last message, with what is never taken back of that after it."""
    after = kept.after.get("arrays", {})
    told = {name: after[name] for name in (memory.ANSWER,) if name in after}
    arrays = {**kept.before.get("arrays", {}), **told}
    return {**kept.before, "arrays": arrays} if told else kept.before


def place_of(context: Context) -> Path | None:
    """Return where a client's state of a run lies; None where the node is not told to keep it."""
    folder = node.text_of(context.node_config, PATH)
    if folder is None:
        return None
    name = f"run-{context.run_id}-client-{client_id(context)}.state"
    return node.at_home(folder, PATH) / name


def named(message: Message) -> tuple[str, int]:
    """Return what tells a message from others of its run, and the round that it is of.

    The model is left out: it follows from the rest, and may come in another form.
    """
    record = message.content.config_records.get(messages.CONFIG, ConfigRecord())
    told = {key: str(value) for key, value in sorted(record.items())}
    text = json.dumps([message.metadata.message_type, told])
    number = record.get(messages.ROUND_KEY, 0)
    return hashlib.sha256(text.encode()).hexdigest(), number if isinstance(number, int) else 0


# -- the file ------------------------------------------------------------------------------


def write(path: Path, kept: Kept) -> None:
    """Replace a client's state, or leave the old one as it is and raise StateError.

    Its owner alone can read it: what a client keeps comes of its samples.
    """
    content = encode(kept)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(path, content, mode=0o600)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            why = "the disk is full; free some space"
        else:
            why = f"{error.strerror or error}; check the folder and its permissions"
        raise StateError(f"'{path}' cannot be written: {why}; the old state stays") from None
    forget_old_runs(path)


def forget_old_runs(path: Path) -> None:
    """Remove a client's states of all but the last runs, unless they were written lately.

    That of the run whose message is being answered stays in any case.
    """
    client = path.name.rpartition("-client-")[2]
    with suppress(OSError):
        written = {p: p.stat().st_mtime for p in path.parent.glob(f"run-*-client-{client}")}
        newest_first = sorted(written, key=written.__getitem__, reverse=True)
        latest = time.time() - LEAST_SECONDS
        for old in newest_first[MOST_RUNS:]:
            if old != path and written[old] < latest:
                old.unlink()


def encode(kept: Kept) -> bytes:
    """Return a file: a magic, JSON with the places of its bytes, those bytes, a SHA-256 of all."""
    parts: dict[str, bytes] = {}
    bodies = []
    for state in (kept.before, kept.after):
        body, own = state_codec.encode(state)
        bodies.append(json.loads(body))
        parts |= {hashlib.sha256(part).hexdigest(): part for part in own}
    head = {
        "asked": kept.asked,
        "round": kept.round,
        "states": bodies,
        "parts": [[name, len(part)] for name, part in parts.items()],
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    content = b"".join([MAGIC, len(text).to_bytes(8, "little"), text, *parts.values()])
    return content + hashlib.sha256(content).digest()


def read(path: Path) -> Kept:
    """Return what a file holds; raises StateError where it is damaged or foreign."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StateError(f"'{path}' cannot be read: {error.strerror or error}") from None
    try:
        return decode(content)
    except UNREADABLE:
        raise StateError(
            f"'{path}' is no whole state of a client; put it back as it was, or remove it and "
            "start the run anew, for without it the run's result is another"
        ) from None


def decode(content: bytes) -> Kept:
    """Return what a file's bytes hold; raises ValueError and its like for any other."""
    body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if not body.startswith(MAGIC) or hashlib.sha256(body).digest() != digest:
        raise ValueError("no state")
    begin = len(MAGIC) + 8
    size = int.from_bytes(body[len(MAGIC) : begin], "little")
    head = json.loads(body[begin : begin + size])
    place, parts = begin + size, {}
    for name, length in head["parts"]:
        if not isinstance(length, int) or not 0 <= length <= len(body) - place:
            raise ValueError("a part outside the file")
        parts[bytes.fromhex(name)] = body[place : place + length]
        place += length
    before, after = (
        state_codec.decode(json.dumps(state).encode(), parts.__getitem__)
        for state in head["states"]
    )
    kept = Kept(str(head["asked"]), int(head["round"]), before, after)
    for state in (before, after):
        records(state)
    return kept


# -- Flower's records ----------------------------------------------------------------------

KINDS = ("arrays", "metrics", "configs")


def plain(state: RecordDict) -> State:
    """Return a state as `plain_state` does, without secrets of a round of secure aggregation."""
    kept = {name: record for name, record in state.items() if name != messages.SECURE}
    return state_codec.plain_state(RecordDict(kept))


def records(state: Mapping[str, Any]) -> RecordDict:
    """Return the records that `plain` took apart; raises TypeError or ValueError for others."""
    if unknown := set(state) - set(KINDS):
        raise ValueError(f"no kinds of records: {unknown}")
    for entries in state.get("arrays", {}).values():
        if not all(isinstance(entry["data"], bytes) for entry in entries.values()):
            raise TypeError("an array without bytes")
    return state_codec.record_state(state)
