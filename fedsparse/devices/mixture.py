"""What a fleet is made of: kinds of devices with their shares, and how clients differ.

A mixture comes from a shipped fleet, from a file, or from one profile alone. Factors are
log-normal with median one: half of the clients lie above the profile's figure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fedsparse.devices import profile as profiles
from fedsparse.devices.profile import Cost, Profile
from fedsparse.devices.reading import Described, checked, mapping_of
from fedsparse.errors import ConfigError, UnknownNameError

SHIPPED = Path(__file__).parent / "fleets"
"""The folder of the shipped fleets, one TOML file each."""

Sigma = Annotated[Cost, Field(le=5)]


class Spread(Described):
    """How clients of one profile differ.

    compute, bandwidth, memory and latency are the standard deviation of the natural
    logarithm of a factor; hours is the most by which the peak hour is moved, either way.
    """

    compute: Sigma = 0.0
    bandwidth: Sigma = 0.0
    memory: Sigma = 0.0
    latency: Sigma = 0.0
    hours: Annotated[Cost, Field(le=12)] = 0.0


class _Share(Described):
    share: Annotated[Cost, Field(gt=0)]


class _Heading(Described):
    name: str = Field(min_length=1)
    description: str = ""
    spread: Spread = Spread()
    device: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class Mixture:
    """Profiles with their shares, which sum to one, and the spread of their clients."""

    name: str
    description: str
    profiles: tuple[Profile, ...]
    shares: tuple[float, ...]
    spread: Spread


@cache
def names() -> tuple[str, ...]:
    """Return the names of the shipped fleets."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.toml")))


def find(name: str) -> Mixture:
    """Return the mixture behind a name: a shipped profile or fleet, or a file of either.

    Raises UnknownNameError for a name that is neither shipped nor a file, ConfigError
    for a file that is missing or wrong.
    """
    if name in profiles.names():
        return _alone(profiles.shipped(name))
    if name in names():
        return read(SHIPPED / f"{name}.toml")
    if _is_path(name):
        return read(Path(name))
    raise UnknownNameError("device profile or fleet", name, (*profiles.names(), *names()))


def read(path: Path) -> Mixture:
    """Return the mixture of a fleet's file, or of a profile's file alone."""
    data = mapping_of(path, "device profile or fleet")
    tables = [value for value in data.values() if isinstance(value, list) and value]
    if "device" in data or any(isinstance(value[0], dict) for value in tables):
        return _mixture(data, path)
    return _alone(profiles.from_mapping(data, str(path)))


def _is_path(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in {".toml", ".json"} or len(path.parts) > 1 or path.is_file()


def _alone(profile: Profile) -> Mixture:
    return Mixture(profile.name, profile.description, (profile,), (1.0,), Spread())


def _mixture(data: Mapping[str, Any], path: Path) -> Mixture:
    heading = checked(_Heading, data, str(path))
    members = [
        _member(entry, f"{path}: device {number}", path.parent)
        for number, entry in enumerate(heading.device, start=1)
    ]
    found = sorted(member.name for member, _ in members)
    for one, other in pairwise(found):
        if one == other:
            raise ConfigError(f"{path}: profile '{one}' is there twice; add up its shares")
    total = sum(share for _, share in members)
    return Mixture(
        name=heading.name,
        description=heading.description,
        profiles=tuple(member for member, _ in members),
        shares=tuple(share / total for _, share in members),
        spread=heading.spread,
    )


def _member(entry: Mapping[str, Any], where: str, folder: Path) -> tuple[Profile, float]:
    """Return one `[[device]]`: a profile by name or file, or its figures, with the share."""
    figures = dict(entry)
    given = {"share": figures.pop("share")} if "share" in figures else {}
    share = checked(_Share, given, where).share
    if "profile" not in figures:
        return profiles.from_mapping(figures, where), share
    name = figures.pop("profile")
    if figures:
        raise ConfigError(
            f"{where}: '{next(iter(figures))}' beside profile; "
            f'to change a figure write base = "{name}" and a name instead of profile'
        )
    if not isinstance(name, str):
        raise ConfigError(f"{where}: profile = {name!r}: must be a name or the path of a file")
    if name not in profiles.names() and _is_path(name):
        file = folder / name
        return profiles.from_mapping(mapping_of(file, "device profile"), str(file)), share
    try:
        return profiles.shipped(name), share
    except UnknownNameError as error:
        raise ConfigError(f"{where}: {error}") from None
