"""The command that measures model files here, or counts their instructions on emulated ARM.

Help needs click alone; what the command works with is imported in its body.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

Progress = Callable[[str, int, int], None]
LOCAL, ARM = "local", "arm"
DEFAULT_CORE = "cortex-a72"

EXAMPLES = """\b
Examples:
  fedsparse bench dense.tflite sparse.tflite
  fedsparse bench --setup-arm
  fedsparse bench dense.tflite sparse.tflite --on arm --core cortex-a76
  fedsparse bench *.tflite --on arm --picture costs.html
  fedsparse bench model.onnx model.tflite --json
"""

path_type = click.Path(path_type=Path)


@click.command(epilog=EXAMPLES, short_help="Measure model files: time here, instructions on ARM.")
@click.argument("files", metavar="FILE...", nargs=-1, type=path_type)
@click.option("--on", "where", default=LOCAL, metavar="local|arm", show_default=True, help="Where.")
@click.option(
    "--core", metavar="NAME", help=f"Emulated core of --on arm.  [default: {DEFAULT_CORE}]"
)
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=1,
    metavar="N",
    show_default=True,
    help="Threads of an inference.",
)
@click.option(
    "--runtime",
    metavar="NAME",
    help="litert, tflite-runtime or onnxruntime; by the file's suffix if unset.",
)
@click.option(
    "--runtime-python",
    type=path_type,
    metavar="FILE",
    help="Interpreter of --on local that has the runtime; this one if unset.",
)
@click.option("--setup-arm", is_flag=True, help="Fetch the aarch64 packages of --on arm, once.")
@click.option(
    "--root", type=path_type, metavar="DIR", help="Their folder, if not the user's cache."
)
@click.option(
    "--sources",
    type=path_type,
    metavar="FILE",
    help="With --setup-arm: a file of apt sources that has them, where the system's do not.",
)
@click.option(
    "--picture", type=path_type, metavar="FILE", help="Draw accuracy, size and cost: .html or .png."
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def bench(
    files: tuple[Path, ...],
    where: str,
    core: str | None,
    threads: int,
    runtime: str | None,
    runtime_python: Path | None,
    setup_arm: bool,
    root: Path | None,
    sources: Path | None,
    picture: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure what each FILE (.tflite or .onnx) costs, and compare it with the first.

    On this machine: time of an inference, cold start, memory; files take turns on the same cores.
    On arm: instructions of an inference and of setting up, counted on an emulated core. An
    instruction count is no time.
    """
    _agree(files, where, core, threads, runtime_python, setup_arm, root, sources, picture)
    if setup_arm:
        _set_up(root, sources, as_json, quiet)
        return

    from edge_export.bench import arm, local, results, runtimes
    from edge_export.bench import picture as pictures

    if picture is not None:
        pictures.check(picture)
    about = results.about(files)
    with _progress(quiet) as progress:
        if where == ARM:
            counted = arm.instructions(
                files,
                core=core or DEFAULT_CORE,
                runtime=runtime or runtimes.LITERT,
                root=root,
                progress=progress,
            )
            rows = results.of_arm(counted, about)
        else:
            measured = local.measure(
                files, runtime=runtime, threads=threads, python=runtime_python, progress=progress
            )
            rows = results.of_local(measured, about)
    if as_json:
        click.echo(json.dumps({"results": rows}))
    else:
        results.show(rows)
    if picture is not None:
        pictures.write(picture, results.points(rows))
        if not as_json:
            click.echo(f"\npicture {picture}")


def _agree(
    files: tuple[Path, ...],
    where: str,
    core: str | None,
    threads: int,
    runtime_python: Path | None,
    setup_arm: bool,
    root: Path | None,
    sources: Path | None,
    picture: Path | None,
) -> None:
    """Raise UsageError, or UnknownNameError, for options that do not go together."""
    from edge_export.bench.arm_root import check_core
    from fedsparse.errors import UnknownNameError

    if where not in (LOCAL, ARM):
        raise UnknownNameError("place", where, (LOCAL, ARM))
    if core is not None:
        check_core(core)
    if setup_arm and (files or picture):
        raise click.UsageError("--setup-arm measures no files; call it by itself")
    if sources is not None and not setup_arm:
        raise click.UsageError("--sources goes with --setup-arm")
    if setup_arm:
        return
    if not files:
        raise click.UsageError("give at least one .tflite or .onnx FILE")
    if len(set(files)) < len(files):
        raise click.UsageError("give each FILE once")
    if where == LOCAL and (core is not None or root is not None):
        raise click.UsageError("--core and --root go with --on arm")
    if where == ARM and threads != 1:
        raise click.UsageError("--on arm counts one thread; leave --threads out")
    if where == ARM and runtime_python is not None:
        raise click.UsageError("--runtime-python goes with --on local")


def _set_up(root: Path | None, sources: Path | None, as_json: bool, quiet: bool) -> None:
    import time

    from edge_export.bench import arm_root, arm_setup

    begun = time.monotonic()
    with _progress(quiet) as progress:
        made = arm_setup.set_up(root, sources=sources, progress=progress)
    size = sum(
        p.stat().st_size for p in made.folder.rglob("*") if p.is_file() and not p.is_symlink()
    )
    packages: dict[str, Any] = arm_root.record(made.folder).get("packages", {})
    if as_json:
        found = {"root": str(made.folder), "bytes": size, "python": made.python}
        seconds = round(time.monotonic() - begun, 1)
        click.echo(json.dumps({**found, "packages": packages, "seconds": seconds}))
        return
    named = ", ".join(f"{name} {version}" for name, version in packages.items())
    click.echo(f"{made.folder}: Python {made.python}, {named}; {size / 1e6:.0f} MB")


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """Show a bar on a terminal's standard error."""
    import sys

    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=quiet or not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)

        def show(text: str, done: int, total: int) -> None:
            bar.update(task, description=text, completed=done, total=total)

        yield show
