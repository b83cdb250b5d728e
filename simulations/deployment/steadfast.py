"""What keeps a node in its fleet: signs of life, coming back soon, and saying why it cannot.

Flower 1.41's SuperNode shows a sign of life every 20 seconds and is believed for a minute; when
killed and started again it is refused for the rest of that minute and ends; it ends, too, when the
SuperLink has trouble of its own (a full disk), and doesn't say that its clock is wrong. All touches
of Flower's internals are in here and in `flower_internals.py`.
"""

import email.utils
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedsparse.flower_pulls import outlast_cuts

HEARTBEAT, HEARTBEAT_SECONDS = "FEDSPARSE_NODE_HEARTBEAT", 10.0
"""What a node promises between signs of life, the least that a SuperLink takes: it shows one every
3.5 to 4.5 s, and is taken for gone after twice what it promised."""
BELIEVED_SECONDS = 65.0
"""How long a SuperLink may take a killed node for alive, whoever's heartbeat it had."""
AGAIN_SECONDS = 1.0
AHEAD, BEHIND = 5.0, 305.0
"""Seconds by which Flower lets a node's clock be ahead of the SuperLink's, and behind it."""
EARLIER = (
    "the SuperLink takes an earlier life of this node for alive, or does not know its key; "
    "asking again for %.0f s"
)
HASH_LETTERS = 8
"""How many letters of its hash end the name of an app's folder."""
TROUBLE = 500
REFUSED, UNKNOWN = 412, 401


def stay_in_fleet() -> None:
    """Let this process's SuperNode show life more often, come back when refused, and tell why."""
    outlast_cuts()
    show_life(float(os.environ.get(HEARTBEAT, HEARTBEAT_SECONDS)))
    outlast_trouble()
    insist_on_activation(BELIEVED_SECONDS)
    tell_of_wrong_clocks()
    answer_for_dead_clients()


def replace(owner: type, name: str, function: Callable[..., Any]) -> None:
    """Put a function in the place of a method."""
    setattr(owner, name, function)


def show_life(seconds: float) -> None:
    """Promise a sign of life of this node at least every `seconds`."""
    from flwr.supercore import heartbeat
    from flwr.supernode import fleet_http_connection

    for module in (heartbeat, fleet_http_connection):
        vars(module)["HEARTBEAT_DEFAULT_INTERVAL"] = seconds


def outlast_trouble() -> None:
    """Ask again, as when the network is down, where the SuperLink answers that it has failed."""
    import httpx
    from flwr.supercore.retry import http_retry
    from flwr.supernode.fleet_http_client import FleetHttpClient

    vars(http_retry)["_RETRYABLE_STATUS_CODES"] |= {TROUBLE}
    plain: Callable[..., Any] = FleetHttpClient.SendNodeHeartbeat

    def send(client: Any, request: Any) -> Any:
        try:
            return plain(client, request)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == TROUBLE:  # else no sign of life would follow
                raise httpx.ReadError("the SuperLink has failed") from error
            raise

    replace(FleetHttpClient, "SendNodeHeartbeat", send)


def insist_on_activation(seconds: float) -> None:
    """Ask for a place again while the SuperLink takes an earlier life of this node for alive."""
    import httpx
    from flwr.supercore.logger import log
    from flwr.supernode.fleet_http_client import FleetHttpClient

    plain: Callable[..., Any] = FleetHttpClient.ActivateNode

    def activate(client: Any, request: Any) -> Any:
        deadline, told = time.monotonic() + seconds, False
        while True:
            try:
                return plain(client, request)
            except httpx.HTTPStatusError as error:
                if error.response.status_code != REFUSED or time.monotonic() > deadline:
                    raise
            if not told:
                log(logging.WARNING, EARLIER, seconds)
                told = True
            time.sleep(AGAIN_SECONDS)

    replace(FleetHttpClient, "ActivateNode", activate)


def tell_of_wrong_clocks() -> None:
    """Say by how much a clock is wrong where the SuperLink refuses a request for it."""
    from flwr.supercore.logger import log
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    plain: Callable[..., Any] = NodeAuthHttpInterceptor.intercept

    def intercept(auth: Any, context: Any, call_next: Any) -> Any:
        response = plain(auth, context, call_next)
        if response.status_code == UNKNOWN:
            log(logging.ERROR, refusal(response.headers.get("date"), time.time()))
        return response

    replace(NodeAuthHttpInterceptor, "intercept", intercept)


def refusal(date: str | None, here: float) -> str:
    """Return why a SuperLink refuses this node, by the date of its answer and the time here."""
    try:
        ahead = here - email.utils.parsedate_to_datetime(str(date)).timestamp()
    except ValueError:
        ahead = 0.0
    if -BEHIND < ahead < AHEAD:
        return "the SuperLink does not know this node's key; register it there"
    return (
        f"this node's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the "
        f"SuperLink's, which takes {AHEAD:.0f} s ahead and {BEHIND:.0f} s behind at most; set it"
    )


def answer_for_dead_clients() -> None:
    """Let a node answer at once for a client of which it is told that its process died."""
    from flwr.app import Error
    from flwr.common.constant import ErrorCode, SubStatus
    from flwr.supercore.constant import TaskType
    from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

    plain: Callable[..., Any] = InMemoryNodeState.finish_task

    def finish(state: Any, task_id: int, sub_status: str, details: str) -> Any:
        finished = plain(state, task_id, sub_status, details)
        if finished and sub_status == SubStatus.FAILED:
            for task in state.get_tasks(task_ids=[task_id]):
                if task.type == TaskType.CLIENT_APP:
                    with state.lock_msg_store:
                        for entry in state.msg_store.values():
                            mine = entry.message.metadata.run_id == task.run_id
                            if mine and not entry.message.metadata.reply_to_message_id:
                                entry.is_retrieved = True  # also what it had no time to take
                    error = Error(ErrorCode.CLIENT_APP_CRASHED, details)
                    state._store_error_replies({task.run_id}, error)
        return finished

    replace(InMemoryNodeState, "finish_task", finish)


def install_whole_apps() -> None:
    """Let a client's process install the app of its run whole or not at all.

    Flower copies its files one by one, and takes what a full disk or a kill left of them for the
    app, in every run from then on.
    """
    from flwr.supercore.utils import get_flwr_home
    from flwr.supernode.runtime import run_clientapp

    module = vars(run_clientapp)
    module["install_from_fab"] = whole(module["install_from_fab"], get_flwr_home())


def whole(plain: Callable[..., Path], home: Path) -> Callable[..., Path]:
    """Return Flower's way to install an app, put in place once it is complete."""

    def install(content: bytes, skip_prompt: bool = True) -> Path:
        digest = hashlib.sha256(content).hexdigest()
        for there in (home / "apps").glob(f"*.{digest[:HASH_LETTERS]}"):
            return there
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".app-", dir=home) as made:
            new = plain(content, install_dir=Path(made), skip_prompt=skip_prompt)
            place = home / new.relative_to(made)
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):  # another client's was faster
                    new.rename(place)
        return place

    return install


def report_death(address: str, token: str, reason: str) -> None:
    """Tell a node that the process of a client died, whose `token` it had; errors are nobody's."""
    import httpx
    from flwr.proto.runtime_pb2 import PushTaskOutputRequest
    from flwr.supercore.interceptors import (
        RuntimeTokenHttpInterceptor,
        RuntimeVersionHttpInterceptor,
    )
    from flwr.supercore.runtime import RuntimeHttpClient

    client = RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(token),
        ],
    )
    try:
        client.PushTaskOutput(PushTaskOutputRequest(sub_status="failed", details=reason))
    except httpx.HTTPError:
        pass  # the node ended, or its client had finished; it finds out by itself
    finally:
        client.close()
