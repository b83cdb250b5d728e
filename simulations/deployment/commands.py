"""The commands `fedsparse deploy` and `fedsparse init-app`.

Help needs click alone; what a command works with is imported in its body.
"""

import json
from dataclasses import asdict
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
  fedsparse deploy local --nodes 2 my.toml --node-config 'data-path="parts/{client}.csv"'
"""


DEPLOY_EXAMPLES = """\b
Examples:
  fedsparse deploy local --nodes 4 --preset demo
  fedsparse deploy init fleet --nodes 4 --host fl.example.org
  fedsparse deploy check fleet
"""
INIT_EXAMPLES = """\b
Examples:
  fedsparse deploy init fleet --nodes 4 --host fl.example.org
  fedsparse deploy init fleet --nodes 20 --host 192.0.2.7 --host fl.example.org --port 443
"""
NODE_EXAMPLES = """\b
Examples:
  fedsparse deploy node fleet node-4
  fedsparse deploy node fleet node-1-b --partition 1
"""
RENEW_EXAMPLES = """\b
Examples:
  fedsparse deploy renew fleet
  fedsparse deploy renew fleet --host 192.0.2.8
"""
CHECK_EXAMPLES = """\b
Examples:
  fedsparse deploy check fleet
  fedsparse deploy check fleet --json
"""
APP_EXAMPLES = """\b
Examples:
  fedsparse init-app my-run --preset demo --set fleet.clients=4
  fedsparse init-app my-run my.toml
"""
ILL = 3
"""What `fedsparse deploy check` leaves with where something is to be mended."""
fleet_argument = click.argument("folder", metavar="DIR", type=path_type)
hosts_option = click.option(
    "--host", "hosts", multiple=True, metavar="NAME|IP", help="How nodes reach it; repeatable."
)
days_option = click.option(
    "--days",
    type=click.IntRange(1, 3650),
    default=365,
    show_default=True,
    help="How long the server's certificate holds.",
)


@click.group(epilog=DEPLOY_EXAMPLES, short_help="Run on real Flower nodes.")
def deploy() -> None:
    """Run on real Flower nodes, over TLS and with a key for each."""


@deploy.command(epilog=LOCAL_EXAMPLES, short_help="Run over nodes on this machine.")
@click.argument("config", required=False, metavar="[CONFIG.toml]", type=path_type)
@click.option(
    "--nodes", type=click.IntRange(1, 64), required=True, metavar="N", help="SuperNodes to start."
)
@click.option(
    "--node-config",
    "told",
    default="",
    metavar="KEY=VALUE...",
    help="What each node is told, such as its data-path; {client} stands for its number.",
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
    told: str,
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
    from simulations.deployment.told import check_told

    check_told(told, local=True)
    resolved, stem = configured(config, preset, (*assignments, f"fleet.clients={nodes}"), seed)
    folder = out if out is not None else free_folder(f"{stem}-deployed", resolved)
    check_way(folder)

    def work(progress: "Progress") -> dict[str, Any]:
        from simulations.deployment.local import run_locally

        return run_locally(resolved, nodes, folder, progress, told=told)

    summary = watched(work, folder, quiet, again="give the same command with --out")
    finish(folder, summary, as_json=as_json, report=not no_report)


@deploy.command(epilog=INIT_EXAMPLES, short_help="Write what a fleet of machines needs.")
@fleet_argument
@click.option(
    "--nodes", type=click.IntRange(1, 1000), required=True, metavar="N", help="How many nodes."
)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    required=True,
    metavar="NAME|IP",
    help="How nodes reach the server; repeatable, the first is what they use.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8000,
    show_default=True,
    help="The port of the server that nodes reach.",
)
@days_option
def init(folder: Path, nodes: int, hosts: tuple[str, ...], port: int, days: int) -> None:
    """Write certificates, keys, units and containers of a fleet of N nodes into DIR, a new folder.

    DIR/README.md is the checklist. Private keys are readable by their owner alone.
    """
    from simulations.deployment.kit import Kit, write_kit

    names = {f"node-{number}": number for number in range(nodes)}
    write_kit(folder, Kit(hosts, port, names), days=days)
    click.echo(f"{folder / 'README.md'}")


@deploy.command(epilog=NODE_EXAMPLES, short_help="Add a node, or give one a new key.")
@fleet_argument
@click.argument("name", metavar="NAME")
@click.option(
    "--partition",
    type=click.IntRange(min=0),
    metavar="K",
    help="The client that it is; the next one if unset, another node's for a new key.",
)
def node(folder: Path, name: str, partition: int | None) -> None:
    """Add node NAME with a key of its own to the fleet in DIR."""
    from simulations.deployment.kit import add_node

    kit = add_node(folder, name, partition)
    click.echo(
        f"{folder / 'nodes' / name}: partition {kit.nodes[name]}; copy it to the node, and "
        f"{folder / 'superlink' / 'keys' / name}.pub to the server, then register.sh there"
    )


@deploy.command(epilog=RENEW_EXAMPLES, short_help="Renew the server's certificate.")
@fleet_argument
@hosts_option
@days_option
def renew(folder: Path, hosts: tuple[str, ...], days: int) -> None:
    """Make the server's certificate and key of the fleet in DIR anew; nodes keep theirs."""
    from simulations.deployment import kit

    found = kit.renew(folder, hosts, days=days)
    click.echo(
        f"{folder / 'superlink' / 'server.crt'}: {', '.join(found.hosts)}, {days} days; copy it "
        "and server.key to the server and start the SuperLink again"
    )


@deploy.command(epilog=CHECK_EXAMPLES, short_help="Say what expires, and what is wrong.")
@fleet_argument
@json_option
def check(folder: Path, as_json: bool) -> None:
    """Say what of the fleet in DIR expires when, and whose permissions or keys are wrong.

    Leaves with code 3 where anything is to be mended.
    """
    from simulations.deployment.inspection import inspect

    found = inspect(folder)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found]))
    else:
        for one in found:
            click.echo(f"{'ok  ' if one.well else 'MEND'}  {one.what}: {one.said}")
    if not all(one.well for one in found):
        raise click.exceptions.Exit(ILL)


@click.command(epilog=APP_EXAMPLES, short_help="Write a Flower app of your own.")
@click.argument("folder", metavar="DIR", type=path_type)
@click.argument("config", required=False, metavar="[CONFIG.toml]", type=path_type)
@preset_option
@set_option
@seed_option
def init_app(
    folder: Path,
    config: Path | None,
    preset: str | None,
    assignments: tuple[str, ...],
    seed: int | None,
) -> None:
    """Write a Flower app with the same keys, strategy and client into DIR, a new folder.

    `flwr run DIR` ships it; fedsparse is installed at the server and at every node.
    """
    from simulations.deployment import app
    from simulations.deployment.local import check_real

    resolved, _ = configured(config, preset, assignments, seed)
    check_real(resolved)
    app.init_app(folder, resolved)
    click.echo(f"{folder / 'README.md'}")


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
