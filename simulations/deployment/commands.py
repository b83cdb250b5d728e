"""The commands `fedsparse deploy` and `fedsparse init-app`.

Help needs click alone; what a command works with is imported in its body.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simulations.command_parts import (
    changes_of,
    check_way,
    finish,
    free_folder,
    json_option,
    no_report_option,
    out_option,
    path_type,
    preset_option,
    quiet_option,
    read_configuration,
    seed_option,
    set_option,
    watched,
)

if TYPE_CHECKING:
    from fedsparse.config import Config
    from fedsparse.runs.progress import Progress

LOCAL_EXAMPLES = """\b
Examples:
  fedsparse deploy local --nodes 4 --preset demo
  fedsparse deploy local --nodes 2 my.toml --set run.rounds=3 --out runs/mine --json
"""


@click.group(epilog=LOCAL_EXAMPLES, short_help="Run on real Flower nodes.")
def deploy() -> None:
    """Run on real Flower nodes, over TLS and with a key for each."""


@deploy.command(epilog=LOCAL_EXAMPLES, short_help="Run over nodes on this machine.")
@click.argument("config", required=False, metavar="[CONFIG.toml]", type=path_type)
@click.option(
    "--nodes", type=click.IntRange(1, 64), required=True, metavar="N", help="SuperNodes to start."
)
@preset_option
@set_option
@seed_option
@out_option
@json_option
@no_report_option
@quiet_option
def local(
    config: Path | None,
    nodes: int,
    preset: str | None,
    assignments: tuple[str, ...],
    seed: int | None,
    out: Path | None,
    as_json: bool,
    no_report: bool,
    quiet: bool,
) -> None:
    """Run over a SuperLink and N SuperNodes on this machine, to the bits of `fedsparse run`.

    Certificates and keys are made on the spot, and everything but the run folder is gone at the
    end. A run in DIR that was interrupted goes on.
    """
    resolved, stem = configured(config, preset, (*assignments, f"fleet.clients={nodes}"), seed)
    folder = out if out is not None else free_folder(f"{stem}-deployed", resolved)
    check_way(folder)

    def work(progress: "Progress") -> dict[str, Any]:
        from simulations.deployment.local import run_locally

        return run_locally(resolved, nodes, folder, progress)

    summary = watched(work, folder, quiet, again="give the same command with --out")
    finish(folder, summary, as_json=as_json, report=not no_report)


def configured(
    config: Path | None, preset: str | None, assignments: tuple[str, ...], seed: int | None
) -> tuple["Config", str]:
    """Return the configuration of a file or a preset, `demo` for neither, and its name."""
    from fedsparse.config import override, resolve

    if config is not None and preset is not None:
        raise click.UsageError("CONFIG.toml and --preset: give one; --set changes single keys")
    name = "demo" if config is None and preset is None else preset
    tree = read_configuration(config, name)
    resolved = resolve(override(tree, changes_of(assignments, None, seed, None)))
    return resolved, config.stem if config is not None else str(name)
