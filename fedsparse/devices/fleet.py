"""The fleet of a run: what device each client has, by seed, without a million objects.

Clients are drawn in blocks of 1024, each from its own stream, so one client costs one
block and all of them cost a few arrays; both ways give the same bits.
"""

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsparse import seeds
from fedsparse.config import FleetConfig
from fedsparse.devices import mixture, traces
from fedsparse.devices.device import Device, Hours
from fedsparse.devices.mixture import Mixture, Spread
from fedsparse.devices.profile import Profile
from fedsparse.errors import ConfigError

BLOCK = 1024
"""Clients drawn from one stream."""

OWN_COLUMNS = {"profile", "battery_joules", "shift_hours"}
"""Columns that are not a figure of the profile times a factor."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Columns:
    """Figures of all clients, one entry each, in order of client; the arrays are read-only.

    `profile` is a position in `Fleet.profiles`. `battery_joules` is inf on mains. With a
    network trace, the speeds are those at simulated second 0.
    """

    profile: NDArray[np.int64]
    dense_flops: Floats
    memory_bytes: Floats
    storage_bytes: Floats
    up_bytes_per_second: Floats
    down_bytes_per_second: Floats
    latency_seconds: Floats
    battery_joules: Floats
    dropout: Floats
    shift_hours: Floats
    """Hours by which a client's peak is later than its profile's."""


@dataclass(frozen=True)
class _Draws:
    """What is drawn for some clients: a profile, factors, and hours."""

    profile: NDArray[np.int64]
    compute: Floats
    bandwidth: Floats
    memory: Floats
    latency: Floats
    hours: Floats


def _drawn(seed: int, block: int, shares: tuple[float, ...], spread: Spread) -> _Draws:
    """Draw one block of clients. Every factor is drawn, used or not, so none moves another."""
    rng = seeds.stream(seed, 0, block, "devices")
    place = rng.random(BLOCK)
    compute, bandwidth, memory, latency = rng.standard_normal((4, BLOCK))
    hours = rng.uniform(-1.0, 1.0, BLOCK)
    edges = np.cumsum(shares)[:-1]
    return _Draws(
        profile=np.searchsorted(edges, place, side="right"),
        compute=np.exp(spread.compute * compute),
        bandwidth=np.exp(spread.bandwidth * bandwidth),
        memory=np.exp(spread.memory * memory),
        latency=np.exp(spread.latency * latency),
        hours=spread.hours * hours,
    )


_kept = lru_cache(maxsize=64)(_drawn)


@dataclass(frozen=True)
class Fleet:
    """The devices of a run's clients, by client id; made by `load`."""

    clients: int
    mixture: Mixture
    seed: int
    start_hour: float = 0.0
    dropout: float | None = None
    network: traces.NetworkTraces | None = None
    speeds: traces.SpeedTrace | None = None
    hours: traces.PresenceTrace | None = None
    digest: str = ""
    """What tells the figures and traces of this fleet from others."""

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The kinds of devices in this fleet."""
        return self.mixture.profiles

    def device(self, client: int) -> Device:
        """Return one client's device; raises ConfigError for a client that is not there."""
        if not 0 <= client < self.clients:
            raise ConfigError(f"client {client}: this fleet has clients 0 to {self.clients - 1}")
        row, place = self._row(client)
        profile = self.profiles[int(row.profile[place])]
        presence = self.hours.of(client) if self.hours else None
        return Device(
            client=client,
            profile=profile.name,
            dense_flops=float(row.dense_flops[place]),
            memory_bytes=float(row.memory_bytes[place]),
            storage_bytes=float(row.storage_bytes[place]),
            up_bytes_per_second=float(row.up_bytes_per_second[place]),
            down_bytes_per_second=float(row.down_bytes_per_second[place]),
            latency_seconds=float(row.latency_seconds[place]),
            battery_joules=profile.battery_joules,
            dropout=float(row.dropout[place]),
            figures=profile,
            presence=presence
            or Hours(
                profile.availability,
                shift=float(row.shift_hours[place]),
                start_hour=self.start_hour,
                seed=self.seed,
                client=client,
            ),
            network=self.network.of(client) if self.network else None,
        )

    def _row(self, client: int) -> tuple[Columns, int]:
        """Return columns that hold a client, and its place: those of all if they were made."""
        if "_columns" in self.__dict__:
            return self._columns, client
        block, place = divmod(client, BLOCK)
        drawn = _kept(self.seed, block, self.mixture.shares, self.mixture.spread)
        one = slice(place, place + 1)
        alone = _Draws(*(getattr(drawn, f.name)[one] for f in fields(drawn)))
        return self._figures(np.array([client]), alone), 0

    def columns(self) -> Columns:
        """Return the figures of all clients as arrays, made once; about 80 bytes a client."""
        return self._columns

    @cached_property
    def _columns(self) -> Columns:
        blocks = [
            _drawn(self.seed, block, self.mixture.shares, self.mixture.spread)
            for block in range(-(-self.clients // BLOCK))
        ]
        together = _Draws(
            *(
                np.concatenate([getattr(block, f.name) for block in blocks])[: self.clients]
                for f in fields(_Draws)
            )
        )
        found = self._figures(np.arange(self.clients), together)
        for field in fields(found):
            getattr(found, field.name).setflags(write=False)
        return found

    def _figures(self, clients: NDArray[np.int64], drawn: _Draws) -> Columns:
        """Return the figures of some clients: the profile's, times the factors, or a trace's."""
        own = {key: column[drawn.profile] for key, column in self._by_profile.items()}
        speed = {
            "dense_flops": own["dense_flops"] * drawn.compute,
            "up_bytes_per_second": own["up_bytes_per_second"] * drawn.bandwidth,
            "down_bytes_per_second": own["down_bytes_per_second"] * drawn.bandwidth,
        }
        if self.speeds:
            flops, bandwidth = self.speeds.of(clients)
            speed = {
                "dense_flops": flops,
                "up_bytes_per_second": bandwidth,
                "down_bytes_per_second": bandwidth.copy(),
            }
        if self.network:
            up, down = self.network.at_start(clients)
            speed |= {"up_bytes_per_second": up, "down_bytes_per_second": down}
        dropout = own["dropout"]
        return Columns(
            profile=drawn.profile,
            memory_bytes=own["memory_bytes"] * drawn.memory,
            storage_bytes=own["storage_bytes"],
            latency_seconds=own["latency_seconds"] * drawn.latency,
            battery_joules=own["battery_joules"],
            dropout=dropout if self.dropout is None else np.full_like(dropout, self.dropout),
            shift_hours=drawn.hours,
            **speed,
        )

    @cached_property
    def _by_profile(self) -> dict[str, Floats]:
        """The profiles' figures as arrays, one entry a profile."""
        keys = [f.name for f in fields(Columns) if f.name not in OWN_COLUMNS]
        columns = {key: np.array([getattr(p, key) for p in self.profiles], float) for key in keys}
        battery = [np.inf if p.battery_joules is None else p.battery_joules for p in self.profiles]
        return columns | {"battery_joules": np.array(battery, float)}


def load(fleet: FleetConfig, seed: int) -> Fleet:
    """Return the fleet that `[fleet]` asks for, with its traces, as the files are now.

    Raises ConfigError when profile is unset or a file is wrong, UnknownNameError for a
    name that is not known, DataError for a trace that cannot be used.
    """
    if fleet.profile is None:
        raise ConfigError(
            "fleet.profile is not set; name a device or a fleet of `fedsparse list devices`"
        )
    network, speeds, hours = fleet.network_trace, fleet.device_trace, fleet.availability_trace
    found = mixture.find(fleet.profile)
    return Fleet(
        clients=fleet.clients,
        mixture=found,
        seed=seed,
        start_hour=fleet.start_hour,
        dropout=fleet.dropout,
        network=traces.read_network(Path(network)) if network else None,
        speeds=traces.read_speeds(Path(speeds)) if speeds else None,
        hours=traces.read_presence(Path(hours)) if hours else None,
        digest=_digest(found, [path for path in (network, speeds, hours) if path]),
    )


def _digest(found: Mixture, files: list[str]) -> str:
    """Return what tells these devices from others, whatever their files are called."""
    digest = hashlib.sha256(repr((found.profiles, found.shares, found.spread)).encode())
    for file in files:
        digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
    return digest.hexdigest()
