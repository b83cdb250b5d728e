"""Random streams that depend on what they are for, never on what ran before.

Every random draw of a run comes from (run seed, round, client, purpose), so a
resumed run, another engine or another number of workers draws the same.
"""

import zlib

import numpy as np

SERVER = -1
"""The client id that stands for the server in `stream`."""


def stream(seed: int, round_number: int, client: int, purpose: str) -> np.random.Generator:
    """Return the generator for one purpose of one client in one round.

    `client` is a partition id, or `SERVER`; `purpose` is any short text, such as
    "batches". Streams of unlike arguments are independent (numpy's SeedSequence).
    """
    key = (round_number, client + 1, zlib.crc32(purpose.encode()))
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def torch_seed(seed: int, round_number: int, client: int, purpose: str) -> int:
    """Return a 63-bit seed for torch's generator, from the same family of streams."""
    return int(stream(seed, round_number, client, purpose).integers(2**63 - 1))
