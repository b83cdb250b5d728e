"""Every way to forget on Fashion-MNIST, beside retraining: what is left, and what it costs.

    .venv/bin/python -m benchmarks.bench_unlearn [--seeds 0,1,2] [--methods l1-sparse,..]
        [--settings class-dense,..] [--rounds 30] [--work DIR] [--json FILE]

Dense and sparse (0.05) originals forget a class, a client that planted a backdoor, or a tenth
of all training samples, drawn at random. Strengths are chosen by the gap to retraining on a seed
that no figure is of; each method then forgets with its own for each seed. Retrained runs of other
seeds are the references of the strong attack. Stopped and started again, finished runs are kept.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from fedsparse import data, registry
from fedsparse.config import Config, ForgetConfig, override, resolve
from fedsparse.errors import FedSparseError
from fedsparse.number_set import text_of
from fedsparse.runs import RunFolder
from fedsparse.runs.progress import Silent
from simulations.evidence import attacks, audit, costs
from simulations.evidence.examine import Examined, average_gap, examine, subject_of
from simulations.evidence.samples import Samples
from simulations.evidence.spread import spread
from simulations.unlearning import reference, tries
from simulations.unlearning.target import Target
from strategies.task import Task
from strategies.unlearning import choice

TUNED_ON = 100
KINDS = ("class", "client", "samples")
ORIGINALS = {
    "dense": ["strategy.name=fedavg", "strategy.density=1.0"],
    "sparse": [
        "strategy.name=fedtiny",
        "strategy.density=0.05",
        "strategy.candidates=2",
        "strategy.adjust_every=2",
        "strategy.stop_round=20",
    ],
}
LOOKED_AT = 4_000
"""Samples of a set that models are asked about: shares of them are within 1.6 points."""


def config(original: str, kind: str, seed: int, rounds: int) -> Config:
    """Return an original: 10 clients, Dirichlet(0.5), 6,000 samples, the same for all seeds."""
    common = [
        f"run.seed={seed}",
        f"run.rounds={rounds}",
        f"run.eval_every={rounds}",
        "run.checkpoint_every=5",
        "run.keep_norms=true",
        "data.name=fashion-mnist",
        "data.seed=0",
        "data.samples=6500",
        "data.public_samples=500",
        "data.test_samples=5000",
        "data.client_test_fraction=0.0",
        "data.alpha=0.5",
        "data.min_per_client=50",
        "model.name=paper-cnn",
        "client.lr=0.05",
        "client.batch_size=50",
        "fleet.clients=10",
        "fleet.evaluate_clients=0",
        "engine.name=inline",
    ]
    poisoned = ["attack.clients=0", "attack.label=7", "attack.fraction=0.5", "attack.size=4"]
    return resolve(
        override({}, [*common, *ORIGINALS[original], *(poisoned if kind == "client" else [])])
    )


def target_of(kind: str, original: Config) -> Target:
    """Return class 0, client 0, or a random tenth of all training samples."""
    if kind == "class":
        return Target(ForgetConfig(classes="0"))
    if kind == "client":
        return Target(ForgetConfig(clients="0"))
    federated = data.of(original)
    ids = np.concatenate([federated.ids(client) for client in range(federated.clients)])
    chosen = np.random.default_rng(0).choice(ids, len(ids) // 10, replace=False)
    return Target(ForgetConfig(samples=text_of(chosen.tolist())))


class Setting:
    """An original of one kind with one target: its runs for every seed, made when asked for."""

    def __init__(self, name: str, work: Path, rounds: int) -> None:
        self.kind, _, self.original = name.partition("-")
        self.home = work / name
        self.rounds = rounds
        self.target = target_of(self.kind, config(self.original, self.kind, 0, rounds))

    def parent(self, seed: int) -> RunFolder:
        """Return the original of a seed."""
        return self._made(f"original-{seed}", config(self.original, self.kind, seed, self.rounds))

    def retrained(self, seed: int) -> RunFolder:
        """Return the run of a seed that never had the target."""
        config = reference.retraining(self.parent(seed), self.target)
        return self._made(f"retrained-{seed}", config)

    def _made(self, name: str, config: Config) -> RunFolder:
        folder = self.home / name
        tries.begin_or_go_on(config, folder, command="bench_unlearn", progress=Silent())
        return RunFolder.open(folder)

    def tuned(self, method: str) -> tuple[list[str], dict[str, Any]]:
        """Return the changes that set a method's best strength, and what the search cost."""
        parent, again = self.parent(TUNED_ON), self.retrained(TUNED_ON)
        wanted = self._tries(parent, method)
        if len(wanted) == 1:
            return [], {"value": None, "tries": 1}
        wished = reference.from_retrained(*self.looked_at, [again])
        found = tries.run_all(
            wanted,
            self.home / "tuning",
            partial(reference.gap_to, *self.looked_at, wished),
            command="bench_unlearn",
            watch=lambda text: Silent(),
        )
        best = tries.best(found)
        told = {"value": best.which.value, "gap": best.gap, "tries": len(found)}
        return [f"strategy.{best.which.knob}={best.which.value}"], told

    def _tries(
        self, parent: RunFolder, method: str, changes: Sequence[str] = ()
    ) -> list[tries.Try]:
        return tries.tries(
            parent, self.target, method, changes=changes, budget=100.0, note=lambda text: None
        )

    def forgotten(self, method: str, changes: Sequence[str], seed: int) -> RunFolder:
        """Return the run of a seed that has forgotten by a method."""
        (which,) = self._tries(self.parent(seed), method, changes)
        strength = f"-{which.config.strategy[which.knob]:g}" if which.knob else ""
        return self._made(f"{method}{strength}-{seed}", which.config)

    @cached_property
    def looked_at(self) -> tuple[Task, Samples]:
        """The model to load states into, and the samples that all models are asked about."""
        again = self.retrained(TUNED_ON)
        return audit.setting(self.parent(TUNED_ON), again.config, LOOKED_AT)

    @cache  # noqa: B019 - there is one setting a process
    def examined(self, which: str, seed: int) -> Examined:
        """Return what the original or the retrained model of a seed says."""
        made = self.parent(seed) if which == "original" else self.retrained(seed)
        return examine(*self.looked_at, subject_of(made))

    def audited(
        self, child: RunFolder, seed: int, seeds: Sequence[int]
    ) -> tuple[dict[str, dict[str, float | None]], dict[str, float]]:
        """Return the measures of all models of a seed, and the cost by that of retraining."""
        others = [self.examined("retrained", other) for other in seeds if other != seed]
        models = {
            "original": self.examined("original", seed),
            "unlearned": examine(*self.looked_at, subject_of(child)),
        }
        again = self.examined("retrained", seed)
        told = {name: dict(each.measures) for name, each in models.items()}
        told["retrained"] = dict(again.measures)
        attacked = attacks.attack(self.looked_at[1], models, again, others)
        for kind, curves in attacked.curves.items():
            for name, curve in curves.items():
                told[name] |= attacks.figures(kind, curve)
        for name, each in models.items():
            told[name]["gap"] = average_gap(each.measures, again.measures)
        ratio = costs.costs(costs.cost_of(child), [], costs.cost_of(self.retrained(seed))).ratio
        return told, ratio


def measured(setting: Setting, methods: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the rows of a setting: original, retrained, and every method that can forget it."""
    rows: dict[str, list[dict[str, Any]]] = {}
    tuning = {}
    for method in methods:
        try:
            changes, tuning[method] = setting.tuned(method)
            for seed in seeds:
                child = setting.forgotten(method, changes, seed)
                told, ratio = setting.audited(child, seed, seeds)
                rows.setdefault(method, []).append({**told["unlearned"], "cost": ratio})
                for name in ("original", "retrained"):
                    if len(rows.setdefault(name, [])) < len(seeds):
                        rows[name].append(told[name])
        except FedSparseError as error:
            tuning[method] = {"error": str(error)}
            rows.pop(method, None)
        print(f"{setting.home.name}: {method}: {tuning[method]}", file=sys.stderr, flush=True)
    return {"rows": rows, "tuning": tuning}


def one(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a setting in this process."""
    kind = name.partition("-")[0]
    able = choice.fitting(kind)
    methods = [method for method in args.methods or able if method in able]
    return measured(Setting(name, args.work, args.rounds), methods, args.seeds)


def apart(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a setting in a process of its own."""
    out = args.work / f"{name}.json"
    words = [sys.executable, "-m", "benchmarks.bench_unlearn", "--only", name, "--json", str(out)]
    words += ["--seeds", ",".join(map(str, args.seeds)), "--rounds", str(args.rounds)]
    words += ["--methods", ",".join(args.methods), "--work", str(args.work)]
    subprocess.run(words, check=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def shown(rows: Sequence[dict[str, Any]], key: str, *, percent: bool = True) -> str:
    """Return the mean of a measure over seeds with half its 95 % interval."""
    found = spread([row.get(key) for row in rows])
    if found is None:
        return "-"
    scale, digits = (100, 1) if percent else (1, 0)
    text = f"{scale * found.mean:.{digits}f}"
    return text if found.ci95 is None else f"{text} ± {scale * found.ci95:.{digits}f}"


def show(name: str, result: dict[str, Any]) -> None:
    """Print a setting's table as Markdown."""
    print(f"\n**{name.replace('-', ', ')}**\n")
    print("| method | strength | UA | MIA | RA | TA | gap | backdoor | LiRA | rounds | time |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    rows, tuning = result["rows"], result["tuning"]
    order = ["original", "retrained", *sorted(set(rows) - {"original", "retrained"})]
    for method in (each for each in order if each in rows):
        cost = [row["cost"] for row in rows[method] if "cost" in row]
        value = tuning.get(method, {}).get("value")
        cells = [method, "-" if value is None else f"{value:g}"]
        cells += [shown(rows[method], key) for key in ("ua", "mia", "ra", "ta", "gap", "backdoor")]
        cells += [shown(rows[method], "lira_auc")]
        cells += [
            f"{statistics.mean(c[key] for c in cost):.2f}" if cost else "-"
            for key in ("rounds", "seconds")
        ]
        print("| " + " | ".join(cells) + " |")
    for method, told in tuning.items():
        if "error" in told:
            print(f"\n{method}: {told['error']}")


def gates(results: dict[str, dict[str, Any]]) -> list[str]:
    """Return what the specification's margins say of the results."""
    said = []

    def mean(setting: str, method: str, key: str) -> float | None:
        rows = results.get(setting, {}).get("rows", {}).get(method, [])
        found = spread([row.get(key) for row in rows])
        return None if found is None else found.mean

    def check(name: str, holds: bool | None) -> None:
        if holds is not None:
            said.append(f"{name}: {'holds' if holds else 'FAILS'}")

    def difference(setting: str, one: str, other: str, key: str) -> float | None:
        a, b = mean(setting, one, key), mean(setting, other, key)
        return None if a is None or b is None else a - b

    for original in ORIGINALS:
        setting = f"class-{original}"
        ua, fine = mean(setting, "l1-sparse", "ua"), mean(setting, "fine-tuning", "ua")
        ra = difference(setting, "l1-sparse", "retrained", "ra")
        ta = difference(setting, "l1-sparse", "retrained", "ta")
        if ua is not None and ra is not None and ta is not None and fine is not None:
            check(
                f"G7 {original}: |UA - 1| of l1-sparse {abs(ua - 1):.3f} <= 0.05",
                abs(ua - 1) <= 0.05,
            )
            check(f"G7 {original}: RA to retraining {ra:+.3f} >= -0.05", ra >= -0.05)
            check(f"G7 {original}: TA to retraining {ta:+.3f} >= -0.02", ta >= -0.02)
            check(f"G7 {original}: UA of fine-tuning {fine:.3f} <= 0.6", fine <= 0.6)
        pruned = difference(setting, "prune-finetune", "fine-tuning", "ua")
        if pruned is not None:
            check(
                f"G7 {original}: UA, pruned first to fine-tuning {pruned:+.3f} >= 0.10",
                pruned >= 0.1,
            )
        for kind in ("client", "samples"):
            setting = f"{kind}-{original}"
            gap = difference(setting, "prune-finetune", "fine-tuning", "gap")
            if gap is not None:
                check(
                    f"G8 {setting}: gap, pruned first to fine-tuning {gap:+.4f} <= -0.005",
                    gap <= -0.005,
                )
            gap = difference(setting, "l1-sparse", "fine-tuning", "gap")
            if gap is not None:
                check(f"G8 {setting}: gap, l1-sparse to fine-tuning {gap:+.4f} <= 0", gap <= 0)
        setting = f"client-{original}"
        asr = {name: mean(setting, name, "backdoor") for name in ("original", "retrained")}
        if asr["original"] is not None and asr["retrained"] is not None:
            check(
                f"G8 {setting}: backdoor, original {asr['original']:.3f} >= 0.8",
                asr["original"] >= 0.8,
            )
            check(
                f"G8 {setting}: backdoor, retrained {asr['retrained']:.3f} <= 0.1",
                asr["retrained"] <= 0.1,
            )
            rows = results[setting]["rows"]
            gaps = {m: mean(setting, m, "gap") for m in rows if m not in asr}
            best = min((m for m in gaps if gaps[m] is not None), key=lambda m: gaps[m] or 0.0)
            left = mean(setting, best, "backdoor") or 0.0
            check(
                f"G8 {setting}: backdoor after {best}, best by gap, {left:.3f} <= retrained + 0.1",
                left <= asr["retrained"] + 0.1,
            )
    return said


def main() -> None:
    """Measure every setting, two at a time, and print tables and gates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    settings = [f"{kind}-{original}" for kind in KINDS for original in ORIGINALS]
    parser.add_argument("--settings", default=",".join(settings))
    parser.add_argument("--methods", default="")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--work", type=Path, default=Path("runs/bench-unlearn"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.seeds = [int(seed) for seed in args.seeds.split(",")]
    args.methods = [method for method in args.methods.split(",") if method]
    for method in args.methods:
        registry.load("methods", method)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.only:
        args.json.write_text(json.dumps(one(args.only, args)) + "\n")
        return
    names = args.settings.split(",")
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(names, pool.map(partial(apart, args=args), names), strict=True))
    for name, result in results.items():
        show(name, result)
    print("\n" + "\n".join(gates(results)))
    if args.json:
        content = {"machine": machine.describe(), "rounds": args.rounds, "results": results}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
