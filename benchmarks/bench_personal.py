"""Personal models on Fashion-MNIST: pFedGate beside its rivals, each tuned with as many trials.

    .venv/bin/python -m benchmarks.bench_personal [--clients 20] [--alphas 0.1,0.5] [--trials 6]
        [--seeds 0,1,2] [--methods fedavg,ft1,..] [--work DIR] [--json FILE]

Each method is tuned by `fedsparse tune` on a seed of its own, then all run by `fedsparse compare`
with seeds that none was tuned on. What is measured is the accuracy of the model that each client
uses, on the quarter of its own samples that it never trains on. Stopped and started again, finished
runs are not repeated. Gates of the specification (margins at alpha 0.1) are checked at the end.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine

TUNED_ON = "100"
LR = "client.lr=log:0.02:0.5"

METHODS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "fedavg": ("fedavg", (), ()),
    "local": ("local", (), ()),
    "ft1": ("finetune", ("strategy.finetune_epochs=1",), ()),
    "ft5": ("finetune", ("strategy.finetune_epochs=5",), ()),
    "ditto": ("ditto", (), ("strategy.personal_lambda=log:0.01:2.0",)),
    "fedrep": ("fedrep", (), ()),
    "fedbn": ("fedbn", (), ()),
    "heterofl": ("heterofl", ("strategy.static_norm=false",), ()),
    "dispfl": ("dispfl", ("strategy.density=0.5",), ()),
    "lotteryfl": ("lotteryfl", ("strategy.density=0.5",), ()),
    "pfedgate-1": ("pfedgate", ("strategy.density=1.0",), ("strategy.gate_lr=log:0.3:10.0",)),
    "pfedgate-0.5": ("pfedgate", ("strategy.density=0.5",), ("strategy.gate_lr=log:0.3:10.0",)),
    "pfedgate-0.3": ("pfedgate", ("strategy.density=0.3",), ("strategy.gate_lr=log:0.3:10.0",)),
}
"""By name: the strategy, its fixed settings, and what is searched beside the learning rate."""

BASELINE = "fedavg"


def common(clients: int, alpha: float) -> list[str]:
    """Return the settings of every run: 200 samples a client of 20, 60 of 100."""
    few = clients <= 20
    return [
        "data.name=fashion-mnist",
        "data.public_samples=0",
        "data.test_samples=2000",
        "data.client_test_fraction=0.25",
        f"data.samples={4000 if few else 60 * clients}",
        f"data.min_per_client={20 if few else 10}",
        f"data.alpha={alpha}",
        "model.name=paper-cnn",
        "client.batch_size=32",
        "client.momentum=0.0",
        "client.local_epochs=1",
        f"fleet.clients={clients}",
        f"fleet.clients_per_round={clients if few else 20}",
        f"fleet.evaluate_clients={clients}",
        f"run.rounds={40 if few else 100}",
        "run.eval_every=20",
        "run.checkpoint_every=20",
        "run.keep_checkpoints=1",
    ]


def fedsparse(*words: str) -> dict[str, Any]:
    """Run a command with `--json` and return what it prints."""
    command = [sys.executable, "-m", "fedsparse.cli", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"`{shlex.join(['fedsparse', *words])}` ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def config_file(work: Path, clients: int, alpha: float) -> Path:
    """Write a configuration that every run starts from: the strategy and its keys alone differ."""
    tables: dict[str, list[str]] = {}
    for assignment in common(clients, alpha):
        key, _, value = assignment.partition("=")
        section, _, name = key.partition(".")
        quoted = value if value.replace(".", "").isdigit() else f'"{value}"'
        tables.setdefault(section, []).append(f"{name} = {quoted}")
    path = work / "base.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(f"[{name}]\n" + "\n".join(rows) + "\n" for name, rows in tables.items())
    )
    return path


def tuned(work: Path, base: Path, method: str, trials: int) -> list[str]:
    """Return a method's best settings, after as many trials as every other's."""
    strategy, fixed, space = METHODS[method]
    words = ["tune", str(base), "--strategies", strategy, "--trials", str(trials)]
    words += ["--batch", str(trials)]  # of so few, none could learn from another
    words += [word for entry in (LR, *space) for word in ("--space", entry)]
    words += [word for entry in fixed for word in ("--set", entry)]
    out = str(work / "tune" / method)
    found = fedsparse(*words, "--seeds", TUNED_ON, "--out", out)
    best = found["best"][strategy]
    if best is None:
        raise SystemExit(f"no trial of {method} came to an end; see {out}")
    return [*fixed, *(word for word in shlex.split(best["set"]) if word != "--set")]


def table(work: Path, args: argparse.Namespace, clients: int, alpha: float) -> dict[str, Any]:
    """Tune and compare all methods in one setting."""
    folder = work / f"c{clients}-a{alpha}"
    base = config_file(folder, clients, alpha)
    settings = {}
    for method in args.methods:
        settings[method] = tuned(folder, base, method, args.trials)
        print(f"{clients} clients, alpha {alpha}: {method}: {settings[method]}", file=sys.stderr)
    variants = [f"{name}: {' '.join(words)}" for name, words in settings.items()]
    words = ["compare", str(base), "--seeds", args.seeds, "--out", str(folder / "compare")]
    words += [word for variant in variants for word in ("--variant", variant)]
    words += ["--baseline", BASELINE] if BASELINE in args.methods else []
    found = fedsparse(*words)
    return {"clients": clients, "alpha": alpha, "settings": settings, "table": found["table"]}


def gates(results: list[dict[str, Any]]) -> list[str]:
    """Return what the margins of the specification say of the results at alpha 0.1."""
    said = []
    for result in results:
        if result["alpha"] != 0.1:
            continue
        found = {row["variant"]: row["accuracy_personal_mean"] for row in result["table"]}
        plain = found.get(BASELINE)
        for name in ("ft1", "pfedgate-1", "pfedgate-0.5", "pfedgate-0.3"):
            if plain is not None and found.get(name) is not None:
                gain = found[name] - plain
                verdict = "holds" if gain >= 0.05 else "FAILS"
                said.append(
                    f"{result['clients']} clients: {name} - fedavg = {gain:+.3f}: {verdict}"
                )
        half, whole = found.get("pfedgate-0.5"), found.get("pfedgate-1")
        if half is not None and whole is not None:
            apart = half - whole
            verdict = "holds" if abs(apart) <= 0.03 else "FAILS"
            said.append(f"{result['clients']} clients: s = 0.5 - s = 1: {apart:+.3f}: {verdict}")
    return said


def show(result: dict[str, Any]) -> None:
    """Print one setting's table as Markdown."""
    print(f"\n**{result['clients']} clients, Dirichlet({result['alpha']})**\n")
    print("| method | own models | to fedavg | weakest tenth | global | sent | TFLOP | memory |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in result["table"]:
        mean, low = "accuracy_personal_mean", "accuracy_personal_p10"
        cells = [
            row["variant"],
            interval(row[mean], row[f"{mean}_ci95"]),
            interval(row[f"{mean}_difference"], row[f"{mean}_difference_ci95"], signed=True),
            interval(row[low], row[f"{low}_ci95"]),
            interval(row["accuracy"], row["accuracy_ci95"]),
            f"{row['bytes'] / 1e6:,.0f} MB",
            f"{row['train_flops'] / 1e12:.2f}",
            f"{row['peak_client_memory_bytes'] / 1e6:.2f} MB",
        ]
        print("| " + " | ".join(cells) + " |")


def interval(middle: float | None, half: float | None, *, signed: bool = False) -> str:
    """Return a fraction as per cent with half its interval; a dash for none."""
    if middle is None:
        return "-"
    text = f"{100 * middle:{'+' if signed else ''}.1f}"
    return text if half is None else f"{text} ± {100 * half:.1f}"


def main() -> None:
    """Run every setting and print tables and gates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", default="20,100")
    parser.add_argument("--alphas", default="0.1,0.5")
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--work", type=Path, default=Path("runs/bench-personal"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.methods = args.methods.split(",")
    results = []
    for clients in map(int, args.clients.split(",")):
        for alpha in map(float, args.alphas.split(",")):
            results.append(table(args.work, args, clients, alpha))
            show(results[-1])
            if args.json:
                content = {"machine": machine.describe(), "trials": args.trials, "results": results}
                args.json.write_text(json.dumps(content, indent=1) + "\n")
    print("\n" + "\n".join(gates(results)))


if __name__ == "__main__":
    main()
