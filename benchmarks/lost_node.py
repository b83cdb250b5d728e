"""What a lost node costs: rounds on three nodes of one CPU, of which one is killed in mid-round.

.venv/bin/python -m benchmarks.lost_node

All nodes are processes of this machine, and clients sleep: the figures are what the grid
adds, not how fast anything computes.
"""

import time
from itertools import pairwise
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from benchmarks.nap_app import SECONDS
from simulations.grid import CohortGrid
from simulations.ray_workers import RayExecutor

CLIENTS, NODES, LOST_AFTER = 48, 3, 12


def timed_round(grid: CohortGrid, lose: Any = None) -> str:
    """Return a round's seconds, and the longest time between two replies."""
    begin, seen = time.monotonic(), [0.0]

    def replied(done: int, sent: int) -> None:
        seen.append(time.monotonic() - begin)
        if lose is not None and done == LOST_AFTER:
            lose()

    grid.progress = replied
    content = RecordDict({"config": ConfigRecord({})})
    messages = [Message(content, node, "query.nap") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages, timeout=600))
    assert len(replies) == CLIENTS
    assert not any(reply.has_error() for reply in replies)
    gap = max(after - before for before, after in pairwise(seen[1:]))
    return f"{seen[-1]:5.1f} s, longest silence {gap:.1f} s"


def main() -> None:
    """Print each round's seconds beside what sleeping alone takes."""
    from ray.cluster_utils import Cluster  # type: ignore[import-untyped]

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    head = {**node, "num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(**node) for _ in range(NODES)]
        executor = RayExecutor("benchmarks.nap_app:app", workers=NODES, address=cluster.address)
        with CohortGrid(clients=CLIENTS, executor=executor) as grid:
            full, left = CLIENTS * SECONDS / NODES, CLIENTS * SECONDS / (NODES - 1)
            lost = LOST_AFTER * SECONDS / NODES
            mixed = lost + (CLIENTS - LOST_AFTER) * SECONDS / (NODES - 1)
            timed_round(grid)  # workers start
            print(f"three nodes, asleep {full:4.1f} s: {timed_round(grid)}")
            took = timed_round(grid, lambda: cluster.remove_node(nodes[0], allow_graceful=False))
            print(f"one killed,  asleep {mixed:4.1f} s: {took}")
            print(f"two nodes,   asleep {left:4.1f} s: {timed_round(grid)}")
            cluster.add_node(**node)
            print(f"one added,   asleep {full:4.1f} s: {timed_round(grid)}")
            print(f"three nodes, asleep {full:4.1f} s: {timed_round(grid)}")
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
