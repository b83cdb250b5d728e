"""Feeding mutated inputs to a parser, and what came of them."""

import shutil
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedsparse.errors import FedSparseError
from tests.fuzz.mutations import mutated
from tests.fuzz.parsers import Parser


@dataclass
class Found:
    """How many inputs were read, refused, and broke a parser; the slowest one's seconds."""

    inputs: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    broken: dict[int, str] = field(default_factory=dict)
    slowest: float = 0.0


def input_of(parser: Parser, seed: int) -> bytes:
    """Return the input of a seed."""
    rng = np.random.default_rng([11, seed])
    content = mutated(rng, parser.corpus())
    if parser.seal is not None and len(content) > 4 and rng.random() < 0.5:
        content = parser.seal(content)
    return content


def feed(parser: Parser, first: int, count: int, scratch: Path) -> Found:
    """Feed a parser the inputs of some seeds; each has an empty folder."""
    found = Found()
    folder = scratch / "input"
    for seed in range(first, first + count):
        content = input_of(parser, seed)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        began = time.perf_counter()
        try:
            parser.parse(content, folder)
            found.ends["read"] += 1
        except FedSparseError as error:
            found.ends["refused"] += 1
            if "\n" in str(error):
                found.broken[seed] = f"more than one line: {error}"
        except Exception:
            found.ends["broken"] += 1
            found.broken[seed] = traceback.format_exc()
        found.slowest = max(found.slowest, time.perf_counter() - began)
        found.inputs += 1
    return found
