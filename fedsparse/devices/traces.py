"""Traces of real devices: bandwidth over time, speeds by client, hours by client.

The clients of a run are dealt to a trace's clients by modulo, in order of their ids, as
FedScale does (Lai et al. 2022, "FedScale", ICML). Second 0 of a trace is simulated
second 0. Files are CSV or JSON; pickles are never read.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsparse.devices.reading import shown
from fedsparse.devices.trace_files import (
    Row,
    client_of,
    in_order,
    kind_of,
    number,
    objects,
    rows,
)
from fedsparse.errors import DataError

Floats = NDArray[np.float64]

REFERENCE_FLOPS = 1.8e9
"""FLOPs of training on one sample of the model that device traces were timed with.

An assumption: MobileNet-class, 300 million multiply-adds, 3 passes of 2 FLOPs each.
"""

PASSES = 3.0
"""Training takes three times `computation`, which times inference (FedScale's factor)."""

KILOBIT = 125.0
"""Bytes of a kilobit: 1000 bits."""


# -- bandwidth over time ---------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """Speed in one direction: `speeds[i]` bytes a second from `times[i]` to the next time.

    The first time is 0; the last speed is positive and holds for ever.
    """

    times: Floats
    speeds: Floats
    sent: Floats
    """Bytes that have gone through by each time."""

    @classmethod
    def of(cls, times: Sequence[float], speeds: Sequence[float]) -> "Link":
        """Make a link from times in seconds and speeds in bytes a second."""
        starts, rates = np.asarray(times, float), np.asarray(speeds, float)
        sent = np.concatenate([[0.0], np.cumsum(np.diff(starts) * rates[:-1])])
        return cls(starts, rates, sent)

    def seconds(self, size: ArrayLike, at: ArrayLike) -> Floats:
        """Return how long `size` bytes take from second `at`; zero speed waits.

        Exact for speeds that are constant between times. Arrays are taken together.
        """
        size, at = np.broadcast_arrays(np.asarray(size, float), np.asarray(at, float))
        here = np.searchsorted(self.times, at, side="right") - 1
        ends = np.append(self.times[1:], np.inf)[here]
        speed = self.speeds[here]
        left = size - speed * np.where(np.isinf(ends), 0.0, ends - at)
        within = np.isinf(ends) | (left <= 0)
        direct = size / np.where(speed > 0, speed, 1.0)
        # Past this stretch: the first time by which the rest has gone, less one.
        after = np.minimum(here + 1, len(self.times) - 1)
        target = self.sent[after] + np.maximum(left, 0.0)
        last = np.maximum(np.searchsorted(self.sent, target, side="left") - 1, after)
        rate = np.where(self.speeds[last] > 0, self.speeds[last], 1.0)
        waited = self.times[last] - at + (target - self.sent[last]) / rate
        return np.asarray(np.where(size == 0, 0.0, np.where(within, direct, waited)))


@dataclass(frozen=True)
class NetworkTrace:
    """A trace's client: its link in each direction."""

    up: Link
    down: Link


@dataclass(frozen=True)
class NetworkTraces:
    """The links of all clients of a network trace."""

    links: tuple[NetworkTrace, ...]

    def of(self, client: int) -> NetworkTrace:
        """Return the links that a client of the run is dealt."""
        return self.links[client % len(self.links)]

    def at_start(self, clients: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Return bytes a second, up and down, of clients at second 0."""
        place = clients % len(self.links)
        up, down = self._first
        return up[place], down[place]

    @cached_property
    def _first(self) -> tuple[Floats, Floats]:
        up = np.array([link.up.speeds[0] for link in self.links])
        return up, np.array([link.down.speeds[0] for link in self.links])


def read_network(path: Path) -> NetworkTraces:
    """Read a network trace; raises DataError, one line with the line's number.

    Columns: seconds, up_bytes_per_second, down_bytes_per_second, and optionally client.
    """
    what = "network trace"
    kind_of(path, (".csv",), what)
    columns = ("seconds", "up_bytes_per_second", "down_bytes_per_second")
    found: dict[str, list[tuple[Row, float, float, float]]] = {}
    for row in rows(path, what, columns, optional=("client",)):
        client = client_of(row) if "client" in row.cells else ""
        seconds, up, down = (row.number(key) for key in columns)
        found.setdefault(client, []).append((row, seconds, up, down))
    return NetworkTraces(tuple(_links(found[client]) for client in in_order(found)))


def _links(lines: list[tuple[Row, float, float, float]]) -> NetworkTrace:
    first, last = lines[0], lines[-1]
    if first[1] != 0:
        raise DataError(f"{first[0].where}: seconds = {first[1]}: the first must be 0")
    for before, after in pairwise(lines):
        if after[1] <= before[1]:
            raise DataError(
                f"{after[0].where}: seconds = {after[1]} does not come after {before[1]}; "
                "sort the lines by time, each time once"
            )
    for key, speed in zip(("up", "down"), last[2:], strict=True):
        if speed == 0:
            raise DataError(
                f"{last[0].where}: {key}_bytes_per_second is 0 and stays so for ever; "
                "end with a positive speed"
            )
    times = [line[1] for line in lines]
    return NetworkTrace(
        up=Link.of(times, [line[2] for line in lines]),
        down=Link.of(times, [line[3] for line in lines]),
    )


# -- speeds by client ------------------------------------------------------------------------


@dataclass(frozen=True)
class SpeedTrace:
    """Dense FLOP/s and bytes a second of the clients of a device trace."""

    dense_flops: Floats
    bytes_per_second: Floats

    def of(self, clients: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Return FLOP/s and bytes a second that clients of the run are dealt."""
        place = clients % len(self.dense_flops)
        return self.dense_flops[place], self.bytes_per_second[place]


def read_speeds(path: Path) -> SpeedTrace:
    """Read a device trace in FedScale's format; raises DataError, one line.

    computation: milliseconds of inference a sample of the reference model;
    communication: kilobits a second, in both directions.
    """
    what, keys = "device trace", ("computation", "communication")
    found: dict[str, tuple[float, float]] = {}
    if kind_of(path, (".csv", ".json"), what) == ".csv":
        for row in rows(path, what, ("client", *keys)):
            client = client_of(row)
            if client in found:
                raise DataError(f"{row.where}: client {client!r} is there twice; keep one line")
            found[client] = _speed(row.number(keys[0]), row.number(keys[1]), row.where)
    else:
        for client, entry in objects(path, what, keys).items():
            where = f"{path}, client {client!r}"
            computation, communication = (number(entry[key], key, where) for key in keys)
            found[client] = _speed(computation, communication, where)
    table = np.array([found[client] for client in in_order(found)])
    return SpeedTrace(table[:, 0].copy(), table[:, 1].copy())


def _speed(computation: float, communication: float, where: str) -> tuple[float, float]:
    """Return FLOP/s of training and bytes a second."""
    for key, value in (("computation", computation), ("communication", communication)):
        if value == 0:
            raise DataError(f"{where}: {key} is 0; it must be positive")
    return REFERENCE_FLOPS * 1000 / (PASSES * computation), communication * KILOBIT


# -- hours by client -------------------------------------------------------------------------


@dataclass(frozen=True)
class Presence:
    """When a trace's client is there: from active[i] until inactive[i], again and again."""

    active: tuple[float, ...]
    inactive: tuple[float, ...]
    finish_time: float

    def available(self, at: float) -> bool:
        """Say whether the client is there at a second, modulo finish_time."""
        time = at % self.finish_time
        place = bisect_right(self.active, time) - 1
        return place >= 0 and time < self.inactive[place]


@dataclass(frozen=True)
class PresenceTrace:
    """The hours of all clients of an availability trace."""

    clients: tuple[Presence, ...]

    def of(self, client: int) -> Presence:
        """Return the hours that a client of the run is dealt."""
        return self.clients[client % len(self.clients)]


def read_presence(path: Path) -> PresenceTrace:
    """Read an availability trace in FedScale's format; raises DataError, one line.

    active and inactive: seconds at which each interval begins and ends; finish_time:
    seconds after which the trace begins anew.
    """
    what, keys = "availability trace", ("active", "inactive", "finish_time")
    found: dict[str, Presence] = {}
    if kind_of(path, (".csv", ".json"), what) == ".csv":
        grouped: dict[str, list[Row]] = {}
        for row in rows(path, what, ("client", *keys)):
            grouped.setdefault(client_of(row), []).append(row)
        for client, lines in grouped.items():
            starts, ends, finish = ([line.number(key) for line in lines] for key in keys)
            places = [line.where for line in lines]
            for place, each in zip(places, finish, strict=True):
                if each != finish[0]:
                    raise DataError(
                        f"{place}: finish_time = {each} and {finish[0]} for client {client!r}; "
                        "give one for all of its lines"
                    )
            found[client] = _presence(starts, ends, finish[0], places)
    else:
        for client, entry in objects(path, what, keys).items():
            where = f"{path}, client {client!r}"
            starts, ends = (_numbers(entry[key], key, where) for key in keys[:2])
            if len(starts) != len(ends):
                raise DataError(
                    f"{where}: {len(starts)} times in active and {len(ends)} in inactive; "
                    "give as many of each"
                )
            finish_time = number(entry["finish_time"], "finish_time", where)
            found[client] = _presence(starts, ends, finish_time, [where] * max(1, len(starts)))
    if not any(each.active for each in found.values()):
        raise DataError(f"'{path}': no client is ever there; give at least one interval")
    return PresenceTrace(tuple(found[client] for client in in_order(found)))


def _numbers(value: Any, key: str, where: str) -> list[float]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {key} = {shown(value)}: must be a list of seconds")
    return [number(each, key, where) for each in value]


def _presence(
    starts: list[float], ends: list[float], finish_time: float, places: list[str]
) -> Presence:
    """Return one client's hours, if its intervals are in order and do not overlap."""
    if finish_time == 0:
        raise DataError(f"{places[0]}: finish_time is 0; it must be positive seconds")
    for place, start, end in zip(places, starts, ends, strict=False):
        if end < start:
            raise DataError(f"{place}: inactive = {end} comes before active = {start}; swap them")
        if end > finish_time:
            raise DataError(
                f"{place}: inactive = {end} comes after finish_time = {finish_time}; "
                "end the interval there or give a later finish_time"
            )
    for place, end, start in zip(places[1:], ends, starts[1:], strict=False):
        if start < end:
            raise DataError(
                f"{place}: active = {start} comes before the end of the interval before, {end}; "
                "sort the intervals and join those that overlap"
            )
    return Presence(tuple(starts), tuple(ends), finish_time)
