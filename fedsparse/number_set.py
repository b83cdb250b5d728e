"""Sets of whole numbers as text, such as "3,7-9": clients, classes and samples in a configuration.

Text, because Flower's own configuration holds no lists, and because a tenth of a data set's
samples is written and read in one line.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BeforeValidator

MOST = 2**40
"""Numbers from here on stand for nothing that a run could hold."""


@lru_cache(maxsize=32)
def parse(text: str) -> tuple[int, ...]:
    """Return the numbers of a text, ascending, each once; raises ValueError for anything else."""
    found: set[int] = set()
    for word in text.split(","):
        first, dash, last = (part.strip() for part in word.partition("-"))
        known = first.isdecimal() and (last.isdecimal() if dash else True)
        if not known:
            raise ValueError(f"'{word.strip()}' is no number and no range; write 3,7-9")
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise ValueError(f"the range {low}-{high} runs backwards; write {high}-{low}")
        if high >= MOST or high - low > 10**8:
            raise ValueError(f"{word.strip()} is out of range")
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def text_of(numbers: Iterable[int]) -> str:
    """Return numbers as the shortest text that `parse` reads; '' for none."""
    ordered = np.unique(np.fromiter(chain(numbers), np.int64))
    if not len(ordered):
        return ""
    runs = np.split(ordered, np.nonzero(np.diff(ordered) > 1)[0] + 1)
    return ",".join(_run(int(run[0]), int(run[-1])) for run in runs)


def _run(first: int, last: int) -> str:
    if last == first:
        return str(first)
    return f"{first},{last}" if last == first + 1 else f"{first}-{last}"


def _checked(text: str) -> str:
    """Return a text in its shortest form, so that equal sets are equal texts."""
    return text_of(parse(text))


def _as_text(value: Any) -> Any:
    """Return a number or a list of numbers as text; other values as they are."""
    numbers = value if isinstance(value, list) else [value]
    if all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        return ",".join(map(str, numbers))
    return value


NumberSet = Annotated[str, BeforeValidator(_as_text), AfterValidator(_checked)]
"""A set of numbers in a configuration."""
