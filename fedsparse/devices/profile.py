"""A device's profile: how fast, how much memory, what network, what energy, when it is there.

Every figure is in the unit of its name and says in `sources` where it is from: a public
source, or "assumption: why". docs/devices.md explains each key.
"""

import math
from collections.abc import Mapping
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from fedsparse.devices.reading import Described, checked, mapping_of
from fedsparse.errors import ConfigError, UnknownNameError, did_you_mean

SHIPPED = Path(__file__).parent / "profiles"
"""The folder of the shipped profiles, one TOML file each."""


def _unlimited(value: Any) -> Any:
    """Read the text "inf": JSON has no other way to say it."""
    return math.inf if value == "inf" else value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def _number(value: float) -> float:
    if math.isnan(value):
        raise ValueError("must be a number")
    return value


def _points(value: Any) -> Any:
    """Let a list of pairs, as files have it, pass for a tuple of tuples."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(tuple(point) if isinstance(point, list) else point for point in value)


Speed = Annotated[float, BeforeValidator(_unlimited), AfterValidator(_number), Field(gt=0)]
Amount = Annotated[float, BeforeValidator(_unlimited), AfterValidator(_number), Field(ge=0)]
Cost = Annotated[float, AfterValidator(_finite), Field(ge=0)]
Point = tuple[float, float]


class Availability(Described):
    """When a device can be asked: a chance for each window of time, by the hour of the day.

    The chance is fraction * (1 + amplitude * cos(2 pi (hour - peak_hour) / 24)), cut to
    [0, 1], at the start of the window. The default is always there.
    """

    fraction: Annotated[float, AfterValidator(_finite)] = Field(default=1.0, gt=0, le=1)
    amplitude: Cost = 0.0
    peak_hour: Annotated[float, AfterValidator(_finite)] = Field(default=0.0, ge=0, lt=24)
    window_seconds: Annotated[float, AfterValidator(_finite)] = Field(default=600.0, gt=0)

    def chance(self, hour: float) -> float:
        """Return the chance that a device is there in a window that starts at this hour."""
        wave = math.cos(2 * math.pi * (hour - self.peak_hour) / 24)
        return min(1.0, max(0.0, self.fraction * (1 + self.amplitude * wave)))


class Profile(Described):
    """The figures of one kind of device. `inf` stands for what is not limited.

    `memory_bytes` is what training may use; 0 says that the device cannot train.
    `battery_joules` is None for a device on mains.
    """

    name: str = Field(min_length=1)
    description: str = ""
    dense_flops: Speed
    sparse_efficiency: Cost = 1.0
    sparse_curve: Annotated[tuple[Point, ...], BeforeValidator(_points)] | None = None
    memory_bytes: Amount
    storage_bytes: Amount
    up_bytes_per_second: Speed
    down_bytes_per_second: Speed
    latency_seconds: Cost
    compute_watts: Cost
    radio_watts: Cost
    battery_joules: Amount | None = None
    availability: Availability = Availability()
    dropout: float = Field(default=0.0, ge=0, lt=1)
    sources: dict[str, str] = Field(default_factory=dict)

    @field_validator("sparse_curve")
    @classmethod
    def _rising(cls, curve: tuple[Point, ...] | None) -> tuple[Point, ...] | None:
        if curve is None:
            return None
        if not curve:
            raise ValueError("must hold at least one pair [density, FLOP/s]")
        for density, flops in curve:
            if not 0 < density <= 1:
                raise ValueError(f"density {density} must be in (0, 1]")
            if not 0 < flops < math.inf:
                raise ValueError(f"speed {flops} must be a positive number of FLOP/s")
        if any(after[0] <= before[0] for before, after in pairwise(curve)):
            raise ValueError("densities must rise from pair to pair; sort them, each once")
        return curve

    @model_validator(mode="after")
    def _together(self) -> "Profile":
        if self.sparse_curve and "sparse_efficiency" in self.model_fields_set:
            raise ValueError("sparse_efficiency and sparse_curve are both given; keep one of them")
        for key in self.sources:
            if key not in type(self).model_fields:
                hint = did_you_mean(key, FIGURES)
                raise ValueError(f"sources.{key} is the source of no figure{hint}")
        return self

    @cached_property
    def _curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The measured curve as arrays: log density, FLOP/s."""
        points = np.asarray(self.sparse_curve or (), dtype=np.float64).reshape(-1, 2)
        return np.log(points[:, 0]), points[:, 1]

    def relative_speed(self, density: float) -> float:
        """Return useful FLOP/s at a density in (0, 1] as a fraction of dense FLOP/s.

        Sparse kernels, or dense ones that compute with the zeros too, whichever is faster.
        """
        if not 0 < density <= 1:
            raise ConfigError(f"density {density}: must be in (0, 1]; it is the kept fraction")
        if self.sparse_curve is None:
            return max(self.sparse_efficiency, density)
        sparse = float(np.interp(math.log(density), *self._curve))
        return max(sparse / self.dense_flops, density)

    def flops_per_second(self, density: float) -> float:
        """Return useful FLOP/s of training at a density: never below density * dense_flops.

        Between the points of a curve it is linear in the logarithm of the density, and
        flat outside. Raises ConfigError for a density outside (0, 1].
        """
        return self.dense_flops * self.relative_speed(density)


FIGURES = tuple(
    key for key in Profile.model_fields if key not in {"name", "description", "sources"}
)
"""The keys of a profile that need a source."""


@cache
def names() -> tuple[str, ...]:
    """Return the names of the shipped profiles."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.toml")))


@cache
def shipped(name: str) -> Profile:
    """Return a shipped profile; raises UnknownNameError, which proposes the nearest."""
    if name not in names():
        raise UnknownNameError("profile", name, names())
    path = SHIPPED / f"{name}.toml"
    return checked(Profile, mapping_of(path, "profile"), str(path))


def from_mapping(data: Mapping[str, Any], where: str) -> Profile:
    """Return the profile that a mapping describes, in full or as changes to a `base`.

    `base` is the name of a shipped profile; sources of changed figures are dropped.
    Raises ConfigError, one line that begins with `where`.
    """
    changes = dict(data)
    base = changes.pop("base", None)
    if base is None:
        return checked(Profile, changes, where)
    if not isinstance(base, str):
        raise ConfigError(f"{where}: base = {base!r}: must be the name of a shipped profile")
    try:
        figures = shipped(base).model_dump(exclude_unset=True)
    except UnknownNameError as error:
        raise ConfigError(f"{where}: base: {error}") from None
    for key in changes:
        figures["sources"].pop(key, None)
    for one, other in (
        ("sparse_curve", "sparse_efficiency"),
        ("sparse_efficiency", "sparse_curve"),
    ):
        if one in changes and other not in changes:
            figures.pop(other, None)
            figures["sources"].pop(other, None)
    sources = {**figures["sources"], **changes["sources"]} if _has_sources(changes) else None
    merged = {**figures, **changes, **({"sources": sources} if sources else {})}
    return checked(Profile, merged, where)


def _has_sources(changes: Mapping[str, Any]) -> bool:
    return isinstance(changes.get("sources"), dict)
