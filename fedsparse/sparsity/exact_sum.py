"""Exact sums of weighted float32 vectors: the same bits whoever added what first.

Every addend w v is cut at fixed places of the binary scale into digits of 40 bits, and each
digit is summed in a float64 array of its own in which no addition ever rounds (binned
summation; Demmel and Nguyen, "Parallel Reproducible Summation", IEEE Trans. Computers 64(7),
2015). Only what an addend has below 2^-68 is rounded, once, by a rule that looks at the addend
alone. So sums made by any number of workers, in any order, are the same sum.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DIGIT = 40
"""Bits between two digits' units."""

FINE, COARSE = 2.0**-68, 2.0**-28
"""Units of the two digits that there always are; four more are made when they are needed."""

HIGHER = tuple(COARSE * 2.0 ** (DIGIT * i) for i in range(1, 5))
"""Units of the others, up to 2^132: a float32 times any weight below 2^57 lies below them."""

# A digit's array begins at 1.5 * 2^52 units: floats near it lie one unit apart, so that adding
# a number to it rounds that number to the unit, and the difference is what was added.
FINE_ZERO, COARSE_ZERO = 1.5 * 2**52 * FINE, 1.5 * 2**52 * COARSE

ROOM = 2.0**22
"""Largest magnitude that the coarse digits are let grow to; at 2^23 they would round."""

EXACT = 2.0**29
"""A whole number below this times a float32 is a float64 without rounding."""

TINY = 1e-18
"""Above what a value may be whose square is lost."""

MOST_ADDS = 4096
"""Additions after which the fine digits are carried over; at 2^13 they would round."""

BLOCK = 16384
"""Entries that are worked on at a time, so that they stay in the cache."""


class Addend(NamedTuple):
    """A vector of finite values, its weight, and a bound of its magnitude where that is known."""

    values: NDArray[Any]
    weight: float
    largest: float | None = None


Kernel = Callable[[Sequence[tuple[NDArray[np.float32], float]], Floats, Floats], None]
_kernel: list[Kernel | None] = []


class ExactSum:
    """The sum of weighted vectors of one size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fine = np.full(size, FINE_ZERO)
        self.coarse = np.full(size, COARSE_ZERO)
        self.higher: dict[int, Floats] = {}
        self.reach = 0.0
        """A bound of the coarse digits' magnitude."""
        self.adds = 0
        """Additions to the fine digits since they were last carried over."""

    @property
    def nbytes(self) -> int:
        """Bytes of the digits."""
        return (2 + len(self.higher)) * 8 * self.size

    def add(self, values: NDArray[np.float32], weight: float) -> None:
        """Add weight times a vector of finite values."""
        self.add_all([Addend(values, weight)])

    def add_all(self, addends: Sequence[Addend]) -> None:
        """Add several weighted vectors of the sum's size, in one pass; others raise ValueError.

        They may be read-only, and lie at any address.
        """
        for addend in addends:
            # The compiled form trusts their length.
            if addend.values.shape != (self.size,):
                shape = addend.values.shape
                raise ValueError(f"a vector of shape {shape} is no addend of {self.size}")
        small: list[Addend] = []
        for addend in addends:
            most = _most(addend)
            high = most >= ROOM
            if high:
                most = HIGHER[0]
            if self.reach + most > ROOM or self.adds >= MOST_ADDS:
                self._add_small(small)
                small = []
                self._carry()
            small.append(Addend(self._add_higher(*addend[:2]), 1.0) if high else addend)
            self.reach += most
            self.adds += 1
        self._add_small(small)

    def _add_small(self, addends: Sequence[Addend]) -> None:
        """Add what lies below the coarse digits' room; nothing rounds, so in any order."""
        if not self.size:
            return
        kernel = native()
        exact = [] if kernel is None else [addend for addend in addends if _is_exact(addend)]
        if kernel is not None and exact:
            kernel([addend[:2] for addend in exact], self.coarse, self.fine)
        others = addends if kernel is None else [a for a in addends if not _is_exact(a)]
        room = np.empty((2, min(BLOCK, self.size) if others else 0))
        for begin in range(0, self.size if others else 0, BLOCK):
            part = slice(begin, begin + BLOCK)
            fine, coarse = self.fine[part], self.coarse[part]
            for values, weight, _ in others:
                _add(values[part], weight, coarse, fine, *room[:, : len(fine)])

    def _add_higher(self, values: NDArray[np.float32], weight: float) -> Floats:
        """Add what lies above the coarse digits, and return the rest, at most 2^11."""
        if len(self.higher) < len(HIGHER):
            for i in range(len(HIGHER)):
                self.higher.setdefault(i, np.zeros(self.size))
        rest = np.multiply(values, weight, dtype=np.float64)
        for i in reversed(range(len(HIGHER))):
            digit = _rounded(rest, HIGHER[i])
            self.higher[i] += digit
            rest -= digit
        self._carry_higher()
        return rest

    def _carry(self) -> None:
        """Make room in the fine and coarse digits; the sum stays as it is."""
        up = _rounded(self.fine - FINE_ZERO, COARSE)
        self.fine -= up
        self.coarse += up
        self.adds = 1
        self.reach += 2 * MOST_ADDS * COARSE
        if self.reach > ROOM / 2:
            up = _rounded(self.coarse - COARSE_ZERO, HIGHER[0])
            self.coarse -= up
            self.reach = HIGHER[0]
            if up.any():
                self.higher[0] = self.higher.get(0, 0.0) + up
                self._carry_higher()

    def _carry_higher(self) -> None:
        for i, unit in enumerate(HIGHER[1:]):
            if i not in self.higher:
                continue
            up = _rounded(self.higher[i], unit)
            if up.any():
                self.higher[i] -= up
                self.higher[i + 1] = self.higher.get(i + 1, 0.0) + up

    def copy(self) -> "ExactSum":
        """Return a sum of its own that is the same."""
        new = object.__new__(ExactSum)
        new.__dict__.update(self.__dict__, fine=self.fine.copy(), coarse=self.coarse.copy())
        new.higher = {i: digits.copy() for i, digits in self.higher.items()}
        return new

    def merge(self, other: "ExactSum") -> None:
        """Add another sum of as many entries; it stays as it is."""
        if self.reach + other.reach > ROOM or self.adds >= MOST_ADDS:
            self._carry()
        for begin in range(0, self.size, BLOCK):
            part = slice(begin, begin + BLOCK)
            fine = other.fine[part] - FINE_ZERO
            up = _rounded(fine, COARSE)
            fine -= up
            self.fine[part] += fine
            up += other.coarse[part]
            up -= COARSE_ZERO
            self.coarse[part] += up
        self.adds += 1
        self.reach += other.reach + 2 * MOST_ADDS * COARSE
        for i, digits in other.higher.items():
            self.higher[i] = self.higher.get(i, 0.0) + digits
        self._carry_higher()
        if self.reach > ROOM:
            self._carry()

    def spread(self, positions: NDArray[np.int64], size: int) -> "ExactSum":
        """Return the sum as one of `size` entries, zero but at `positions`."""
        whole = ExactSum(size)
        whole.fine[positions], whole.coarse[positions] = self.fine, self.coarse
        for i, digits in self.higher.items():
            whole.higher[i] = np.zeros(size)
            whole.higher[i][positions] = digits
        whole.reach, whole.adds = self.reach, self.adds
        return whole

    def total(self) -> Floats:
        """Return the sum, rounded to float64 from digits that depend on its value alone."""
        total = np.empty(self.size)
        for begin in range(0, self.size, BLOCK):
            part = slice(begin, begin + BLOCK)
            digits = [self.fine[part] - FINE_ZERO, self.coarse[part] - COARSE_ZERO]
            units = [COARSE]
            if self.higher or self.reach >= HIGHER[0] / 2:
                none = np.zeros(len(digits[0]))
                more = len(HIGHER) if self.higher else 1
                digits += [
                    np.array(self.higher[i][part] if i in self.higher else none)
                    for i in range(more)
                ]
                units += HIGHER[:more]
            total[part] = _rounded_sum(digits, units)
        return total


def _rounded_sum(digits: list[Floats], units: Sequence[float]) -> Floats:
    """Return the sum of digits, each but the lowest in its unit; they are changed on the way.

    First they become digits between 0 and the next unit, which a value has only once; then
    digits around 0, so that no large ones cancel.
    """
    for i, unit in enumerate(units):
        up = np.floor(digits[i] / unit) * unit
        digits[i] -= up
        digits[i + 1] += up
    for i, unit in enumerate(units):
        up = np.where(digits[i] >= unit / 2, unit, 0.0)
        digits[i] -= up
        digits[i + 1] += up
    total = digits[0]
    for digit in digits[1:]:
        total += digit
    return total


def _add(
    values: NDArray[Any], weight: float, coarse: Floats, fine: Floats, x: Floats, t: Floats
) -> None:
    """Add weight times values to both digits; x and t are room to work in."""
    np.multiply(values, weight, out=x, dtype=np.float64)
    np.add(coarse, x, out=t)
    np.subtract(t, coarse, out=coarse)  # what the coarse digit has taken
    np.subtract(x, coarse, out=x)
    np.copyto(coarse, t)
    # A rest half-way between two units would be rounded to the even sum, whatever that is by
    # then; with its last bit set it never lies half-way.
    bits = x.view(np.int64)
    np.bitwise_or(bits, 1, out=bits)
    np.add(fine, x, out=fine)


def _rounded(values: Floats, unit: float) -> Floats:
    """Return the nearest multiples of a power of two."""
    return np.asarray(np.rint(values / unit) * unit, np.float64)


def _most(addend: Addend) -> float:
    """Return a bound of weight times each value: by their norm where that is small enough."""
    values, weight, largest = addend
    if largest is not None:
        return abs(weight) * largest
    if not values.size:
        return 0.0
    with np.errstate(over="ignore"):
        squares = float(np.dot(values, values))
    bound = abs(weight) * (2 * math.sqrt(squares) + TINY)
    if bound <= ROOM / 64:
        return bound
    return abs(weight) * max(float(values.max()), -float(values.min()))


def _is_exact(addend: Addend) -> bool:
    """Tell whether the compiled form gives the bits of `_add`: it never rounds products."""
    values, weight, _ = addend
    plain = values.dtype == np.float32 and values.flags.c_contiguous
    return plain and abs(weight) < EXACT and weight == int(weight)


def native() -> Kernel | None:
    """Return the compiled form of `_add` for several addends; None without kernels."""
    if not _kernel:
        try:
            from fedsparse.kernels.library import exact_adder
        except ImportError:
            _kernel.append(None)
        else:
            _kernel.append(exact_adder())
    return _kernel[0]
