"""The command that makes personal models of a finished run.

Help needs click alone; what the command works with is imported in its body.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simulations.command_parts import INTERRUPTED, path_type

if TYPE_CHECKING:
    from simulations.personal_models import Made

EXAMPLES = """\b
Examples:
  fedsparse personalize runs/demo-pfedgate-s0
  fedsparse personalize runs/demo-pfedgate-s0 --clients 3,7 --epochs 5
  fedsparse personalize runs/demo-pfedgate-s0 --novel --gate-epochs 5 --json
"""


@click.command(epilog=EXAMPLES, short_help="Make the models that clients of a run would use.")
@click.argument("folder", metavar="RUN", type=path_type)
@click.option("--clients", metavar="N,N,..", help="Clients by number; all if unset.")
@click.option("--novel", is_flag=True, help="The clients that the run held out.")
@click.option(
    "--epochs",
    type=click.IntRange(min=0, max=1000),
    metavar="N",
    help="Local training of the whole model before use; as the run says if unset.",
)
@click.option(
    "--gate-epochs",
    type=click.IntRange(min=0, max=1000),
    metavar="N",
    help="Training of the gate alone, where a client has none; as the run says if unset.",
)
@click.option("--json", "as_json", is_flag=True, help="Print clients and means as one JSON object.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def personalize(
    folder: Path,
    clients: str | None,
    novel: bool,
    epochs: int | None,
    gate_epochs: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make the personal models of clients of the finished run in folder RUN.

    Each is what the run's strategy gives that client, trained on its own data alone: written to
    RUN/personal/CLIENT, and tested on the client's held-out samples beside the global model and
    that model after as many epochs of fine-tuning.
    """
    import sys

    from rich.console import Console
    from rich.progress import track

    from simulations.personal_models import Personaliser, means

    if clients is not None and novel:
        raise click.UsageError("--clients and --novel: give one")
    run = Personaliser(folder, epochs, gate_epochs)
    rows: list[Made] = []
    try:
        wanted = run.chosen(None if clients is None else numbers(clients), novel)
        for made in track(
            run.make(wanted),
            "clients",
            total=len(wanted),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        ):
            rows.append(made)
        path = run.write_table(rows)
    except KeyboardInterrupt:
        click.echo(f"fedsparse: interrupted; {len(rows)} models are written", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        run.close()
    if as_json:
        click.echo(json.dumps({**means(rows), "clients": [asdict(row) for row in rows]}))
        return
    _show(rows, means(rows))
    click.echo(f"\nmodels  {folder / 'personal'}\nfigures {path}")


def numbers(text: str) -> list[int]:
    """Return client numbers; raises UsageError for anything else."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise click.UsageError(f"--clients '{text}' is no list of numbers such as 3,7") from None


def _show(rows: "list[Made]", mean: dict[str, float | None]) -> None:
    from simulations.sweep_commands import show_table

    keys = ("accuracy_personal", "accuracy_global", "accuracy_finetuned")
    lines = [
        [
            str(row.client),
            str(row.examples),
            f"{row.density:.3g}",
            *(_percent(getattr(row, key)) for key in keys),
        ]
        for row in rows
    ]
    lines.append(["mean", "", "", *(_percent(mean[f"{key}_mean"]) for key in keys)])
    show_table(["client", "samples", "density", "personal", "global", "fine-tuned"], lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
