"""`fedsparse doctor`: what is installed, what is missing, and what that disables.

It reads versions without importing packages, so that it is quick and answers on a broken
installation, too.
"""

import json
import os
import platform
from collections.abc import Container
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import click

from fedsparse import __version__

EVERY_RUN = "every run"
REQUIRED = {
    "ai-edge-litert": "fedsparse export and bench",
    "click": "the command line",
    "flwr": EVERY_RUN,
    "numpy": EVERY_RUN,
    "pyarrow": EVERY_RUN,
    "pydantic": EVERY_RUN,
    "ray": "the engines ray and flower",
    "rich": "progress and summaries",
    "safetensors": EVERY_RUN,
    "scikit-learn": "data set digits",
    "scipy": "epsilon of private runs",
    "tomli-w": EVERY_RUN,
    "torch": EVERY_RUN,
}
NODE = frozenset({"click", "flwr", "numpy", "pydantic", "safetensors", "scikit-learn", "tomli-w"})
"""Of these, what a light node is installed with: it trains by the kernels, without torch."""
WHOLE, LIGHT, INCOMPLETE = "whole", "light node", "incomplete"
OPTIONAL = {
    "report": {
        "jinja2": "report.html",
        "plotly": "report.html",
        "tensorboard": "TensorBoard events",
    },
    "data": {"flwr-datasets": "data set huggingface", "pillow": "data set image-folder"},
    "export": {"litert-torch": "fedsparse export --route litert-torch"},
    "onnx": {"onnx": "export to .onnx", "onnxruntime": "export to .onnx, and its bench"},
    "executorch": {"executorch": "export to .pte"},
    "micro": {"tflite-micro": "the arena's size in an exported .h"},
    "deploy": {"cryptography": "deployments with TLS, secure.aggregation"},
    "tune": {"optuna": "fedsparse tune"},
}
NATIVE = "native training, runs use torch"
NATIVE_NODE = "all training, as torch is left out, too"
COMPILE = "install a C++ compiler and pip install --force-reinstall fedsparse"


@click.command(
    short_help="Say what is installed, what is missing, and what that disables.",
    epilog="\b\nExamples:\n  fedsparse doctor\n  fedsparse doctor --json\n",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Say what is installed here, what is missing, and what that disables."""
    found = examine()
    if as_json:
        click.echo(json.dumps(found))
        return
    machine = found["machine"]
    click.echo(
        f"fedsparse {found['fedsparse']}, Python {machine['python']}, {machine['cores']} cores, "
        f"{machine['memory_gib']:.1f} GiB, {machine['processor']}"
    )
    if found["kind"] == LIGHT:
        click.echo(
            "  light    node: trains by the native kernels, without torch; what is left out is for "
            "servers, simulations and torch's programs"
        )
    for name, number in found["installed"].items():
        click.echo(f"  ok       {name} {number}")
    for name, lost in found["unfit"].items():
        click.echo(f"  unfit    {name} {lost['version']}: fedsparse needs {lost['needs']}")
    for name, lost in found["missing"].items():
        click.echo(f"  missing  {name}: disables {lost['disables']}; {lost['remedy']}")
    click.echo(_kernels_line(found["kernels"]))
    for name, state in found["datasets"].items():
        click.echo(f"  data     {name}: {state}")


def examine() -> dict[str, Any]:
    """Return versions, what is missing with what it disables, data sets, the machine."""
    installed: dict[str, str] = {}
    unfit: dict[str, dict[str, str]] = {}
    missing: dict[str, dict[str, str]] = {}
    needs = _needs()
    features = [(name, lost, "fedsparse") for name, lost in REQUIRED.items()]
    for extra, packages in OPTIONAL.items():
        features += [(name, lost, f"fedsparse[{extra}]") for name, lost in packages.items()]
    for name, lost, source in features:
        number = _version(name)
        if number is None:
            missing[name] = {"disables": lost, "remedy": f"pip install '{source}'"}
        elif name in needs and not _fits(number, needs[name]):
            unfit[name] = {"version": number, "needs": needs[name]}
        else:
            installed[name] = number
    kind = _kind(missing)
    if kind == LIGHT:
        missing = {}
    return {
        "fedsparse": __version__,
        "kind": kind,
        "installed": installed,
        "unfit": unfit,
        "missing": missing,
        "kernels": _kernels(NATIVE_NODE if kind == LIGHT else NATIVE),
        "datasets": _datasets(),
        "machine": _machine(),
    }


def _kind(missing: Container[str]) -> str:
    """Say whether all is here, or what a light node needs, or neither."""
    if not any(name in missing for name in REQUIRED):
        return WHOLE
    lacks = "torch" in missing and not any(name in missing for name in NODE)
    return LIGHT if lacks else INCOMPLETE


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _needs() -> dict[str, str]:
    """Return the versions that fedsparse asks for, by package, as its metadata says."""
    try:
        from packaging.requirements import Requirement

        asked = [Requirement(line) for line in requires("fedsparse") or []]
    except (ImportError, PackageNotFoundError):
        return {}
    return {each.name.lower(): str(each.specifier) for each in asked if each.specifier}


def _fits(number: str, specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(number, prereleases=True)


def _kernels(disables: str) -> dict[str, Any]:
    """Say which native kernels run here and who compiled them, or why none do."""
    try:
        from fedsparse.kernels import library, rule
    except ImportError as error:
        return {"because": str(error), "disables": disables, "remedy": "pip install fedsparse"}
    try:
        return {**library.describe(), **asdict(rule.measured())}
    except library.Unavailable as error:
        return {"because": str(error), "disables": disables, "remedy": error.remedy or COMPILE}


def _kernels_line(found: dict[str, Any]) -> str:
    if "because" in found:
        lost, remedy = found["disables"], found["remedy"]
        return f"  missing  kernels ({found['because']}): disables {lost}; {remedy}"
    linear, conv = found["linear_below"], found["conv_below"]
    return (
        f"  ok       kernels for {found['instruction_set']}, compiled by {found['compiler']}; "
        f"sparse below a density of {linear:g} (linear), {conv:g} (convolution)"
    )


def _datasets() -> dict[str, str]:
    """Say which data sets are on this machine."""
    found = {"digits": "embedded in scikit-learn"}
    try:
        from fedsparse.data.sources import fashion_folder
    except ImportError as error:
        return {**found, "fashion-mnist": f"cannot be looked for: {error}"}
    folder = fashion_folder()
    lacking = "not found; Debian's package dataset-fashion-mnist has it"
    return {**found, "fashion-mnist": str(folder) if folder else lacking}


def _machine() -> dict[str, Any]:
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(own) if own else os.cpu_count(),
        "memory_gib": round(pages / 2**30, 2),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
