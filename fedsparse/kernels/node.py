"""A local round as a file, for a client without Python: written here, trained by a program.

`src/node_main.cpp` says what lies in the files. A program is compiled for the processor that
the compiler makes code for, so that the same sources train on a board.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import ModelError
from fedsparse.kernels import library
from fedsparse.kernels.build import Compiler, compile_with
from fedsparse.kernels.memory import Floats
from fedsparse.kernels.program import LANES, Optimizer, Program, Values

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Job:
    """What one client trains on: rows of `x` in `order` (epochs, samples), batches by `edges`."""

    x: Floats
    y: NDArray[Any]
    order: NDArray[np.int64]
    edges: NDArray[np.int64]
    optimizer: Optimizer


def compile_node(
    compiler: Compiler, made: Path, names: Sequence[str] = (), extra: Sequence[str] = ()
) -> Path:
    """Compile the program that trains from a file; errors as of `build.compile_with`."""
    return compile_with(compiler, HERE, made, names, extra, program=True)


def write_job(path: Path, program: Program, values: Values, job: Job) -> None:
    """Write a local round; raises ModelError for terms of the loss that a program lacks."""
    if job.optimizer.proximal_mu or job.optimizer.l1:
        raise ModelError("a round with a proximal term or an L1 norm cannot be written")
    plan, optimizer = program.plan, job.optimizer
    model = library.Model(
        tensor_count=len(plan.tensors),
        op_count=len(plan.ops),
        input=plan.input,
        output=plan.output,
        pixels=plan.pixels,
        saved=plan.saved,
        parameters=plan.parameters,
    )
    frozen = job.order.shape[1] < 2
    lanes = -(-int(np.diff(job.edges).max()) // LANES) * LANES
    local_round = np.array([lanes, frozen, not frozen, *(len(job.order), len(optimizer.slots), 0)])
    labels = program.classes > 1
    none = np.zeros(0, np.float32)
    parts = [
        *(bytes(model), plan.tensors, plan.ops, plan.positions, plan.windows),
        *(values.parameters, values.buffers, bytes(optimizer.settings())),
        np.asarray(job.x, np.float32),
        np.asarray(job.y, np.int64) if labels else none,
        none if labels else np.asarray(job.y, np.float32),
        *(np.asarray(job.order, np.int64), np.asarray(job.edges, np.int64)),
        local_round.astype(np.int32),
    ]
    written = path.with_name(f"{path.name}.part")
    with written.open("wb") as file:
        for part in parts:
            content = part if isinstance(part, bytes) else part.tobytes()
            file.write(struct.pack("<q", len(content)) + content)
    written.replace(path)


def read_result(path: Path) -> tuple[Values, float, int]:
    """Return the values that a program trained, the last epoch's summed loss and right answers."""
    content = path.read_bytes()
    parts = []
    while content:
        (length,) = struct.unpack_from("<q", content)
        parts.append(content[8 : 8 + length])
        content = content[8 + length :]
    parameters, buffers, sums = parts
    loss, correct = struct.unpack("<dq", sums)
    return (
        Values(np.frombuffer(parameters, np.float32), np.frombuffer(buffers, np.float32)),
        loss,
        correct,
    )
