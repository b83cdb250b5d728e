"""Personal models of a finished run's clients, made as each client would make its own.

Everything is taken from the run folder: the last checkpoint, and what clients keep. Clients work
in this process and nothing of the run is changed; the models go into `personal/CLIENT`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from clients import memory
from clients.job import read_job, receive
from clients.program import Personal, Visit, program_of
from fedsparse import messages
from fedsparse.config import Config, override, resolve
from fedsparse.errors import ConfigError, RunFolderError
from fedsparse.runs import RunFolder
from fedsparse.runs.atomic import write_file, writing
from fedsparse.runs.tables import to_json
from fedsparse.sparsity import Mask, State
from fedsparse.training.local import Evaluated
from simulations import flower_internals as internals
from simulations.grid import FIRST_NODE
from simulations.states import ClientStates
from strategies import foreign
from strategies.addressing import Directory
from strategies.base import SparseStrategy
from strategies.consecutive import Consecutive
from strategies.task import Task

FOLDER, TABLE = "personal", "personal.json"
ALL, GATE = "finetune_epochs", "novel_epochs"
"""Keys of strategies: epochs in which a client trains the whole model, or its gate, before use."""


@dataclass(frozen=True)
class Made:
    """A client's personal model and how it does beside the global one on the client's own data.

    Accuracies are None where a client holds no samples out, or where there is no global model.
    """

    client: int
    examples: int
    test_examples: int
    density: float
    flops: float
    accuracy_personal: float | None
    accuracy_global: float | None
    accuracy_finetuned: float | None
    folder: str


class Personaliser:
    """A finished run, ready to make personal models."""

    def __init__(
        self, path: Path, epochs: int | None = None, gate_epochs: int | None = None
    ) -> None:
        self.folder = RunFolder.open(path)
        if not self.folder.finished:
            raise RunFolderError(
                f"run '{path}' is not finished; go on with `fedsparse resume {path}`"
            )
        config = with_epochs(self.folder.config, {ALL: epochs, GATE: gate_epochs})
        strategy = foreign.make(Task.of(config))
        if not isinstance(strategy, SparseStrategy):
            raise ConfigError(
                f"'{path}' is a run of '{config.strategy['name']}', which knows no personal models"
            )
        self.strategy = strategy
        self.epochs = max(1, int(config.strategy.get(ALL, 1)))
        """Of fine-tuning the global model, to compare with."""
        found = self.folder.latest_checkpoint(lambda note: None)
        if found is None or found[0] != config.run.rounds:
            raise RunFolderError(f"'{path}' has lost its last checkpoint; start it again")
        self.round, tree = found
        if strategy.clients_keep and not tree["clients"]:
            raise RunFolderError(
                f"'{path}' does not hold what its clients keep: its engine gives no state back; "
                "run it on inline or ray"
            )
        strategy.load_state_dict(tree["strategy"])
        if not tree["clients"]:
            strategy.held.forget()
        self.states = ClientStates(self.folder.path)
        self.states.restore(self.round, tree["clients"])
        clients = config.fleet.clients
        nodes = Consecutive(range(clients), range(FIRST_NODE, FIRST_NODE + clients))
        strategy.directory = Directory(nodes.inverse, nodes)
        strategy.ready_to_test(self.round, None)
        internals.become_server(1)

    @property
    def config(self) -> Config:
        """The run's configuration, with the epochs that were asked for."""
        return self.strategy.task.config

    def chosen(self, wanted: Sequence[int] | None, novel: bool) -> list[int]:
        """Return the clients that are meant: those wanted, the novel ones, or all.

        Raises ConfigError for a client that the run does not have, or no novel ones.
        """
        fleet = self.config.fleet
        if novel and not fleet.novel_clients:
            raise ConfigError("the run held no clients out; give --clients, or neither for all")
        absent = self.strategy.task.absent
        for client in wanted or ():
            if not 0 <= client < fleet.clients:
                raise ConfigError(
                    f"there is no client {client}; the run's are 0 to {fleet.clients - 1}"
                )
            if client in absent:
                raise ConfigError(f"client {client} is no part of this run: it was made without it")
        if wanted:
            return list(dict.fromkeys(wanted))
        every = range(fleet.training_clients if novel else 0, fleet.clients)
        return [client for client in every if client not in absent]

    def make(self, clients: Sequence[int]) -> Iterator[Made]:
        """Make the models one by one; each is on the disk when it is yielded."""
        for client in clients:
            yield self._made(client)

    def close(self) -> None:
        """Let the run's files go."""
        self.states.close()

    def _made(self, client: int) -> Made:
        visit = self._visit(client)
        data = visit.job.data
        own = program_of(visit.job.plan.program).personal(visit)
        place = self._write(client, own)
        personal = self._test(visit, own.state, own.mask)
        whole = tuned = None
        if self.strategy.global_model:
            state = self.strategy.state
            whole = self._test(visit, state, self.strategy.mask)
            model, _ = visit.fit(
                state, self.strategy.mask, purpose="fine-tuning", epochs=self.epochs
            )
            tuned = model.evaluate(data.test) if len(data.test.y) else None
        made = Made(
            client=client,
            examples=len(data.train.y),
            test_examples=len(data.test.y),
            density=1.0 if own.mask is None else own.mask.density,
            flops=own.flops,
            accuracy_personal=_accuracy(personal),
            accuracy_global=_accuracy(whole),
            accuracy_finetuned=_accuracy(tuned),
            folder=str(place),
        )
        with writing(self.folder.path):
            write_file(place / TABLE, (to_json(asdict(made)) + "\n").encode())
        return made

    def _visit(self, client: int) -> Visit:
        """Return the visit of a client that is asked to use the last model."""
        plan = self.strategy.own_plan(self.round)
        (message,) = self.strategy.ask_with_model([client], messages.EVALUATE, plan)
        context = internals.new_context(
            1,
            FIRST_NODE + client,
            client,
            self.config.fleet.clients,
            {},
            self.states.get(client),
        )
        job = read_job(message, context)
        shapes = program_of(plan.program).mask_shapes(job)
        return Visit(job, receive(job, message, memory.recall_mask(context, shapes)), context)

    def _test(self, visit: Visit, state: State, mask: Mask | None) -> Evaluated | None:
        data = visit.job.data.test
        return visit.job.backend.load(state, mask).evaluate(data) if len(data.y) else None

    def _write(self, client: int, own: Personal) -> Path:
        place = self.folder.path / FOLDER / str(client)
        with writing(self.folder.path):
            place.mkdir(parents=True, exist_ok=True)
            state = {name: np.ascontiguousarray(value) for name, value in own.state.items()}
            write_file(place / "model.safetensors", safetensors.numpy.save(state))
            if own.mask is not None:
                write_file(place / "mask.safetensors", own.mask.to_bytes())
        return place

    def write_table(self, rows: Sequence[Made]) -> Path:
        """Write what was found of the clients that were asked for, beside their folders."""
        path = self.folder.path / FOLDER / TABLE
        content: dict[str, Any] = {
            "run": str(self.folder.path),
            "epochs": self.epochs,
            **means(rows),
        }
        content["clients"] = [asdict(row) for row in rows]
        with writing(self.folder.path):
            write_file(path, (to_json(content) + "\n").encode())
        return path


def _accuracy(found: Evaluated | None) -> float | None:
    return None if found is None else found.accuracy


def with_epochs(config: Config, asked: Mapping[str, int | None]) -> Config:
    """Return a run's configuration with other epochs of training before use.

    Raises ConfigError for a gate's epochs where the strategy has no gates.
    """
    name = config.strategy["name"]
    if asked[GATE] is not None and GATE not in config.strategy:
        raise ConfigError(f"--gate-epochs: clients of '{name}' have no gates; leave it out")
    if asked[ALL] is not None and ALL not in config.strategy:
        raise ConfigError(
            f"--epochs: clients of '{name}' do not train before use; choose a run of finetune or "
            "pfedgate, or leave it out"
        )
    changes = [
        f"strategy.{key}={epochs}"
        for key, epochs in asked.items()
        if epochs is not None and key in config.strategy
    ]
    tree = {
        section: {key: value for key, value in values.items() if value is not None}
        for section, values in config.model_dump().items()
    }
    return resolve(override(tree, changes)) if changes else config


def means(rows: Sequence[Made]) -> dict[str, float | None]:
    """Return the mean accuracies over clients, by their test samples; None where there are none."""
    found: dict[str, float | None] = {}
    for key in ("accuracy_personal", "accuracy_global", "accuracy_finetuned"):
        pairs = [(getattr(row, key), row.test_examples) for row in rows]
        known = [(value, weight) for value, weight in pairs if value is not None]
        total = sum(weight for _, weight in known)
        found[f"{key}_mean"] = math.fsum(v * w for v, w in known) / total if total else None
    return found
