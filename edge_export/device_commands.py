"""`fedsparse devices`: from what a device measured to a profile. Help needs click alone."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simulations.command_parts import path_type

if TYPE_CHECKING:
    from edge_export.device_json import DeviceFile
    from fedsparse.devices.profile import Profile

EXAMPLES = """\b
Examples:
  fedsparse devices import device.json --based-on raspberry-pi-4
  fedsparse devices import device.json --out ours.toml --name our-board --files exports
  fedsparse devices import --benchmark-log benchmark.log --files exports --out phone.toml
  fedsparse devices import counts.json --clock 1.5e9 --out emulated.toml
  fedsparse run --preset demo --set fleet.profile=ours.toml
"""
SHOW_EXAMPLES = """\b
Examples:
  fedsparse devices show raspberry-pi-4
  fedsparse devices show ours.toml --json
"""


@click.group(epilog=EXAMPLES, short_help="Make device profiles of what devices measured.")
def devices() -> None:
    """Device profiles: make one of a measurement, or look at one.

    `fedsparse list devices` lists those that are shipped.
    """


@devices.command("import", epilog=EXAMPLES, short_help="Make a profile of a device.json.")
@click.argument("source", metavar="[device.json]", type=path_type, required=False)
@click.option(
    "--out", type=path_type, metavar="FILE.toml", help="The profile to write; beside it if unset."
)
@click.option(
    "--based-on",
    default="raspberry-pi-4",
    show_default=True,
    metavar="PROFILE",
    help="The profile that has what was not measured: network, energy, hours.",
)
@click.option("--name", metavar="NAME", help="The profile's name; the device's if unset.")
@click.option(
    "--files",
    type=path_type,
    multiple=True,
    metavar="PATH",
    help="Measured files, or their folder; may be given again.",
)
@click.option(
    "--benchmark-log", type=path_type, metavar="LOG", help="What benchmark_model printed."
)
@click.option("--save-json", type=path_type, metavar="FILE", help="The log as a device.json, too.")
@click.option(
    "--clock", type=float, metavar="HZ", help="The core's clock, of counted instructions."
)
@click.option(
    "--instructions-per-cycle",
    type=float,
    metavar="X",
    help="Instructions a cycle, beside --clock; 1 if unset, which is an assumption.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def import_(
    source: Path | None,
    out: Path | None,
    based_on: str,
    name: str | None,
    files: tuple[Path, ...],
    benchmark_log: Path | None,
    save_json: Path | None,
    clock: float | None,
    instructions_per_cycle: float | None,
    as_json: bool,
) -> None:
    """Make a device profile of what measure.py wrote on the device.

    It also takes the log of LiteRT's benchmark_model, and counted instructions, which
    `fedsparse bench --on arm --json` prints, with a clock that you state. Speeds are those of
    inference, taken for training. A run uses the profile with --set fleet.profile=FILE.toml.
    """
    from edge_export import device_profile as profiles
    from fedsparse.errors import BenchError

    given = benchmark_log if source is None else source
    if given is None or (source is not None and benchmark_log is not None):
        raise click.UsageError("give either a device.json or --benchmark-log LOG")
    if save_json is not None and benchmark_log is None:
        raise click.UsageError("--save-json is for --benchmark-log; a device.json is there already")
    if instructions_per_cycle is not None and clock is None:
        raise click.UsageError("--instructions-per-cycle is for --clock HZ; give that, too")
    if name is not None and not name.strip():
        raise click.UsageError("--name '' is empty; leave it out for the device's own")
    if out is None and not given.name:
        raise BenchError(f"'{given}' is a folder; give the path of a device.json")
    place = out or given.with_suffix(".toml")
    profiles.check_place(place)
    base = profiles.base_of(based_on)
    content, found = _read(given, benchmark_log is not None)
    stated = None
    if clock is not None:
        each = 1.0 if instructions_per_cycle is None else instructions_per_cycle
        stated = profiles.Clock(clock, each)
    made = profiles.make(found, base, [*files, given.parent], name=name, clock=stated)
    if save_json is not None:
        _write_json(save_json, content)
    profiles.write(made, place)
    for note in made.notes:
        click.echo(f"fedsparse: {note}", err=True)
    if as_json:
        click.echo(json.dumps(_row(made.profile, place, based_on, made.notes)))
    else:
        _tell(made.profile, place, based_on)


@devices.command(epilog=SHOW_EXAMPLES, short_help="Show a profile's figures with their sources.")
@click.argument("profile", metavar="PROFILE|FILE.toml")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(profile: str, as_json: bool) -> None:
    """Show each figure of a profile and where it is from."""
    from edge_export.device_profile import base_of
    from fedsparse.devices.table import figures_of

    figures = figures_of(base_of(profile))
    sources = figures.pop("sources", {})
    if as_json:
        click.echo(json.dumps(_plain({**figures, "sources": sources})))
        return
    for key, value in figures.items():
        click.echo(f"{key} = {_text(value)}")
        if key in sources:
            click.echo(f"    {sources[key]}")


def _read(path: Path, log: bool) -> tuple[dict[str, Any], "DeviceFile"]:
    """Return a log's content in device.json's form, or nothing, and what was read."""
    from edge_export import device_json, device_log

    if not log:
        return {}, device_json.read(path)
    content = device_log.read(path)
    return content, device_json.from_mapping(content, str(path))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    from fedsparse.runs.atomic import write_file, writing

    with writing(path.parent):
        write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def _row(profile: "Profile", place: Path, based_on: str, notes: tuple[str, ...]) -> dict[str, Any]:
    figures = {
        "out": str(place),
        "name": profile.name,
        "based_on": based_on,
        "dense_flops": profile.dense_flops,
        "sparse_curve": profile.sparse_curve,
        "sparse_efficiency": None if profile.sparse_curve else profile.sparse_efficiency,
        "memory_bytes": profile.memory_bytes,
        "sources": profile.sources,
        "notes": notes,
    }
    return {key: _plain(value) for key, value in figures.items()}


def _tell(profile: "Profile", place: Path, based_on: str) -> None:
    click.echo(f"{place}: {profile.name}")
    click.echo(f"  dense   {profile.dense_flops / 1e9:.4g} GFLOP/s")
    for density, flops in profile.sparse_curve or ():
        ratio = flops / profile.dense_flops / density
        click.echo(
            f"  sparse  {flops / 1e9:.4g} GFLOP/s useful at density {density:.3g}, "
            f"{ratio:.2f}x the dense kernels' speed"
        )
    if profile.sparse_curve is None:
        share = profile.sparse_efficiency
        known = f"{share:.2g} of the dense ones' speed" if share else "none, dense ones compute all"
        click.echo(f"  sparse  kernels: {known}")
    click.echo(f"  memory  {profile.memory_bytes / 1e6:,.0f} MB")
    click.echo(f"  network, energy and hours are those of {based_on}; speeds are of inference")
    click.echo(f"\nfedsparse run --preset demo --set fleet.profile={place}")


def _plain(value: Any) -> Any:
    """Return nested values with "inf" for infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return "inf" if value == float("inf") else value


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(each)}" for key, each in value.items())
    if isinstance(value, tuple):
        return f"({', '.join(_text(each) for each in value)})"
    if isinstance(value, float | int):
        return f"{value:.6g}"
    return str(value)
