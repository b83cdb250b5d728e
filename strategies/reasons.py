"""Why a client has no usable reply, in plain words: what rows, the report and messages show.

Real nodes and Flower's engine send an exception as Python writes its class, `<class 'OSError'>:
<'...'>`, our simulator as `OSError: ...`. Both become one text here. It comes from a client, so
nobody may trust it: it is one short line without control characters, whatever was sent.
"""

import re

from flwr.app import Message

from fedsparse import errors
from fedsparse.errors import FedSparseError, one_line

AS_FLOWER_SENDS = re.compile(r"<class '([^']*)'>:<'(.*)'>", re.DOTALL)
IN_ENGINE = "Exception ClientAppException occurred. Message: "
"""What Flower's engine puts before an exception's text, behind the traceback; the class is lost."""

OURS = frozenset(
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, FedSparseError)
)
"""Classes whose messages say all by themselves."""


def reason_of(reply: Message) -> str:
    """Return why a reply is an error, as `plain` tells it."""
    return plain(reply.error.reason)


def plain(reason: str | None) -> str:
    """Return a reason in plain words: an error of ours by its message, another after its class."""
    told = (reason or "").strip()
    if found := AS_FLOWER_SENDS.fullmatch(told):
        kind, text = found.group(1).rpartition(".")[2], found.group(2)
        if IN_ENGINE in text:
            return one_line(text.rpartition(IN_ENGINE)[2])
        text = " ".join(text.split())
        told = f"{kind}: {text}" if text else kind
    kind, _, text = told.partition(": ")
    return one_line(text if kind in OURS and text else told)
