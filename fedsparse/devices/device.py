"""One client's device: a profile's figures times this client's own factors.

It turns arithmetic and payloads into seconds and joules, and says when it is there. The
same run seed and client give the same device, and the same answer at each second.
"""

import math
from dataclasses import dataclass

from fedsparse import seeds
from fedsparse.devices.profile import Availability, Profile
from fedsparse.devices.traces import NetworkTrace, Presence

DAY = 24.0


@dataclass(frozen=True)
class Hours:
    """When a device is there by its profile: chances that move with the hour of the day."""

    availability: Availability
    shift: float
    """Hours by which this client's peak is later than the profile's."""
    start_hour: float
    """Hour of the day at simulated second 0."""
    seed: int
    client: int

    def available(self, at: float) -> bool:
        """Say whether the device is there at a simulated second; drawn once a window."""
        window = math.floor(at / self.availability.window_seconds)
        start = window * self.availability.window_seconds
        chance = self.availability.chance(self.start_hour + start / 3600 - self.shift)
        if chance >= 1:
            return True
        draw = seeds.stream(self.seed, window, self.client, "availability").random()
        return bool(draw < chance)


@dataclass(frozen=True)
class Device:
    """A client's device. Sizes in bytes, times in seconds, speeds a second, energy in joules."""

    client: int
    profile: str
    dense_flops: float
    memory_bytes: float
    storage_bytes: float
    up_bytes_per_second: float
    down_bytes_per_second: float
    latency_seconds: float
    battery_joules: float | None
    dropout: float
    figures: Profile
    presence: Hours | Presence
    network: NetworkTrace | None = None

    def compute_seconds(self, flops: float, density: float) -> float:
        """Return how long training takes that needs `flops` useful FLOPs at a density."""
        if flops == 0:
            return 0.0
        return flops / (self.dense_flops * self.figures.relative_speed(density))

    def download_seconds(self, size: int, at: float) -> float:
        """Return latency and transfer of `size` bytes to the device from a simulated second."""
        if self.network is None:
            return self.latency_seconds + size / self.down_bytes_per_second
        return self.latency_seconds + float(self.network.down.seconds(size, at))

    def upload_seconds(self, size: int, at: float) -> float:
        """Return latency and transfer of `size` bytes to the server from a simulated second."""
        if self.network is None:
            return self.latency_seconds + size / self.up_bytes_per_second
        return self.latency_seconds + float(self.network.up.seconds(size, at))

    def available(self, at: float) -> bool:
        """Say whether the device can be asked at a simulated second."""
        return self.presence.available(at)

    def joules(self, compute_seconds: float, radio_seconds: float) -> float:
        """Return the energy of computing and of sending and receiving for so long."""
        figures = self.figures
        return figures.compute_watts * compute_seconds + figures.radio_watts * radio_seconds
