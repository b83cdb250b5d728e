"""The headline figures of a report: which ones runs have, and each in words and units.

What a run without simulated devices or without a target cannot have is left out.
"""

from collections.abc import Sequence

from simulations import units
from simulations.results import Results, number

Column = tuple[str, str, str]
"""Key of the summary, name, what it says in plain words."""

COLUMNS: tuple[Column, ...] = (
    ("accuracy", "Accuracy", "of the held-out test samples are answered right"),
    ("density", "Density", "of the prunable weights are kept"),
    ("bytes_up", "Sent up", "from clients to the server, all rounds together"),
    ("bytes_down", "Sent down", "from the server to clients, all rounds together"),
    ("wall_seconds", "Wall time", "of all rounds together, where the server runs"),
    ("train_flops", "Training work", "floating-point operations of all clients together"),
    (
        "peak_client_memory_bytes",
        "Peak client memory",
        "the most that training needs on one client, as counted",
    ),
    ("rounds", "Rounds", "done, of those asked for"),
)

TIMED: tuple[Column, ...] = (
    ("simulated_seconds", "Simulated time", "on the clock of the devices, to the last round's end"),
    ("energy_joules", "Energy", "of all devices together, for training and sending"),
    ("clients_refused", "Refused clients", "whose device cannot hold the training; never asked"),
)

OF_CLIENTS = "of each client, for the model alone"
OF_SAMPLES = "of each sample, for all that its client sends"
LOCALLY_PRIVATE = ("nldp", "ldp-iht")
"""Strategies whose clients add noise before they send anything."""

AT_CLIENTS = (
    ("accuracy_personal_mean", "mean over clients, each on samples of its own"),
    ("accuracy_personal_p10", "reached by all but the weakest tenth of clients"),
    ("accuracy_novel_mean", "mean over the clients that never train"),
)
"""How the models that clients use do, which are the global one or clients' own."""

_TARGETS = (
    ("seconds", "Time", "on the simulated clock, until a test first reached it"),
    ("joules", "Energy", "of all devices, until a test first reached it"),
    ("bytes", "Bytes", "sent up and down, until a test first reached it"),
    ("rounds", "Rounds", "until a test first reached it"),
)


def columns(runs: Sequence[Results]) -> tuple[Column, ...]:
    """Return the headline figures of `runs`; those of a regression are called what they are.

    Accuracy is left out where no finished run has a model that the server can test.
    """
    found = COLUMNS
    if all(run.regression for run in runs):
        found = (("accuracy", "R²", "of the held-out targets' variance is explained"), *found[1:])
    if all(run.linear for run in runs):
        found = (found[0], ("density", "Density", "of the coefficients are kept"), *found[2:])
    if all(run.finished and run.figure("accuracy") is None for run in runs):
        found = found[1:]
    timed = any(run.timed for run in runs)
    found += TIMED if timed else ()
    if any(run.figure("epsilon") is not None for run in runs):
        found += (("epsilon", "Privacy", _promise(runs)),)
    goals = {run.target for run in runs} - {None}
    if goals:
        goal = units.percent(goals.pop()) if len(goals) == 1 else "the target"
        found += tuple(
            (f"{key}_to_target", f"{name} to {goal}", note)
            for key, name, note in _TARGETS
            if timed or key in ("bytes", "rounds")
        )
    return found


def _promise(runs: Sequence[Results]) -> str:
    """Return whom epsilon protects, and against whom, in the runs that have one."""
    private = [run for run in runs if run.figure("epsilon") is not None]
    deltas = {number(run.setting("privacy", "delta")) for run in private}
    delta = deltas.pop() if len(deltas) == 1 else None
    at = "epsilon at privacy.delta" if delta is None else f"epsilon at delta {delta:g}"
    local = [run.setting("strategy", "name") in LOCALLY_PRIVATE for run in private]
    if all(local):
        return f"{at}, {OF_SAMPLES}"
    if not any(local):
        return f"{at}, {OF_CLIENTS}"
    return f"{at}: {OF_CLIENTS}; of {' and '.join(LOCALLY_PRIVATE)}, {OF_SAMPLES}"


def headline(run: Results, key: str) -> str:
    """Return one of the figures as text."""
    if key == "rounds":
        return progress(run)
    if key.endswith("_to_target"):
        return to_target(run, key.removesuffix("_to_target"))
    value = run.figure(key)
    if key in ("accuracy", "density"):
        return units.percent(value)
    if key in ("wall_seconds", "simulated_seconds"):
        return units.duration(value)
    if key == "energy_joules":
        return units.in_units(value, units.JOULES)
    if key == "epsilon":
        return units.NONE if value is None else f"{value:.3g}"
    if key == "clients_refused":
        return units.NONE if value is None else f"{value:,.0f}"
    return units.in_units(value, units.FLOPS if key == "train_flops" else units.BYTES)


def to_target(run: Results, key: str) -> str:
    """Return `seconds`, `joules`, `bytes` or `rounds` to the target, or that it isn't reached."""
    if run.target is None:
        return units.NONE
    value = run.to_target(key)
    if value is None:
        if run.to_target("rounds") is not None:
            return units.NONE
        return "not reached" if run.finished else "not yet"
    if key == "seconds":
        return units.duration(value)
    if key == "rounds":
        return f"{value:.0f}"
    return units.in_units(value, units.JOULES if key == "joules" else units.BYTES)


def progress(run: Results) -> str:
    """Return the rounds done, `3 of 6`."""
    rounds = number(run.setting("run", "rounds"))
    return f"{run.rounds_done} of {rounds:.0f}" if rounds else str(run.rounds_done)
