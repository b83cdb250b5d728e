"""What it costs to register many clients when few take part: seconds, memory, and files.

    .venv/bin/python -m benchmarks.bench_scale [--clients 10000,1000000] [--profile phones]

Each size runs in a process of its own: scikit-learn's digits, of which each client draws 32
samples of its own (data.partition = "sampled"), a small MLP at density 0.1, 1,000 clients a
round on two Ray workers, a checkpoint a round. Memory is the peak of a process (VmHWM) above
that of one that has only done the imports. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORKERS = 2
FIGURES = {
    "clients": "{:>10,}",
    "start-up s": "{:>10.1f}",
    "s a round": "{:>10.2f}",
    "driver MB": "{:>10.0f}",
    "worker MB": "{:>10.0f}",
    "clients.sqlite MB": "{:>17.2f}",
    "checkpoint MB": "{:>13.2f}",
}


def settings(
    clients: int, per_round: int, rounds: int, profile: str | None
) -> dict[str, dict[str, Any]]:
    """Return the configuration of one size, with devices and their clock if `profile` is set."""
    devices = {} if profile is None else {"profile": profile}
    return {
        "run": {"rounds": rounds},
        "data": {"name": "digits", "partition": "sampled", "samples_per_client": 32},
        "model": {"name": "mlp"},
        "strategy": {"name": "static", "density": 0.1},
        "fleet": {"clients": clients, "clients_per_round": min(per_round, clients), **devices},
        "engine": {"name": "ray", "workers": WORKERS},
    }


def peak(process: int | str = "self") -> float:
    """Return the most memory that a process has held, in MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(kilobytes) / 1024


def workers_below(process: int | str) -> list[int]:
    """Return the Ray workers among a process's children and theirs."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            name = Path(f"/proc/{child}/cmdline").read_bytes()
            if name.startswith(b"ray::") and not name.startswith(b"ray::IDLE"):
                found.append(int(child))
            found += workers_below(child)
    return found


def measure(clients: int, per_round: int, rounds: int, profile: str | None) -> dict[str, float]:
    """Run one size in this process and return its figures."""
    import sklearn.datasets  # noqa: F401

    import clients.client_app as _app  # noqa: F401
    from fedsparse.config import resolve
    from fedsparse.runs.progress import Silent
    from simulations import ray_workers  # noqa: F401
    from simulations.experiment import run_experiment

    bare = peak()
    started = time.perf_counter()
    seen: dict[str, float] = {}

    class Watch(Silent):
        """Looks at the processes after each round, when all that it needed was there."""

        def start(self, total_rounds: int, first_round: int) -> None:
            """Note when the run begins."""
            seen["start-up s"] = time.perf_counter() - started

        def round_done(self, row: dict[str, Any]) -> None:
            """Note how much memory the workers took."""
            for process in workers_below("self"):
                seen["worker MB"] = max(seen.get("worker MB", 0.0), peak(process) - bare)

    config = resolve(settings(clients, per_round, rounds, profile))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run_experiment(config, out, command="bench", progress=Watch())
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        newest = sorted((out / "checkpoints").glob(f"{rounds:06d}*"))
        return {
            "clients": clients,
            **seen,
            "s a round": sum(row["seconds"] for row in rows[1:]) / rounds,
            "driver MB": peak() - bare,
            "clients.sqlite MB": (out / "clients.sqlite").stat().st_size / 1e6,
            "checkpoint MB": sum(path.stat().st_size for path in newest) / 1e6,
        }


def main() -> None:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", default="10000,100000,1000000")
    parser.add_argument("--per-round", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", help="devices of the clients; no simulated clock if unset")
    parser.add_argument("--one", action="store_true", help="this size in this process, as JSON")
    given = parser.parse_args()
    sizes = [int(size) for size in given.clients.split(",")]
    if given.one:
        print(json.dumps(measure(sizes[0], given.per_round, given.rounds, given.profile)))
        return
    print("  ".join(name.rjust(len(form.format(0))) for name, form in FIGURES.items()))
    for size in sizes:
        command = [sys.executable, "-m", "benchmarks.bench_scale", "--one", "--clients", str(size)]
        command += ["--per-round", str(given.per_round), "--rounds", str(given.rounds)]
        command += ["--profile", given.profile] if given.profile else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print("  ".join(form.format(found[name]) for name, form in FIGURES.items()), flush=True)


if __name__ == "__main__":
    main()
