"""Small run folders with made-up figures, written through `RunFolder` like real ones."""

import numpy as np

from fedsparse.config import resolve
from fedsparse.runs import RunFolder

LAYERS = ("conv1.weight", "conv2.weight", "stage1.block0.downsample.conv.weight", "fc.weight")


def make_run(
    path,
    *,
    rounds=6,
    done=None,
    clients=5,
    classes=4,
    density=0.1,
    layers=LAYERS,
    command="fedsparse run --preset demo",
    reason="worker 1 died (signal 9)",
    changes=None,
    settings=None,
    figures=None,
    tested=True,
):
    """Write a run that did `done` of its `rounds`; it is finished when that is all.

    `changes` maps a metrics key to a function of its value, for odd figures; `settings` are more
    of the configuration, `figures` more of the summary. Clients test unless `tested` is false.
    """
    config = resolve(
        {
            "run": {"rounds": rounds},
            "strategy": {"name": "flwr.serverapp.strategy:FedAvg"},
            "fleet": {"clients": clients},
            **(settings or {}),
        }
    )
    run = RunFolder.create(path, config, command=command)
    rng = np.random.default_rng(0)
    run.write_json(
        "partition.json",
        {"classes": classes, "counts": rng.integers(0, 50, (clients, classes)), "kind": "iid"},
    )
    done = rounds if done is None else done
    for number in range(done + 1):
        row = metrics_row(number, clients, density, layers)
        for key, change in (changes or {}).items():
            row[key] = change(row[key])
        run.append_metrics(row)
        if number:
            run.append_clients([client_row(number, c, reason) for c in range(clients)])
    if done == rounds:
        tests = rng.uniform(0.5, 1, clients if tested else 0)
        run.append_clients(
            [
                {"round": rounds, "client": c, "kind": "evaluate", "status": "ok", "accuracy": a}
                for c, a in enumerate(tests)
            ]
        )
        run.finish(
            {"w": np.zeros(2, np.float32)}, None, {**summary(run.metrics()), **(figures or {})}
        )
    return run


def metrics_row(number, clients, density, layers):
    return {
        "round": number,
        "accuracy": 0.9 - 0.8 / (number + 1),
        "loss": 2.0 / (number + 1),
        "train_loss": None if number == 0 else 1.5 / number,
        "density": density,
        "layer_density": {name: density * (i + 1) / 2 for i, name in enumerate(layers)},
        "mask_change": max(0, 40 - 10 * number) if number else 0,
        "bytes_up": 12_345 * clients * bool(number),
        "bytes_down": 23_456 * clients * bool(number),
        "train_flops": 1.5e9 * bool(number),
        "peak_client_memory_bytes": 412_000,
        "clients_asked": clients,
        "clients_replied": clients,
        "clients_failed": 0,
        "seconds": 1.25,
    }


def client_row(number, client, reason):
    failed = client == 1 and number == 2
    return {
        "round": number,
        "client": client,
        "kind": "train",
        "status": "failed" if failed else "ok",
        "reason": reason if failed else None,
        "examples": 20,
        "loss": 1.0,
    }


def summary(metrics):
    last = metrics[-1]
    return {
        "accuracy": last["accuracy"],
        "loss": last["loss"],
        "density": last["density"],
        "bytes_up": sum(row["bytes_up"] or 0 for row in metrics),
        "bytes_down": sum(row["bytes_down"] or 0 for row in metrics),
        "train_flops": sum(row["train_flops"] for row in metrics),
        "peak_client_memory_bytes": last["peak_client_memory_bytes"],
        "wall_seconds": 75.4,
    }
