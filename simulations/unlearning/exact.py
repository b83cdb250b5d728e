"""Exact unlearning: go back to before the target's first influence, and run on without it.

The new run is the one that never had the target, to the bit: rounds that did not ask it are the
same with and without it, for other clients take the places of absent ones and nobody else's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsparse import data
from fedsparse.config import Config
from fedsparse.data import FederatedData
from fedsparse.errors import ConfigError
from fedsparse.runs import RunFolder
from fedsparse.runs.ledger import Ledger
from fedsparse.runs.progress import Progress
from fedsparse.runs.rows import until
from simulations import influence
from simulations.evidence.verdict import EXACT as RERUN
from simulations.evidence.verdict import UNUSED
from simulations.experiment import Summary, resume_experiment, run_experiment
from simulations.state_file import NAME as STATES
from simulations.states import ClientStates
from simulations.unlearning.target import Target, forgotten_before, without
from strategies import foreign
from strategies.base import SparseStrategy
from strategies.task import Task


@dataclass(frozen=True)
class Rerun:
    """How a run is made again without a target, and what that certifies.

    `first` is the round that the target touched first, None for none; `back` the checkpoint to go
    on from, None for none.
    """

    certificate: str
    config: Config
    first: int | None
    back: int | None
    reason: str

    @property
    def repeated(self) -> int:
        """How many rounds are run."""
        return self.config.run.rounds - (self.back or 0)


def planned(parent: RunFolder, target: Target, changes: Sequence[str] = ()) -> Rerun:
    """Return what an exact rerun of a finished run takes; raises as `without` does."""
    config = without(parent.config, target, changes)
    data.of(config)  # refuses what is not there
    first = influence.first_influence(parent, data.of(parent.config), target.forget)
    if first is None:
        before = forgotten_before(parent.config, target)
        reason = (
            "the run was made without it already"
            if before
            else "no round of the run asked a client that trains on it"
        )
        end = influence.back(parent, config, target.kind, parent.config.run.rounds + 1)
        return Rerun(UNUSED, config, None, end, reason)
    back = influence.back(parent, config, target.kind, first)
    touched = "before the first round" if first == 0 else f"in round {first}"
    went = f"from the checkpoint of round {back}"
    if back is None:
        went = "from the start"
        if first > 1 and 0 < parent.config.run.keep_checkpoints < parent.config.run.rounds:
            went += " (run.keep_checkpoints = 0 would have kept what is needed to go back)"
    return Rerun(RERUN, config, first, back, f"it was first asked {touched}; rerun {went}")


def rerun(
    parent: RunFolder, target: Target, plan: Rerun, out: Path, *, command: str, progress: Progress
) -> Summary:
    """Make the run again into a new folder, or go on with one that was begun, as planned."""
    begun = (out / "run.json").exists()
    if plan.back is None:
        if begun:
            return resume_experiment(out, progress=progress)
        return run_experiment(plan.config, out, command=command, progress=progress)
    if begun:
        child = RunFolder.open(out)
    else:
        child = RunFolder.create(out, Task.of(plan.config).config, command=command)
    if not child.checkpoints():  # it was made just now, or its making was cut short
        with child.lock():
            _seed(parent, child, plan.back, target.forget.client_set)
    return resume_experiment(out, progress=progress)


def _seed(parent: RunFolder, child: RunFolder, number: int, forgotten: frozenset[int]) -> None:
    """Put into a new folder what the parent's held after a round, but for forgotten clients."""
    child.rewind(-1)
    for left in child.path.glob(f"{STATES}*"):
        left.unlink()
    tree = parent.checkpoint(number)
    strategy = foreign.make(Task.of(child.config))
    spliced, end = False, parent.config.run.rounds
    if isinstance(strategy, SparseStrategy) and number < end and end in parent.checkpoints():
        last = parent.checkpoint(end)["strategy"]
        touched = _touched(data.of(parent.config), strategy.task.data)
        made = strategy.splice(tree["strategy"], last, touched)
        spliced = made is not tree["strategy"]
        tree = {**tree, "strategy": made}
    for row in until(parent.metrics(), number):
        child.append_metrics(row)
    trained = [row for row in until(parent.clients(), number) if row["kind"] == "train"]
    child.append_clients(trained)  # the clients' last test is made again
    Ledger(child.path).inherit(Ledger(parent.path), child.config, number, spliced=spliced)
    theirs, ours = ClientStates(parent.path), ClientStates(child.path)
    try:
        theirs.restore(number, tree["clients"])
        for client, state in theirs.all().items():
            if client not in forgotten:
                ours.keep(client, state)
        saved = ours.commit(number, [number])
    finally:
        theirs.close()
        ours.close()
    child.save_checkpoint(number, {**tree, "clients": saved})


def _touched(before: FederatedData, after: FederatedData) -> frozenset[int]:
    """Return the clients that take part in another way now: gone, or with fewer samples."""
    gone = after.forget.client_set - before.forget.client_set
    if (after.forget.classes, after.forget.samples) == (
        before.forget.classes,
        before.forget.samples,
    ):
        return gone
    every = range(after.clients)
    return gone | {k for k in every if (after.gone(k) & ~before.gone(k)).any()}


def check_parent(parent: RunFolder) -> None:
    """Raise ConfigError where a run's model came from another run: that one is to be rerun."""
    origin = parent.config.strategy.get("parent")
    if origin:
        raise ConfigError(
            f"'{parent.path}' was made by '{parent.config.strategy['name']}' from '{origin}', and "
            "an exact rerun would begin with that run's model; unlearn from that run, and name all "
            "that is to be forgotten"
        )
