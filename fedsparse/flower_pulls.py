"""How soon Flower 1.41 asks again: for a part of a message, and after its connection was cut.

A message is announced before its parts have come, and whoever asks for one too early waits a
second, which is most of a small round. Touches of Flower's internals that both ends need;
`simulations/flower_internals.py` has the others.
"""

from typing import Any

AGAIN_SECONDS = 0.05
CUT = ("eof", "timed out", "reset")
"""What errors of TLS say when it is the network that failed."""


def ask_again_soon(seconds: float = AGAIN_SECONDS) -> None:
    """Let this process ask again after `seconds`, then twice as long, as Flower's own wait grows.

    Where a later Flower has no such wait, nothing is changed.
    """
    from flwr.supercore.inflatable import inflatable_utils

    for name in ("pull_objects", "pull_and_inflate_object_from_tree"):
        defaults = getattr(getattr(inflatable_utils, name, None), "__kwdefaults__", None) or {}
        if "initial_backoff" in defaults:
            defaults["initial_backoff"] = seconds


def outlast_cuts() -> None:
    """Let this process ask again when its network was cut within a TLS handshake.

    Flower takes every error of TLS for a wrong certificate, and ends: a node, its whole process.
    """
    import httpx
    from flwr.supercore.protobuf.client import ProtobufClient

    plain: Any = ProtobufClient._send

    def send(client: Any, context: Any, **options: Any) -> Any:
        try:
            return plain(client, context, **options)
        except httpx.TransportError as error:
            if not any(word in str(error).lower() for word in CUT):
                raise
            raise httpx.ConnectError("the connection was cut") from error  # without "TLS"

    if not hasattr(plain, "outlasts"):
        vars(send)["outlasts"] = True
        name = "_send"
        setattr(ProtobufClient, name, send)
