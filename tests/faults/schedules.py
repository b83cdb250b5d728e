"""A seed's run: which faults, which deaths of the coordinator, and whether all that must hold does.

`problems_of` plays one; benchmarks/fault_schedules.py plays thousands.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedsparse import config as configuration
from fedsparse import messages
from fedsparse.config import Config
from fedsparse.runs import tables
from simulations.faults import Schedule
from strategies.addressing import cohort, least_replies
from tests.faults import invariants
from tests.faults.lives import FULL, KILL, TEAR, Death, live
from tests.tiny_runs import BASE, model_bytes

BASIS = {
    "run.rounds": 3,
    "data.samples": 96,
    "data.public_samples": 24,
    "data.test_samples": 24,
    "model.name": "mlp",
    "model.width": 0.25,
    "fleet.clients": 4,
    "client.backend": "native",
    "strategy.values": "f32",
}
STRATEGIES = {
    "static": {"density": 0.2, "pretrain_epochs": 1},
    "fedavg": {},
    "fedtiny": {
        **{"density": 0.2, "adjust_every": 1, "stop_round": 3, "pretrain_epochs": 1},
        **{"candidates": 2, "development_samples": 16},
    },
}
SHARES = (0.5, 0.35, 0.15)
"""How often each strategy is drawn; the last takes longest."""

Plant = Callable[[], None] | None


@dataclass(frozen=True)
class Plan:
    """What a seed stands for."""

    seed: int
    config: Config
    schedule: Schedule
    deaths: tuple[Death, ...]
    early_tests: bool


def plan_of(seed: int) -> Plan:
    """Draw a strategy, checkpoints, faults and deaths; in half of the seeds only one of the two."""
    rng = np.random.default_rng([9, seed])
    name = str(rng.choice(list(STRATEGIES), p=SHARES))
    config = config_of(name, int(rng.integers(1, 3)), bool(rng.integers(2)))
    kind = rng.integers(4)  # faults, deaths, both, both
    schedule = Schedule(seed)
    if kind != 1:
        rate = float(rng.choice([0.1, 0.25, 0.5]))
        schedule = Schedule.of(
            seed, rounds=config.run.rounds, clients=config.fleet.clients, rate=rate
        )
    deaths = ()
    if kind != 0:
        steps = steps_of(config)
        deaths = tuple(
            Death(str(rng.choice([KILL, TEAR, FULL])), int(rng.integers(1, steps + 1)))
            for _ in range(rng.integers(1, 4))
        )
    return Plan(seed, config, schedule, deaths, bool(rng.integers(2)))


@lru_cache(maxsize=64)
def config_of(name: str, checkpoint_every: int, part: bool) -> Config:
    """Return the configuration of a tiny run; `part`: three of the clients a round."""
    eval_every = 3 - checkpoint_every
    own = {f"strategy.{k}": v for k, v in {"name": name, **STRATEGIES[name]}.items()}
    basis = {**BASIS, "run.checkpoint_every": checkpoint_every, "run.eval_every": eval_every}
    basis |= {"fleet.clients_per_round": 3} if part else {}
    tree = {**BASE, "strategy": {}}
    sets = [f"{k}={v}" for k, v in {**basis, **own}.items()]
    return configuration.resolve(configuration.override(tree, sets))


_known: dict[tuple[str, str], tuple[bytes, int]] = {}


def reference(config: Config, schedule: Schedule, base: Path) -> tuple[bytes, int]:
    """Return the model of a run in which exactly the lost do not reply, and its steps.

    Kept where nobody is lost.
    """
    key = (config.to_json(), str(sorted(schedule.losses().faults.items())))
    if key not in _known:
        out = base / "reference"
        shutil.rmtree(out, ignore_errors=True)
        end = live(config, out, schedule.losses())
        assert end.how == "done", end.said
        found = model_bytes(out), end.steps
        if schedule.losses().faults:
            return found
        _known[key] = found
    return _known[key]


_SCRATCH: list[Path] = []


def steps_of(config: Config) -> int:
    """Return how many steps a run without faults takes."""
    return reference(config, Schedule(), _SCRATCH[0])[1]


def problems_of(seed: int, base: Path, plant: Plant = None) -> tuple[list[str], list[str]]:
    """Play a seed's run to its end; return what does not hold, and how its lives ended.

    `plant` puts a bug into every process of the run, to see whether it is found.
    """
    _SCRATCH[:] = [base]
    plan = plan_of(seed)
    out = base / f"run-{seed}"
    schedule, lives = plan.schedule, [*plan.deaths]
    told: list[str] = []
    problems: list[str] = []
    try:
        for _ in range(len(plan.deaths) + plan.config.run.rounds + 1):
            death = lives.pop(0) if lives else None
            end = live(
                plan.config,
                out,
                schedule,
                death,
                early_tests=plan.early_tests,
                inspect=invariants.after_round,
                plant=plant,
            )
            told.append(end.how)
            invariants.after_death(out)
            if end.how == "few":
                schedule = _healed(plan, out, schedule)
            elif end.how == "done":
                break
            elif end.how not in ("killed", "full"):
                raise AssertionError(f"{end.how}: {end.said}")
        else:
            raise AssertionError(f"did not come to its end: {told}")
        _check_end(plan, out, schedule, base)
    except AssertionError as error:
        problems.append(str(error))
    shutil.rmtree(out, ignore_errors=True)
    return problems, told


def _check_end(plan: Plan, out: Path, schedule: Schedule, base: Path) -> None:
    invariants.at_the_end(out, plan.config, schedule)
    for number in range(1, plan.config.run.rounds + 1):
        good, least = replies_in(plan.config, schedule, number)
        assert good >= least, f"round {number} went on with {good} replies of {least}"
    simple = plan.config.strategy["name"] in invariants.PLAIN_MEANS and schedule.losses().faults
    if simple and plan.seed % 4:  # each of its rounds was held against the mean of its replies
        return
    wanted, _ = reference(plan.config, schedule, base)
    assert model_bytes(out) == wanted, "the model is not that of a run of the replies that counted"


def replies_in(config: Config, schedule: Schedule, number: int) -> tuple[int, int]:
    """Return how many replies count in a round, and how many must."""
    asked = cohort(config.fleet, config.run.seed, number)
    good = sum(schedule.counts(messages.TRAIN, number, client) for client in asked)
    return good, least_replies(len(asked), config.fleet.min_replies)


def _healed(plan: Plan, out: Path, schedule: Schedule) -> Schedule:
    """Check a run that stopped for too few replies; return the schedule of a healed network."""
    rows = tables.read(out / "clients.jsonl")
    number = rows[-1]["round"]
    good, least = replies_in(plan.config, schedule, number)
    assert good < least, f"stopped in round {number}, where {good} of {least} replies count"
    last = [row for row in rows if row["round"] == number]
    assert all(row["reason"] for row in last if row["status"] != "ok"), "a failure without reason"
    return schedule.healed(number)
