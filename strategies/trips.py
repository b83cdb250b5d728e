"""One client's way through a round on the simulated clock: when it did what, at what cost.

The clock is the simulator's; what a trip says is written into the rows of clients.
"""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Trip:
    """Seconds and joules of one client that was asked, and what became of it.

    `status` is "ok", "failed", "late" or "dropped"; of a late client only what it did until
    the round ended is counted. Bytes are those that went over its link.
    """

    client: int
    device: str
    started: float
    download_seconds: float = 0.0
    compute_seconds: float = 0.0
    upload_seconds: float = 0.0
    compute_watts: float = 0.0
    radio_watts: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    status: str = "ok"
    reason: str | None = None

    @property
    def seconds(self) -> float:
        """How long the client was at it."""
        return self.download_seconds + self.compute_seconds + self.upload_seconds

    @property
    def finished(self) -> float:
        """The simulated second at which it was done."""
        return self.started + self.seconds

    @property
    def energy_joules(self) -> float:
        """What its device spent on computing and on its radio."""
        radio = self.download_seconds + self.upload_seconds
        return _product(self.compute_watts, self.compute_seconds) + _product(
            self.radio_watts, radio
        )

    def cut(self, end: float, status: str, reason: str | None) -> "Trip":
        """Return the part of a trip up to simulated second `end`, and why it ended there."""
        left = max(0.0, end - self.started)
        down = min(self.download_seconds, left)
        compute = min(self.compute_seconds, left - down)
        up = min(self.upload_seconds, left - down - compute)
        computed = compute >= self.compute_seconds and down >= self.download_seconds
        return replace(
            self,
            download_seconds=down,
            compute_seconds=compute,
            upload_seconds=up,
            bytes_down=_part(self.bytes_down, down, self.download_seconds),
            bytes_up=_part(self.bytes_up, up, self.upload_seconds) if computed else 0,
            status=status,
            reason=reason,
        )

    def row(self) -> dict[str, Any]:
        """Return what a client's row says of the trip."""
        return {
            "device": self.device,
            "started": self.started,
            "download_seconds": self.download_seconds,
            "compute_seconds": self.compute_seconds,
            "upload_seconds": self.upload_seconds,
            "energy_joules": self.energy_joules,
        }


def _product(watts: float, seconds: float) -> float:
    """Return watts times seconds; nothing for no time, however much power."""
    return watts * seconds if seconds else 0.0


def _part(size: int, seconds: float, of: float) -> int:
    """Return the bytes that went over in a part of the time; all of them when none was left."""
    return size if seconds >= of else int(size * (seconds / of))
