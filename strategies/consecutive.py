"""Nodes numbered in a row, by clients numbered in a row: the directory of a simulated fleet.

However many clients there are, it takes the memory of two ranges.
"""

from collections.abc import Iterator, Mapping


class Consecutive(Mapping[int, int]):
    """Consecutive numbers by as many consecutive keys: a directory that takes no memory."""

    def __init__(self, numbers: range, keys: range) -> None:
        self.numbers = numbers
        self._keys = keys

    @property
    def inverse(self) -> "Consecutive":
        """The keys by the numbers."""
        return Consecutive(self._keys, self.numbers)

    def __getitem__(self, key: int) -> int:
        if not isinstance(key, int) or key not in self._keys:
            raise KeyError(key)
        return self.numbers[key - self._keys.start]

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
