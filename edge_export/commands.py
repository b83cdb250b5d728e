"""The command that exports a model. Help needs click alone; the work is imported in the body."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simulations.command_parts import path_type

if TYPE_CHECKING:
    from edge_export.export import Exported
    from edge_export.formats import Format
    from edge_export.plan import Plan
    from edge_export.xnnpack import Verdict

EXAMPLES = """\b
Examples:
  fedsparse export runs/mobilenet-sparse-static-s0 --out model.tflite
  fedsparse export runs/demo-fedtiny-s0 --explain
  fedsparse export runs/demo-fedtiny-s0 --out small.tflite --values int8 --layout sparse
  fedsparse export runs/demo-fedtiny-s0 --out phone.tflite --values auto --target cortex-a76
  fedsparse export model.safetensors --model mobilenet-v1 --input-shape 3,224,224 \\
    --classes 1000 --out model.tflite
  fedsparse export runs/demo-fedtiny-s0 --out model.onnx --values int8-weights
  fedsparse export runs/demo-fedtiny-s0 --out model.h

\b
The suffix of --out is the format: .tflite (LiteRT), .onnx (onnxruntime), .pte (ExecuTorch),
.h (LiteRT for Microcontrollers). Zeros are left out of .tflite files alone.

\b
Values: f32; f16; int8 (sparse: stored as int8, computed in f32; dense: int8 throughout, calibrated
on the run's data); int8-weights; int8-dynamic; auto (whatever is cheapest and verified).
Exit code 3: the file does not compute what the model computes; it is not written, and a file of
its name stays as it was. One that is verified takes the place of a file of its name.
"""

LOOSE = 0.5
"""How far outputs may be from the model's where --accuracy-loss says what may be lost instead."""


@click.command(epilog=EXAMPLES, short_help="Export a model as a sparse or quantized file.")
@click.argument("source", metavar="RUN|FILE.safetensors", type=path_type)
@click.option(
    "--out", type=path_type, metavar="FILE", help="The file to write: .tflite, .onnx, .pte or .h."
)
@click.option(
    "--values",
    type=click.Choice(["f32", "f16", "int8", "int8-weights", "int8-dynamic", "auto"]),
    show_default="f32; int8 for .h",
    help="What the weights are stored as.",
)
@click.option(
    "--layout",
    type=click.Choice(["auto", "sparse", "dense"]),
    default="auto",
    show_default=True,
    help="Whether zeros are left out; auto takes what is cheapest on the target.",
)
@click.option(
    "--target",
    default="cortex-a72",
    show_default=True,
    metavar="CORE",
    help="cortex-a53, cortex-a72, cortex-a76 or x86.",
)
@click.option(
    "--client", type=click.IntRange(min=0), metavar="ID", help="A client's personal model."
)
@click.option("--model", metavar="NAME", help="Of a file outside of a run: its model.")
@click.option("--input-shape", metavar="C,H,W", help="Of a file outside of a run: its samples.")
@click.option("--classes", type=click.IntRange(min=1), metavar="N", help="... and its classes.")
@click.option("--width", type=float, default=1.0, metavar="X", help="... and its width.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    metavar="N",
    help="Test samples on which the file is compared with the model.",
)
@click.option(
    "--accuracy-loss",
    type=click.FloatRange(min=0, max=1),
    metavar="X",
    help="Fraction of correct answers that may be lost; by the values if unset.",
)
@click.option(
    "--route",
    type=click.Choice(["direct", "litert-torch"]),
    default="direct",
    show_default=True,
    help="How .tflite files are made; litert-torch covers more models and needs an extra.",
)
@click.option("--keep-channels", is_flag=True, help="Do not remove channels that pruning cut off.")
@click.option("--explain", is_flag=True, help="Show the plan, layer by layer; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def export(
    source: Path,
    out: Path | None,
    values: str | None,
    layout: str,
    target: str,
    client: int | None,
    model: str | None,
    input_shape: str | None,
    classes: int | None,
    width: float,
    samples: int,
    accuracy_loss: float | None,
    route: str,
    keep_channels: bool,
    explain: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Export the model of a finished run in folder RUN, or of a file of weights.

    BatchNorm is folded, channels that pruning cut off are removed, zeros are left out where that
    is smaller, and the written file is loaded and compared with the model on test data before it
    gets its name. FILE.json beside it says what was found.
    """
    from edge_export import costs, formats, verify
    from edge_export import export as work
    from edge_export import source as sources

    if out is None and not explain:
        raise click.UsageError("--out FILE is missing; or look first with --explain")
    costs.check_target(target)
    kind = formats.TFLITE
    if out is not None:
        kind = formats.of(out) if explain else work.check_place(out)
    values = values or kind.values[0]
    formats.check(kind, values, layout)
    work.check_route(route, kind)
    shape = None if input_shape is None else _numbers(input_shape)
    if source.is_dir() and (model or shape or classes or width != 1.0):
        raise click.UsageError(
            "--model, --input-shape, --classes and --width say what a file outside of a run is; "
            "leave them out"
        )
    found = sources.of(
        source, client=client, model=model, input_shape=shape, classes=classes, width=width
    )
    if explain or out is None:
        network = work.prepare_for(route, found, keep_channels=keep_channels)
        names = {"values": values, "layout": layout, "target": target}
        plan = work.planned(found, network, **names, kind=kind, route=route)
        _explain(plan, kind, as_json)
        return
    tolerance = None
    if accuracy_loss is not None:
        if found.labels is None:
            raise click.UsageError(
                "--accuracy-loss: there are no labelled samples to tell an accuracy by; leave it "
                "out, or export a run"
            )
        tolerance = verify.Tolerance(LOOSE, accuracy_loss)
    exported = work.export(
        found,
        out,
        values=values,
        layout=layout,
        target=target,
        samples=samples,
        tolerance=tolerance,
        keep_channels=keep_channels,
        route=route,
        note=lambda text: click.echo(f"fedsparse: {text}", err=True),
        track=lambda numbers: _tracked(numbers, quiet),
    )
    if as_json:
        click.echo(json.dumps({"out": str(out), **exported.row()}))
    else:
        _show(exported)


def _tracked(numbers: Iterable[int], quiet: bool) -> Iterator[int]:
    import sys

    from rich.console import Console
    from rich.progress import track

    return iter(
        track(
            list(numbers),
            "samples",
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
    )


def _numbers(text: str) -> list[int]:
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise click.UsageError(f"--input-shape '{text}' is no list of sizes such as 3,224,224")
    return found


def _show(exported: "Exported") -> None:
    row = exported.row()
    share = row["file_bytes"] / row["dense_bytes"]
    model = " of model" if len(exported.content) != row["file_bytes"] else ""
    click.echo(f"{exported.path}: {row['file_bytes']:,} bytes{model}, {share:.3f} of dense f32")
    click.echo(f"  stored as    {row['storage']}, density {row['density']:.3g}")
    click.echo(f"  computed     {_computed(exported)}")
    click.echo(f"  sparsity     {row['sparsity']}")
    known = "test samples" if row["real_samples"] else "random samples, there is no data"
    if not row["real_samples"] and row["storage"] == "int8 static":
        known += ", nor any for the ranges of int8; better export a run"
    click.echo(
        f"  verified     {row['samples']:,} {known}, by {row['verified_by']}: largest difference "
        f"{row['relative_difference']:.2g} of the largest output"
    )
    if row["accuracy"] is not None:
        click.echo(
            f"  accuracy     {row['accuracy']:.4f}, of the model {row['accuracy_torch']:.4f}"
        )


def _computed(exported: "Exported") -> str:
    verdicts = exported.candidate.verdicts
    sparse = sum(row.sparse for row in verdicts)
    gain = exported.plan.gain(exported.candidate)
    target = exported.plan.target
    if not exported.kind.plans:
        return f"densely, by {exported.kind.runtime}"
    if exported.route != "direct":
        return "not predicted: the layers are those of litert-torch"
    if target == "x86":
        return "densely: on x86 XNNPACK has no sparse path that it takes"
    text = f"{sparse} of {len(verdicts)} layers sparsely on {target}"
    if gain is None:
        return text
    if abs(gain - 1) < 0.005:
        return f"{text}; as many instructions as dense f32 predicted"
    change = f"{gain:.2f}x fewer" if gain > 1 else f"{1 / gain:.2f}x more"
    return f"{text}; predicted {change} instructions than dense f32"


def _reasons(verdicts: "Sequence[Verdict]") -> dict[str, list[str]]:
    """Return the layers that are computed densely, by the reason."""
    found: dict[str, list[str]] = {}
    for row in verdicts:
        if row.reason:
            found.setdefault(row.reason, []).append(row.layer)
    return found


def _explain(plan: "Plan", kind: "Format", as_json: bool) -> None:
    from simulations.sweep_commands import show_table

    best = plan.best
    stored = {row.layer: row for row in best.emitted.stored}
    layers = [
        {
            "layer": row.layer,
            "shape": list(stored[row.layer].shape),
            "kept": stored[row.layer].kept,
            "stored": "sparse" if stored[row.layer].sparse else "dense",
            "bytes": stored[row.layer].nbytes,
            "dense_bytes": stored[row.layer].dense_bytes,
            "computed": "sparse" if row.sparse else "dense",
            "why": row.reason,
        }
        for row in best.verdicts
    ]
    options = [
        {
            "storage": candidate.storage.name,
            "file_bytes": candidate.nbytes,
            "instructions": candidate.instructions,
            "gain": plan.gain(candidate),
            "chosen": candidate is best,
        }
        for candidate in plan.candidates
    ]
    if as_json:
        content = {"target": plan.target, "candidates": options, "layers": layers}
        click.echo(json.dumps(content))
        return
    show_table(
        ["layer", "shape", "kept", "stored", "bytes", "of dense", "computed"],
        [
            [
                row.layer,
                "x".join(str(size) for size in stored[row.layer].shape),
                f"{stored[row.layer].kept:,}",
                "sparse" if stored[row.layer].sparse else "dense",
                f"{stored[row.layer].nbytes:,}",
                f"{stored[row.layer].nbytes / stored[row.layer].dense_bytes:.2f}",
                "sparse" if row.sparse else "dense",
            ]
            for row in best.verdicts
        ],
    )
    for reason, names in _reasons(best.verdicts).items():
        click.echo(f"\ndense: {reason}\n  {', '.join(names)}")
    click.echo()
    show_table(
        ["export", "file bytes", "predicted instructions", "fewer than dense f32"],
        [
            [
                ("* " if option["chosen"] else "  ") + str(option["storage"]),
                f"{option['file_bytes']:,}",
                "-" if option["instructions"] is None else f"{option['instructions']:,.0f}",
                "-" if option["gain"] is None else f"{option['gain']:.2f}x",
            ]
            for option in options
        ],
    )
    core = f" for {plan.target}" if kind.plans else ""
    click.echo(f"\n* is what would be written{core}; nothing was written")
