"""Made-up runs with devices: a fleet, a clock, late and lost clients, energy."""

import numpy as np
from run_folders import LAYERS, client_row, metrics_row, summary

from fedsparse.config import resolve
from fedsparse.runs import RunFolder

SPEEDS = {"board": 40.0, "phone": 12.0, "tablet": 6.0}
"""Seconds of computing in a round, by device."""

WATTS = {"board": (0.8, 0.3), "phone": (3.0, 1.2), "tablet": (4.0, 1.0)}
"""Watts of computing and of the radio, by device."""

DEVICES = {
    "profile": "mixed",
    "profiles": {"board": 16, "phone": 16, "tablet": 8},
    "limits": {"board": 256_000, "phone": 600_000, "tablet": None},
    "refused": {"memory": 3, "storage": 1, "battery": 0},
    "refused_by_profile": {"board": 4},
    "reduced": {"batch": 2, "density": 0},
    "memory_by_method": {
        "fedtiny": {
            "parameters": 40_000,
            "gradients": 40_000,
            "optimizer": 40_000,
            "activations": 90_000,
            "buffer": 12_000,
        },
        "prunefl": {
            "parameters": 40_000,
            "gradients": 400_000,
            "optimizer": 40_000,
            "activations": 90_000,
            "buffer": 0,
        },
    },
}


def make_timed_run(
    path,
    *,
    rounds=6,
    done=None,
    clients=40,
    asked=20,
    target=0.8,
    asynchronous=False,
    devices=DEVICES,
    reason="lost while training",
    change=None,
):
    """Write a run on simulated devices; `change` may alter each row of rounds and clients."""
    config = resolve(
        {
            "run": {"rounds": rounds, "target_accuracy": target},
            "strategy": {"name": "flwr.serverapp.strategy:FedAvg"},
            "fleet": {"clients": clients, "clients_per_round": asked, "profile": "mixed"},
        }
    )
    run = RunFolder.create(path, config, command="fedsparse run --preset demo")
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (clients, 4))
    run.write_json("partition.json", {"classes": 4, "counts": counts, "kind": "iid"})
    if devices is not None:
        run.write_json("devices.json", devices)
    clock = 0.0
    for number in range((rounds if done is None else done) + 1):
        chosen = sorted(rng.choice(clients, asked, replace=False).tolist()) if number else []
        bars = [timed_row(number, c, clock, rng, asynchronous, reason) for c in chosen]
        ends = [spent(row) for row in bars if row["status"] == "ok"]
        lasted = max(ends, default=0.0) if not asynchronous else min(ends, default=0.0)
        clock += lasted
        for late in (row for row in bars if row["status"] == "late"):
            late["upload_seconds"] = max(0.0, lasted - spent({**late, "upload_seconds": 0.0}))
        for bar in bars:
            bar["energy_joules"] = joules(bar)
        row = timed_metrics(number, bars, clock, asynchronous)
        for each in (row, *bars):
            if change:
                change(each)
        run.append_metrics(row)
        if bars:
            run.append_clients(bars)
    if done is None:
        run.finish({"w": np.zeros(2, np.float32)}, None, timed_summary(run.metrics(), target))
    return run


def spent(row):
    return row["download_seconds"] + row["compute_seconds"] + row["upload_seconds"]


def timed_row(number, client, clock, rng, asynchronous, reason):
    """Return a client's row; of twenty clients about one is late and one is lost."""
    device = list(SPEEDS)[client % 3]
    seconds = SPEEDS[device] * rng.uniform(0.8, 1.2)
    status = rng.choice(["ok", "late", "dropped"], p=[0.9, 0.05, 0.05])
    return {
        **client_row(number, client, ""),
        "status": str(status),
        "reason": {"late": "after the round had ended", "dropped": reason}.get(str(status)),
        "device": device,
        "started": max(0.0, clock - (rng.uniform(0, 60) if asynchronous else 0)),
        "download_seconds": rng.uniform(1, 3),
        "compute_seconds": seconds / (2 if status == "dropped" else 1),
        "upload_seconds": 0.0 if status == "dropped" else rng.uniform(2, 6),
        "staleness": int(rng.poisson(2)) if asynchronous else None,
    }


def joules(row):
    computing, radio = WATTS[row["device"]]
    moved = row["download_seconds"] + row["upload_seconds"]
    return computing * row["compute_seconds"] + radio * moved


def timed_metrics(number, bars, clock, asynchronous):
    statuses = [row["status"] for row in bars]
    return {
        **metrics_row(number, len(bars), 0.1, LAYERS),
        "clients_asked": len(bars),
        "clients_replied": statuses.count("ok"),
        "clients_late": statuses.count("late"),
        "clients_dropped": statuses.count("dropped"),
        "clients_refused": 4,
        "simulated_seconds": clock,
        "energy_joules": sum(row["energy_joules"] for row in bars),
        "staleness": 2.0 if asynchronous and number else None,
    }


def timed_summary(metrics, target):
    last = metrics[-1]
    hit = [i for i, row in enumerate(metrics) if target and row["accuracy"] >= target]
    until = metrics[: hit[0] + 1] if hit else []
    return {
        **summary(metrics),
        "simulated_seconds": last["simulated_seconds"],
        "energy_joules": sum(row["energy_joules"] or 0 for row in metrics),
        "clients_refused": 4,
        "target_accuracy": target,
        "rounds_to_target": until[-1]["round"] if until else None,
        "seconds_to_target": until[-1]["simulated_seconds"] if until else None,
        "bytes_to_target": sum(r["bytes_up"] + r["bytes_down"] for r in until) if until else None,
        "joules_to_target": sum(row["energy_joules"] for row in until) if until else None,
    }
