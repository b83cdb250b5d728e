"""A plan made ready to run: a whole local round, a test or a search in one native call.

A program is made once a process for a graph, a mask and a rule; clients differ in the values
that they bring. Nothing here draws random numbers: the order of samples is given.
"""

import ctypes
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import ModelError
from fedsparse.kernels import library, plan
from fedsparse.kernels.memory import Floats, Memory, Room, shared
from fedsparse.kernels.nodes import Graph
from fedsparse.kernels.rule import Rule
from fedsparse.sparsity import Mask, State

LANES = 16
"""Samples stand side by side in multiples of this."""
TEST_LANES = 64
"""Samples of one pass of a test."""
MOST_FLOATS = 2**31
"""Of one activation: kernels count within it in 32 bits."""
PATIENCE = 0.2
"""Seconds of training after which Python looks whether it was interrupted."""


@dataclass
class Values:
    """What one client brings and takes away: parameters and running statistics, flat."""

    parameters: Floats
    buffers: Floats

    def copy(self) -> "Values":
        """Return values of their own."""
        return Values(self.parameters.copy(), self.buffers.copy())


@dataclass(frozen=True)
class Optimizer:
    """An optimizer's name (sgd, momentum, adam), constants, and weights of what joins the loss.

    That is the proximal term and the L1 norm of the weights.
    """

    name: str
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    l1: float = 0.0

    def settings(self) -> library.Settings:
        """Return the constants as the kernels read them; Adam's are torch's defaults."""
        return library.Settings(
            optimizer=library.OPTIMIZERS[self.name],
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-8,
            proximal=self.proximal_mu,
            l1=self.l1,
        )

    @property
    def slots(self) -> tuple[str, ...]:
        """What it keeps of each parameter, as torch calls it."""
        return {"sgd": (), "momentum": ("momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq")}[
            self.name
        ]


@dataclass
class Outcome:
    """What local training came to: sums over the last epoch, and how it ended."""

    loss: float = 0.0
    correct: int = 0
    epochs: int = 0
    status: int = library.DONE


@dataclass
class Slots:
    """An optimizer's state: each slot flat like the parameters, one after the other."""

    values: Floats
    steps: int = 0


def _address(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


class Program:
    """A model under a mask, ready to train; see `program`, which keeps the ones made last."""

    def __init__(
        self,
        graph: Graph,
        mask: Mask | None,
        rule: Rule,
        api: library.Api | None = None,
        *,
        input_gradient: bool = False,
    ) -> None:
        """Programs to measure layers by, with the input's gradient, have memory of their own."""
        self._memory = Memory() if input_gradient else None
        self.plan = plan.make(graph, mask, rule, input_gradient=input_gradient)
        self.api = library.load() if api is None else api
        self.classes = graph.outputs
        tensors = self.plan.tensors
        planes = np.maximum(tensors["plane"], tensors["gradient_plane"]).astype(np.int64)
        self._widest = int((tensors["channels"] * planes).max())
        self._model = library.Model(
            tensors=_address(self.plan.tensors),
            ops=_address(self.plan.ops),
            positions=_address(self.plan.positions),
            tensor_count=len(self.plan.tensors),
            op_count=len(self.plan.ops),
            input=self.plan.input,
            output=self.plan.output,
            pixels=self.plan.pixels,
            saved=self.plan.saved,
            parameters=self.plan.parameters,
        )
        self._index = self._compile()

    def _compile(self) -> NDArray[np.int32]:
        words = len(self.plan.windows)
        for number, op in enumerate(self.plan.ops):
            if op["kind"] == library.CONV and op["sparse"]:
                op["index"] = words
                words += self.api.index_words(self._model, number)
        index = np.zeros(words + 1, np.int32)
        index[: len(self.plan.windows)] = self.plan.windows
        self._model.index, self._model.index_words = _address(index), words
        self.api.compile(self._model)
        return index

    # -- values ---------------------------------------------------------------------------

    @cached_property
    def index(self) -> NDArray[np.int64] | None:
        """Where the held parameters stand among all, as one vector; None where all are held."""
        if not any(entry.sparse for entry in self.plan.entries):
            return None
        parts, start = [], 0
        for entry in self.plan.entries:
            size = prod(entry.shape)
            held = entry.kept if entry.sparse else np.arange(size)
            parts.append(start + np.asarray(held, np.int64))
            start += size
        return np.concatenate(parts)

    def pack(self, state: Mapping[str, NDArray[Any]]) -> Values:
        """Return a whole state as the kernels hold it; what the mask prunes is left out."""
        values = Values(self._flat(state), np.zeros(self._buffer_size, np.float32))
        for name, start, count in self.plan.buffers:
            values.buffers[start : start + count] = _entry(state, name, (count,))
        return values

    @property
    def _buffer_size(self) -> int:
        return sum(count for _, _, count in self.plan.buffers)

    def _flat(self, state: Mapping[str, NDArray[Any]]) -> Floats:
        flat = np.zeros(self.plan.parameters, np.float32)
        for entry in self.plan.entries:
            value = _entry(state, entry.name, entry.shape)
            part = flat[entry.offset : entry.offset + entry.stored]
            whole = np.asarray(value, np.float32).reshape(-1)
            if entry.sparse:
                part[:] = whole[entry.kept]
            elif entry.kept is not None:
                part[entry.kept] = whole[entry.kept]
            else:
                part[:] = whole
        return flat

    def kept(self, flat: Floats) -> State:
        """Return each parameter's values: of a masked one the kept alone, others whole."""
        found: State = {}
        for entry in self.plan.entries:
            part = flat[entry.offset : entry.offset + entry.stored]
            if entry.kept is None:
                found[entry.name] = part.reshape(entry.shape)
            else:
                found[entry.name] = part if entry.sparse else part[entry.kept]
        return found

    def whole(self, flat: Floats) -> State:
        """Return each parameter as a whole tensor, zero where pruned."""
        found: State = {}
        for entry in self.plan.entries:
            part = flat[entry.offset : entry.offset + entry.stored]
            if entry.sparse:
                dense = np.zeros(prod(entry.shape), np.float32)
                dense[entry.kept] = part
                part = dense
            found[entry.name] = part.reshape(entry.shape).copy()
        return found

    def statistics(self, values: Values) -> State:
        """Return the running statistics by name."""
        return {n: values.buffers[i : i + count].copy() for n, i, count in self.plan.buffers}

    def slots(self, optimizer: Optimizer, saved: Mapping[str, State] | None = None) -> Slots:
        """Return an optimizer's state: new, or as `named_slots` returned it."""
        saved = saved or {}
        parts = [
            self._flat(saved[slot]) if slot in saved else np.zeros(self.plan.parameters, np.float32)
            for slot in optimizer.slots
        ]
        steps = max((int(s) for s in saved.get("step", {}).values()), default=0)
        return Slots(np.concatenate([*parts, np.zeros(1, np.float32)]), steps)

    def named_slots(self, optimizer: Optimizer, slots: Slots) -> dict[str, State]:
        """Return an optimizer's state by slot and parameter, as torch names them."""
        size = self.plan.parameters
        found = {
            slot: self.whole(slots.values[i * size : (i + 1) * size])
            for i, slot in enumerate(optimizer.slots)
        }
        if optimizer.name == "adam":
            step = np.array(slots.steps, np.float32)
            found["step"] = {entry.name: step.copy() for entry in self.plan.entries}
        return found

    # -- work -----------------------------------------------------------------------------

    def arena_bytes(self, samples: int, purpose: int = library.TRAINING) -> int:
        """Return the bytes of activations, their gradients and scratch for a batch."""
        return 4 * int(self.api.arena_floats(self._model, _lanes(samples), purpose))

    def train(
        self,
        values: Values,
        x: Floats,
        y: NDArray[Any],
        order: NDArray[np.int64],
        edges: NDArray[np.int64],
        optimizer: Optimizer,
        slots: Slots,
        *,
        still: bool = False,
    ) -> Outcome:
        """Train in place: rows of `x` in the order given, epoch by epoch (epochs, samples).

        `edges` are the bounds of batches within an epoch. One sample alone, all that `x` holds, is
        trained with BatchNorm's running statistics, which stay, as every batch is where they are to
        stay `still`. `y` holds labels, or float targets of one output.
        """
        room = self._room(int(np.diff(edges).max()), library.TRAINING)
        frozen = still or len(x) < 2
        work = self._work(values, room, x, y, frozen=frozen, track=not frozen)
        start = values.parameters.copy() if optimizer.proximal_mu else None
        order, edges = np.ascontiguousarray(order), np.ascontiguousarray(edges)
        batches = len(edges) - 1
        sums, steps = library.Sums(), ctypes.c_int64(slots.steps)
        done, count, status = 0, batches * len(order), library.DONE
        at_once = batches
        while done < count and status == library.DONE:
            began = time.perf_counter()
            last = min(done + at_once, count)
            status = self.api.train(
                *(self._model, work, optimizer.settings(), _address(slots.values)),
                *(_address(start), ctypes.byref(steps), _address(order), _address(edges)),
                *(batches, done, last, ctypes.byref(sums)),
            )
            spent = max(time.perf_counter() - began, 1e-6)
            at_once = max(1, int((last - done) * PATIENCE / spent))
            done = last
        slots.steps = steps.value
        return Outcome(sums.loss, sums.correct, -(-done // batches), status)

    def gradient(
        self,
        values: Values,
        x: Floats,
        y: NDArray[Any],
        chosen: NDArray[np.int64],
        *,
        still: bool = False,
    ) -> tuple[Outcome, Floats]:
        """Return loss and gradient of one batch in training mode: rows `chosen` of `x`.

        The gradient stands as the parameters do and is overwritten by the next call. Running
        statistics move, unless they are used as they are and to stay `still`; parameters do not.
        """
        edges = np.array([0, len(chosen)], np.int64)
        none = Optimizer("sgd", 0.0)
        outcome = self.train(values, x, y, chosen[None], edges, none, self.slots(none), still=still)
        room = self._room(len(chosen), library.TRAINING)
        return outcome, room.gradients[: self.plan.parameters]

    def evaluate(
        self, values: Values, x: Floats, y: NDArray[Any] | None, *, outputs: bool = False
    ) -> tuple[Outcome, Floats | None]:
        """Test with running statistics: sums over all samples, and outputs if wanted."""
        room = self._room(min(TEST_LANES, len(x)), library.EVALUATING)
        work = self._work(values, room, x, y, frozen=True, track=False)
        found = np.empty((len(x), self.classes), np.float32) if outputs else None
        sums = library.Sums()
        self.api.evaluate(self._model, work, len(x), ctypes.byref(sums), _address(found))
        return Outcome(sums.loss, sums.correct), found

    def grow(
        self, values: Values, x: Floats, y: NDArray[Any], counts: Mapping[str, int]
    ) -> dict[str, tuple[NDArray[np.int64], Floats]]:
        """Return by layer the `counts[layer]` largest gradients of pruned weights on one batch.

        Flat positions, ascending, and the gradients there. BatchNorm uses the batch's
        statistics, its own for one sample, and keeps its running ones.
        """
        pruned = {
            entry.name: 0 if entry.kept is None else prod(entry.shape) - len(entry.kept)
            for entry in self.plan.entries
        }
        most = {name: min(count, pruned[name]) for name, count in counts.items() if count > 0}
        wanted = {name: count for name, count in most.items() if count}
        room = self._room(len(x), library.GROWING)
        work = self._work(values, room, x, y, frozen=len(x) < 2, track=False)
        requests = (library.Growth * max(1, len(wanted)))()
        held = []
        for request, (name, count) in zip(requests, wanted.items(), strict=False):
            entries = np.empty(2 * (count + library.BLOCK), np.int32)
            position, value = np.empty(count, np.int32), np.empty(count, np.float32)
            held.append((entries, position, value))
            request.op, request.wanted = self.plan.layers[name], count
            request.entries, request.position = _address(entries), _address(position)
            request.value = _address(value)
        rows = np.arange(len(x), dtype=np.int64)
        status = self.api.grow(self._model, work, _address(rows), len(rows), requests, len(wanted))
        if status != library.DONE:
            raise ModelError("BatchNorm needs two values a channel; take more samples")
        found = {name: (np.empty(0, np.int64), np.empty(0, np.float32)) for name in most}
        for name, request, (_, position, value) in zip(wanted, requests, held, strict=False):
            found[name] = position[: request.found].astype(np.int64), value[: request.found]
        return found

    def measure(self, values: Values, x: Floats) -> None:
        """Go forward over one batch in training mode: running statistics move, nothing else."""
        work = self._work(values, self._room(len(x), library.TRAINING), x, None, track=True)
        rows = np.arange(len(x), dtype=np.int64)
        self.api.forward(self._model, work, _address(rows), len(rows))

    # -- single passes, for tests and measurements ----------------------------------------

    def forward(self, values: Values, samples: int, *, frozen: bool = False) -> None:
        """Run forward over the input that lies in the arena; see `activation`."""
        work = self._work(values, self._room(samples, library.TRAINING), None, None, frozen=frozen)
        self.api.forward(self._model, work, None, samples)

    def backward(self, values: Values, samples: int, *, frozen: bool = False) -> Floats:
        """Run backward from the output's gradient in the arena; return those of parameters."""
        room = self._room(samples, library.TRAINING)
        work = self._work(values, room, None, None, frozen=frozen)
        self.api.backward(self._model, work, samples)
        return room.gradients[: self.plan.parameters]

    def activation(self, tensor: int, samples: int, *, gradient: bool = False) -> Floats:
        """Return a tensor of the arena, or its gradient, as (channels, height, width, lanes).

        It is a view: what is written to it is what the next pass reads.
        """
        room, entry = self._room(samples, library.TRAINING), self.plan.tensors[tensor]
        prefix = "gradient_" if gradient else ""
        halo, plane = int(entry[f"{prefix}halo"]), int(entry[f"{prefix}plane"])
        channels, height, width = (int(entry[side]) for side in ("channels", "height", "width"))
        start = int(entry["gradient" if gradient else "value"]) * room.lanes
        whole = room.arena[start : start + channels * plane * room.lanes]
        planes = whole.reshape(channels, plane, room.lanes)[
            :, : (height + 2 * halo) * (width + 2 * halo)
        ]
        framed = planes.reshape(channels, height + 2 * halo, width + 2 * halo, room.lanes)
        return framed[:, halo : halo + height, halo : halo + width]

    def _room(self, samples: int, purpose: int) -> Room:
        """Return the memory of a pass; raises ModelError for a batch that cannot be counted."""
        lanes = _lanes(samples)
        if self._widest * lanes >= MOST_FLOATS:
            raise ModelError(
                f"an activation of {samples} samples has 2^31 values or more; lower "
                "client.batch_size, or set client.backend to 'torch'"
            )
        floats = int(self.api.arena_floats(self._model, lanes, purpose))
        wanted = 0 if purpose == library.EVALUATING else self.plan.parameters + LANES
        memory = shared() if self._memory is None else self._memory
        return memory.room(self._index, lanes, floats, wanted)

    def _work(
        self,
        values: Values,
        room: Room,
        x: Floats | None,
        y: NDArray[Any] | None,
        *,
        frozen: bool = False,
        track: bool = False,
    ) -> library.Work:
        labels = y is not None and self.classes > 1
        return library.Work(
            arena=_address(room.arena),
            parameters=_address(values.parameters),
            gradients=_address(room.gradients),
            buffers=_address(values.buffers),
            x=_address(x),
            y=_address(y) if labels else None,
            targets=None if labels else _address(y),
            lanes=room.lanes,
            frozen=frozen,
            track=track,
        )


def _entry(state: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a tensor of a state; raises ModelError where it is missing or has another shape."""
    if name not in state:
        raise ModelError(f"the state lacks '{name}'; it is of another model")
    if state[name].shape != shape:
        raise ModelError(f"'{name}' has shape {state[name].shape}, the model's is {shape}")
    return state[name]


def _lanes(samples: int) -> int:
    return -(-samples // LANES) * LANES


@lru_cache(maxsize=4)
def program(graph: Graph, mask: Mask | None, rule: Rule) -> Program:
    """Return the program of a model under a mask; raises library.Unavailable."""
    return Program(graph, mask, rule)
