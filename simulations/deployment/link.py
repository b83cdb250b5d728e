"""A SuperLink that nodes alone may reach: `python -m simulations.deployment.link` and
flower-superlink's own options.

Flower serves nodes and its own command line on one port, and asks the command line for no
password: whoever reaches that port may register keys and have any program run at every node. Here
only what nodes need is answered to other machines; `flwr` is for the SuperLink's own machine.
"""

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Send], Awaitable[None]]

FOR_NODES = "/v1/fleet/"
"""Where what nodes ask begins; the SuperLink checks each such request's signature."""
REFUSAL = b"only a node's requests are answered from outside; use `flwr` on the SuperLink's machine"


class NodesOnly:
    """Answers 403 to a request from another machine that is not a node's."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Pass a request on or refuse it; scope, receive and send are ASGI's."""
        if scope["type"] == "lifespan" or allowed(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSAL})


def allowed(scope: Scope) -> bool:
    """Tell whether a request is a node's, or comes from this machine."""
    path = str(scope["path"])
    if scope["type"] == "http" and path.startswith(FOR_NODES) and ".." not in path:
        return True
    return is_loopback((scope.get("client") or ("",))[0])


def is_loopback(host: str) -> bool:
    """Tell whether an address is this machine's own, also one of IPv4 written as IPv6."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def main() -> None:
    """Be Flower's SuperLink, for nodes alone, until ended."""
    from simulations.deployment.processes import quieten

    quieten()

    from simulations.flower_internals import screen_superlink

    screen_superlink(NodesOnly)

    from flwr.superlink.cli.flower_superlink import flower_superlink

    flower_superlink()


if __name__ == "__main__":
    main()
