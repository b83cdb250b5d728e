"""What this machine and a Ray cluster can carry, looked at before anything is started.

Ray itself would wait for ever for a cluster that is not there, and crawl under more workers
than its machine has room for.
"""

import os
import socket

from fedsparse.config import Config, EngineConfig
from fedsparse.errors import ConfigError, GridError

WORKERS_PER_CORE = 4
"""Workers for each core of this machine up to which oversubscription is put up with."""

CONNECT_SECONDS = 3.0
"""How long a cluster may take to accept a connection."""

ANSWER_SECONDS = 5.0
"""How long it may then take to say that it is well."""


def check(engine: EngineConfig) -> None:
    """Refuse an engine that could not start; raises ConfigError and GridError."""
    if engine.name in ("auto", "ray") and engine.ray_address is not None:
        check_address(engine.ray_address)
    elif engine.name != "inline" and engine.workers is not None:
        check_workers(engine.workers)


def workers_of(config: Config) -> int:
    """Return how many clients train at once: as set, or one a core of this machine."""
    return config.engine.workers or len(os.sched_getaffinity(0))


def check_workers(workers: int) -> None:
    """Refuse more workers than this machine has room for; raises ConfigError."""
    cores = len(os.sched_getaffinity(0))
    most = WORKERS_PER_CORE * cores
    if workers > most:
        raise ConfigError(
            f"engine.workers = {workers}: this machine has {cores} core(s) and takes "
            f"{WORKERS_PER_CORE} workers on each; set {most} or fewer"
        )


def check_address(address: str) -> None:
    """Refuse a cluster that does not answer, or what is none; raises GridError.

    Ray's head answers gRPC's standard health check, and other servers do not: given their
    port, Ray would try for ever. `auto` and `local` are left to Ray.
    """
    if not address:
        raise GridError("engine.ray_address is empty; leave it out, or give a cluster's HOST:PORT")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    if not (host and port.isdecimal()):
        raise GridError(
            f"engine.ray_address = '{address}' is no HOST:PORT; give what `ray start --head` "
            "prints, such as 10.0.0.1:6379, or auto for a cluster that this machine belongs to"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError):
        raise GridError(
            f"no Ray cluster answers at engine.ray_address = '{address}'; start one with "
            "`ray start --head`, or leave engine.ray_address out"
        ) from None
    if address.startswith("ray://"):
        raise GridError(
            f"engine.ray_address = '{address}' is of Ray Client, which carries no streams; give "
            "the address that `ray start --head` prints, host:port, without ray://"
        )
    if os.environ.get("RAY_USE_TLS", "0") == "0" and not _is_well(address):
        raise GridError(
            f"what answers at engine.ray_address = '{address}' is no Ray cluster; give the address "
            "that `ray start --head` prints, by default its port 6379"
        )


def _is_well(address: str) -> bool:
    """Ask for gRPC's health check; a refusal for want of a token is an answer as well."""
    import grpc  # type: ignore[import-untyped]
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

    silent = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    no_ray = silent | {grpc.StatusCode.UNIMPLEMENTED}
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS
            )
        except grpc.RpcError as error:
            return error.code() not in no_ray
    return True
