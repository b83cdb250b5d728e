"""What must hold of a run under faults, after each of its rounds and at its end.

Each function raises AssertionError with what is wrong. The mean of the replies that count is
worked out anew here, from the replies as they left the clients.
"""

import json
import math
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from fedsparse import messages, wire
from fedsparse.config import Config
from fedsparse.runs import RunFolder, tables
from fedsparse.runs.ledger import Ledger
from fedsparse.sparsity import Mask
from simulations.faults import TWICE, UNASKED, FaultyGrid, Schedule
from strategies.addressing import cohort
from strategies.base import SparseStrategy
from strategies.replies import split, spread
from strategies.rounds import RoundLoop

PLAIN_MEANS = ("fedavg", "static")
"""Strategies whose next model is the mean of the replies, to the bit."""


def after_round(loop: RoundLoop, number: int) -> None:
    """Check model, mask, rows and bytes of the round that has just ended."""
    grid, strategy = loop.grid.inner, loop.strategy
    assert isinstance(grid, FaultyGrid)
    assert isinstance(strategy, SparseStrategy)
    _model(loop.state, loop.mask, loop.config)
    rows = [r for r in loop.folder.clients() if r["round"] == number and r["kind"] == "train"]
    asked = cohort(loop.config.fleet, loop.config.run.seed, number)
    assert [row["client"] for row in rows] == asked, f"rows of {rows}, asked {asked}"
    _round_rows(rows, grid.faulty.schedule)
    _bytes(rows, grid.faulty, number)
    told = [row["round"] for row in tables.read(loop.folder.path / "metrics.jsonl")]
    assert told in (list(range(number)), list(range(number + 1))), f"rounds in metrics: {told}"
    entries = Ledger(loop.folder.path).verified()[1:]
    counted = [k for k in asked if grid.faulty.schedule.counts(messages.TRAIN, number, k)]
    assert entries[-1]["counted"] == counted, f"ledger counted {entries[-1]['counted']}"
    if loop.config.strategy["name"] in PLAIN_MEANS:
        _mean(loop, grid, number, counted)


def _model(state: Any, mask: Mask | None, config: Config) -> None:
    for name, value in state.items():
        assert np.isfinite(value).all(), f"{name} is not finite"
        if mask is not None and name in mask:
            assert not value[~mask[name]].any(), f"{name} is not zero outside of the mask"
    if mask is not None:
        most = math.ceil(config.strategy["density"] * mask.size)
        assert mask.kept <= most, f"the mask keeps {mask.kept} of at most {most}"


def _round_rows(rows: list[dict[str, Any]], schedule: Schedule) -> None:
    for row in rows:
        counts = schedule.counts(row["kind"], row["round"], row["client"])
        if row["kind"] == "evaluate" and not counts:
            counts = schedule.faults[("evaluate", row["round"], row["client"])] == "bare"
        assert (row["status"] == "ok") == counts, f"{row['client']} is {row['status']}"
        assert counts or row["reason"], f"client {row['client']} failed without a reason"


def _bytes(rows: list[dict[str, Any]], faulty: Any, number: int) -> None:
    """Hold the bytes of replies that arrived whole against the payloads that clients sent."""
    for row in rows:
        place = (messages.TRAIN, number, row["client"])
        fault = faulty.schedule.faults.get(place)
        if fault == UNASKED:
            assert row["bytes_up"] == 0, "bytes of a client that was not reached"
        elif faulty.schedule.counts(*place):
            records = faulty.whole[place].content.array_records.values()
            length = sum(wire.record_bytes(record) for record in records)
            wanted = length * (2 if fault == TWICE else 1)
            assert row["bytes_up"] == wanted, f"bytes_up {row['bytes_up']}, payload {wanted}"


def _mean(loop: RoundLoop, grid: FaultyGrid, number: int, counted: list[int]) -> None:
    """Hold the model against sum_k n_k w_k / sum_k n_k, each sum rounded once."""
    schema, mask = loop.task.schema, loop.mask
    found, weights = [], []
    for client in counted:
        reply = grid.faulty.whole[(messages.TRAIN, number, client)]
        payload = wire.unpack(messages.arrays_of(reply))
        found.append(wire.decode_flat(payload, schema, mask).values.astype(np.float64))
        weights.append(int(messages.metrics_of(reply)[messages.EXAMPLES_KEY]))
    terms = np.array([w * v for w, v in zip(weights, found, strict=True)])
    sums = np.array([math.fsum(column) for column in terms.T])
    mean = (sums / sum(weights)).astype(np.float32)
    for name, value in spread(split(mean, schema, mask), mask).items():
        assert np.array_equal(value, loop.state[name]), f"{name} is not the mean of {counted}"


def after_death(out: Path) -> None:
    """Check that each file which is written at once is whole, as soon as it has its name."""
    for path in sorted(out.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            if path.suffix == ".safetensors":
                safetensors.numpy.load_file(path)
            elif path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".toml":
                tomllib.loads(path.read_text())
        except (ValueError, safetensors.SafetensorError) as error:
            raise AssertionError(f"{path.relative_to(out)} is not whole: {error}") from error


def at_the_end(out: Path, config: Config, schedule: Schedule) -> None:
    """Check a finished run's folder as a whole."""
    folder = RunFolder.open(out)
    assert folder.finished, "no summary"
    assert folder.lost() == [], f"damaged: {folder.lost()}"
    rounds = [row["round"] for row in folder.metrics()]
    assert rounds == list(range(config.run.rounds + 1)), f"rounds in metrics: {rounds}"
    rows = folder.clients()
    twice = [
        k for k, n in Counter((r["kind"], r["round"], r["client"]) for r in rows).items() if n > 1
    ]
    assert twice == [], f"rows that are there twice: {twice}"
    train = [row for row in rows if row["kind"] == "train"]
    for number in rounds[1:]:
        asked = cohort(config.fleet, config.run.seed, number)
        assert [r["client"] for r in train if r["round"] == number] == asked
    _round_rows(rows, schedule)
    totals = json.loads((out / "summary.json").read_text())
    for key in ("bytes_up", "bytes_down"):
        there = sum(r[key] for r in rows) + folder.metrics()[0][key]
        assert totals[key] == there, f"{key} {totals[key]}, rows say {there}"
    entries = Ledger(out).verified()[1:]
    assert [entry["round"] for entry in entries] == rounds, "rounds in the ledger"
    number, _ = folder.latest_checkpoint(_no_note) or (-1, {})
    assert number == config.run.rounds, f"the newest checkpoint is of round {number}"
    left = [p.name for p in out.rglob(".*.tmp-*")]
    assert left == [], f"left over: {left}"


def _no_note(text: str) -> None:
    raise AssertionError(text)
