"""Runs in a process of its own: a client answers messages where torch is, or where there is none.

Called with a file of messages, as `written` makes it, and `without` or `with`. Prints the replies
and whether torch was imported.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedsparse.state_codec import plain_state, record_state


class NoTorch:
    """A finder that knows no torch, as an installation without it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Refuse torch, and leave the rest to other finders."""
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")


def main() -> None:
    """Answer every message of the file, in order, with one memory."""
    if sys.argv[2] == "without":
        sys.meta_path.insert(0, NoTorch())
    from flwr.app import Context, Message, RecordDict

    from clients.client_app import app
    from simulations import flower_internals as internals

    internals.become_server(1)
    held, told = RecordDict(), []
    for kind, plain in json.loads(Path(sys.argv[1]).read_text(), object_hook=_unpacked):
        asked = Message(record_state(plain), 1, kind)
        internals.number(asked, "message")
        node = {"partition-id": 0}
        context = Context(run_id=1, node_id=1, node_config=node, state=held, run_config={})
        try:
            told.append(digested(plain_state(app(asked, context).content)))
        except Exception as error:
            told.append(f"{type(error).__name__}: {error}")
        held = context.state
    print(json.dumps({"replies": told, "torch": "torch" in sys.modules}))


def written(messages: Iterable[Any]) -> str:
    """Return messages as text."""

    plain = [(m.metadata.message_type, plain_state(m.content)) for m in messages]
    return json.dumps(plain, default=lambda data: {"b64": base64.b64encode(data).decode()})


def digested(plain: Any) -> Any:
    """Return a record with a digest in the place of bytes."""
    if isinstance(plain, bytes):
        return hashlib.sha256(plain).hexdigest()
    if isinstance(plain, dict):
        return {key: digested(value) for key, value in plain.items()}
    return plain


def _unpacked(found: dict[str, Any]) -> Any:
    return base64.b64decode(found["b64"]) if found.keys() == {"b64"} else found


if __name__ == "__main__":
    main()
