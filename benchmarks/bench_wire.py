"""Bytes and milliseconds of the wire format, beside what one would use without it.

`make bench` runs it, on one thread. The goal: 1,000,000 parameters at a density of 0.05
are encoded in under 30 ms, and decoded in under 30 ms. Every form carries the same state
and is checked to bring it back.
"""

import io
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fedsparse import wire
from fedsparse.sparsity.mask import Mask
from fedsparse.wire import index_coding

SAMPLES = [
    (1_000_000, 0.01),
    (1_000_000, 0.05),
    (1_000_000, 0.1),
    (1_000_000, 0.5),
    (11_000_000, 0.05),
]


@dataclass(frozen=True)
class Sample:
    """A tensor of normal values of which a random share is kept."""

    dense: np.ndarray
    mask: Mask

    @property
    def state(self) -> dict[str, np.ndarray]:
        """What our payloads carry."""
        return {"w": self.dense}

    @property
    def schema(self) -> wire.Schema:
        """What both sides know."""
        return wire.Schema.of(self.state)


@lru_cache(maxsize=1)
def sample(size: int, density: float) -> Sample:
    rng = np.random.default_rng(0)
    kept = rng.random(size) < density
    values = rng.normal(size=size).astype(np.float32)
    return Sample(np.where(kept, values, np.float32(0)), Mask.from_arrays({"w": kept}))


def npz_coo(given: Sample) -> bytes:
    index = np.flatnonzero(given.dense)
    file = io.BytesIO()
    np.savez(file, index=index.astype(np.int32), values=given.dense[index])
    return file.getvalue()


def npz_coo_back(raw: bytes, given: Sample) -> np.ndarray:
    with np.load(io.BytesIO(raw)) as file:
        dense = np.zeros(given.dense.size, np.float32)
        dense[file["index"]] = file["values"]
    return dense


def bitmask(given: Sample) -> bytes:
    kept = given.dense != 0
    return np.packbits(kept).tobytes() + given.dense[kept].tobytes()


def bitmask_back(raw: bytes, given: Sample) -> np.ndarray:
    size = given.dense.size
    packed = np.frombuffer(raw, np.uint8, count=(size + 7) // 8)
    kept = np.unpackbits(packed, count=size).view(bool)
    dense = np.zeros(size, np.float32)
    dense[kept] = np.frombuffer(raw[len(packed) :], np.float32)
    return dense


def flower(given: Sample) -> bytes:
    return ArrayRecord({"w": Array(given.dense)})["w"].data


def flower_back(raw: bytes, given: Sample) -> np.ndarray:
    return Array("float32", given.dense.shape, "numpy.ndarray", raw).numpy()


def ours(mode: str) -> tuple[Callable[[Sample], bytes], Callable[[bytes, Sample], np.ndarray]]:
    return (
        lambda given: wire.encode(given.state, mask=given.mask, mode=mode),
        lambda raw, given: wire.decode(raw, given.schema, masks=[given.mask]).state["w"],
    )


FORMS = {
    "fedsparse full": ours("full"),
    "fedsparse shared": ours("shared"),
    "flower dense": (flower, flower_back),
    "npz COO": (npz_coo, npz_coo_back),
    "bitmask + values": (bitmask, bitmask_back),
    "safetensors dense": (
        lambda given: save_tensors({"w": given.dense}),
        lambda raw, given: load_tensors(raw)["w"],
    ),
    "zlib 6 dense": (
        lambda given: zlib.compress(given.dense.tobytes(), 6),
        lambda raw, given: np.frombuffer(zlib.decompress(raw), np.float32),
    ),
}

Row = dict[str, float]


@pytest.fixture(scope="module", name="rows")
def _rows(request: pytest.FixtureRequest) -> Iterator[dict[tuple[int, float, str], Row]]:
    """Collect what the benchmarks measure, and print it when the last one is done."""
    rows: dict[tuple[int, float, str], Row] = {}
    yield rows
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\n" + "\n".join([*table(rows), "", *index_table()]))


def table(rows: dict[tuple[int, float, str], Row]) -> Iterator[str]:
    title = ""
    for (size, density, form), row in sorted(rows.items(), key=lambda item: item[0][:2]):
        if title != (title := f"{size:,} parameters, density {density}"):
            yield f"\n{title:34} {'bytes':>12} {'encode ms':>10} {'decode ms':>10}"
        times = (row.get(direction, math.nan) for direction in ("encode", "decode"))
        yield f"  {form:32} {row['bytes']:12,} " + " ".join(f"{1e3 * t:10.2f}" for t in times)


def index_table() -> Iterator[str]:
    """Say what positions cost beside n H(d), below which no coding of random masks goes."""
    yield f"{'index coding':34} {'bytes':>12} {'n H(d) / 8':>10} {'ratio':>10}"
    for size, density in SAMPLES:
        positions = np.flatnonzero(np.random.default_rng(1).random(size) < density)
        length = index_coding.plan(positions.astype(np.int32), size).length
        d = len(positions) / size
        least = -size * (d * math.log2(d) + (1 - d) * math.log2(1 - d)) / 8
        name = f"{size:,}, density {density}"
        yield f"  {name:32} {length:12,} {least:10,.0f} {length / least:10.4f}"


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("size", "density"), SAMPLES)
def bench_wire(benchmark, rows, size, density, form, direction):
    given = sample(size, density)
    encode, decode = FORMS[form]
    raw = encode(given)
    assert np.array_equal(decode(raw, given), given.dense)
    call = (lambda: encode(given)) if direction == "encode" else (lambda: decode(raw, given))
    benchmark.group = f"{size:,} parameters, density {density}: {direction}"
    benchmark.extra_info["bytes"] = len(raw)
    benchmark.pedantic(call, rounds=21 if size <= 1_000_000 else 5, warmup_rounds=1)
    row = rows.setdefault((size, density, form), {"bytes": len(raw)})
    if benchmark.stats is not None:
        row[direction] = benchmark.stats.stats.median
