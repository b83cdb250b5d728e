"""The memory that programs work in: one arena a thread, used by one client after another.

It grows to the largest that was asked for and is not given back: clients of unlike sizes, tests
and searches all use it in turn, so a worker holds one arena, whatever it has served.
"""

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
ALIGNMENT = 64


def aligned(floats: int) -> Floats:
    """Return zeros at a multiple of 64 bytes; memory is taken where they are written."""
    raw = np.zeros(floats + ALIGNMENT // 4, np.float32)
    shift = -raw.ctypes.data % ALIGNMENT // 4
    return raw[shift : shift + floats]


@dataclass(frozen=True)
class Room:
    """What a pass works in: the arena and room for gradients, for so many lanes."""

    arena: Floats
    gradients: Floats
    lanes: int


class Memory:
    """An arena and room for gradients, whoever uses them."""

    def __init__(self) -> None:
        self._arena = aligned(0)
        self._gradients = aligned(0)
        self._owner: object = None
        self._lanes = 0

    def room(self, owner: object, lanes: int, floats: int, parameters: int) -> Room:
        """Return room for one owner; what another left in the arena is wiped out.

        Halos must be zero, and where they lie depends on the owner and its lanes alone.
        """
        if len(self._gradients) < parameters:
            self._gradients = aligned(parameters)
        if len(self._arena) < floats:
            self._arena = aligned(0)  # the old one goes before the new one comes
            self._arena = aligned(floats)
        elif self._owner is not owner or self._lanes != lanes:
            self._arena[:floats] = 0.0
        self._owner, self._lanes = owner, lanes
        return Room(self._arena[:floats], self._gradients, lanes)


class _Shared(threading.local):
    def __init__(self) -> None:
        self.memory = Memory()


_shared = _Shared()


def shared() -> Memory:
    """Return this thread's memory."""
    return _shared.memory
