"""How soon Flower 1.41 asks again for a part of a message that is not there yet.

A message is announced before its parts have come, and whoever asks for one too early waits a
second, which is most of a small round. A touch of Flower's internals that both ends need;
`simulations/flower_internals.py` has the others.
"""

AGAIN_SECONDS = 0.05


def ask_again_soon(seconds: float = AGAIN_SECONDS) -> None:
    """Let this process ask again after `seconds`, then twice as long, as Flower's own wait grows.

    Where a later Flower has no such wait, nothing is changed.
    """
    from flwr.supercore.inflatable import inflatable_utils

    for name in ("pull_objects", "pull_and_inflate_object_from_tree"):
        defaults = getattr(getattr(inflatable_utils, name, None), "__kwdefaults__", None) or {}
        if "initial_backoff" in defaults:
            defaults["initial_backoff"] = seconds
