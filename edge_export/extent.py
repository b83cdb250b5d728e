"""How much a .tflite file would unpack to, found before it is unpacked.

A flatbuffer's vectors hold offsets, and a hostile one may hold the same offset many times: a few
kilobytes then unpack to gigabytes. In an honest file each part has bytes of its own.
"""

from functools import cache
from typing import Any

from edge_export.schema import schema

LEAST_TABLE = 8
"""Bytes that a table takes at least: the offset to it, and its own to what describes it."""
MOST_TABLES = 500_000
"""More than any model has, and still unpacked in a minute."""
UNIONS = {
    "BuiltinOptions": "BuiltinOptions",
    "BuiltinOptions2": "BuiltinOptions2",
    "Details": "QuantizationDetails",
    "ArraySegments": "SparseIndexVector",
    "ArrayIndices": "SparseIndexVector",
}
"""Fields whose type another field tells, and the enumeration of these types."""


def check(content: bytes) -> None:
    """Raise ValueError for a file whose parts, one by one, need more bytes than it has.

    Damaged bytes raise whatever the generated bindings raise for them.
    """
    _Extent(len(content)).table(schema().Model.GetRootAs(content))


class _Extent:
    def __init__(self, most: int) -> None:
        self.left, self.tables = most, MOST_TABLES

    def take(self, nbytes: int, tables: int = 0) -> None:
        """Count before anything is visited, so that no vector is walked in vain."""
        self.left, self.tables = self.left - nbytes, self.tables - tables
        if self.left < 0:
            raise ValueError("its parts hold more than its bytes")
        if self.tables < 0:
            raise ValueError(f"more than {MOST_TABLES} parts")

    def table(self, table: Any) -> None:
        """Count what a table holds; the schema lets none hold itself."""
        kind: Any = type(table)
        vectors, unions, fields = _accessors(kind)
        for name in vectors:
            self.vector(table, name)
        for name in unions:
            self.union(table, name)
        for name in fields:
            value = getattr(table, name)()
            if isinstance(value, bytes):
                self.take(len(value))
            elif hasattr(value, "_tab"):
                self.take(LEAST_TABLE, 1)
                self.table(value)

    def vector(self, table: Any, name: str) -> None:
        """Count a vector: of numbers by its bytes, of tables or texts one by one."""
        length = getattr(table, f"{name}Length")()
        if hasattr(table, f"{name}AsNumpy"):
            self.take(getattr(table, f"{name}AsNumpy")().nbytes if length else 0)
            return
        self.take(length * LEAST_TABLE, length)
        for number in range(length):
            value = getattr(table, name)(number)
            if isinstance(value, bytes):
                self.take(len(value))
            elif hasattr(value, "_tab"):
                self.table(value)

    def union(self, table: Any, name: str) -> None:
        """Count a table whose type another field tells; of an unknown type it is not unpacked."""
        held = getattr(table, name)()
        kind = _types(UNIONS[name]).get(getattr(table, f"{name}Type")())
        if held is None or kind is None:
            return
        self.take(LEAST_TABLE, 1)
        found = kind()
        found.Init(held.Bytes, held.Pos)
        self.table(found)


@cache
def _accessors(kind: type) -> tuple[list[str], list[str], list[str]]:
    """Return the fields of a table of the bindings: vectors, unions, all others."""
    names = [name for name in vars(kind) if name[0].isupper()]
    vectors = [name for name in names if f"{name}Length" in names]
    unions = [name for name in names if name in UNIONS and f"{name}Type" in names]
    known = {f"{name}{end}" for name in vectors for end in ("", "Length", "IsNone", "AsNumpy")}
    known |= {"Init", *unions}
    helpers = [n for n in names if n.startswith("GetRootAs") or n.endswith("BufferHasIdentifier")]
    return vectors, unions, [name for name in names if name not in known.union(helpers)]


@cache
def _types(enumeration: str) -> dict[int, Any]:
    """Return the tables that a union may hold, by the number that tells them."""
    found = vars(getattr(schema(), enumeration)).items()
    numbers = {number: name for name, number in found if isinstance(number, int)}
    return {n: getattr(schema(), name) for n, name in numbers.items() if hasattr(schema(), name)}
