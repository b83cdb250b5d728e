"""Clients stay with their worker where they can; what that saves never shows in a result."""

from collections.abc import Iterator

import pytest
import ray
from ray.exceptions import ObjectLostError, OwnerDiedError

from fedsparse.errors import GridError
from simulations import flower_internals, worker_pool
from simulations.grid import CohortGrid
from simulations.parcels import Parcel
from simulations.ray_workers import RayExecutor
from simulations.work import Work
from tests.simulations.test_grid import ask
from tests.simulations.third_party_app import app

PATH = "tests.simulations.third_party_app:app"
CLIENTS = 5
NOWHERE = flower_internals.Address("", 1, 0.0)


def parcels(*clients: int) -> list[Parcel]:
    return [Parcel(client, 0, NOWHERE, None) for client in clients]


def clients(batch: list[Parcel]) -> list[int]:
    return [parcel.client for parcel in batch]


def test_clients_go_to_the_worker_of_their_number_half_of_the_rest_at_a_time():
    work = Work(parcels(*range(10)), 2)
    assert clients(work.take(0)) == [0, 2, 4]
    assert clients(work.take(1)) == [1, 3, 5]
    assert clients(work.take(0)) == [6]
    assert clients(work.take(0)) == [8]


def test_a_batch_is_not_smaller_than_is_worth_handing_out():
    work = Work(parcels(*range(10)), 2)
    work.least = 4
    assert clients(work.take(0)) == [0, 2, 4, 6]
    assert clients(work.take(0)) == [8]
    assert clients(work.take(0)) == [3, 5, 7, 9]


def test_the_heaviest_begin_and_every_worker_gets_its_share():
    samples = {0: 10, 1: 100, 2: 20, 3: 40, 4: 200, 5: 30}
    work = Work(parcels(*samples), 2, samples.__getitem__)
    work.least = 1000
    one, other = work.take(0), work.take(1)
    assert clients(one) == [4]
    assert clients(other) == [1, 3, 5, 2, 0]


def test_a_client_leaves_the_worker_of_its_number_only_where_that_one_has_enough():
    work = Work(parcels(0, 3, 6, 9, 1), 3)
    assert [clients(work.take(number)) for number in (2, 0, 0, 1, 1)] == [[6], [0], [9], [3], [1]]
    assert not work


def test_an_idle_worker_takes_over_the_end_of_the_heaviest_queue():
    work = Work(parcels(*range(8)), 2)
    assert clients(work.take(0)) == [0, 2]
    assert clients(work.take(0)) == [4]
    assert clients(work.take(0)) == [6]
    assert clients(work.take(0)) == [5, 7]
    assert clients(work.take(0)) == [3]
    assert clients(work.take(1)) == [1]
    assert not work


def test_what_is_lost_is_handed_out_last_and_alone_and_only_once():
    work = Work(parcels(0, 1, 2, 3), 1)
    lost = work.take(0)
    assert work.lost(lost) == []
    assert clients(work.take(0)) == [2]
    assert clients(work.take(0)) == [3]
    assert [clients(work.take(0)), clients(work.take(0))] == [[0], [1]]
    assert clients(work.lost(lost)) == [0, 1]
    assert not work


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    quiet = {"include_dashboard": False, "log_to_driver": False}
    ray.init(address="local", num_cpus=1, object_store_memory=80 * 2**20, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def questions(grid: CohortGrid) -> object:
    """Let clients keep an array, change it, and go back; return what they counted and keep."""
    ask(grid, "remember", number="3")
    ask(grid, "count")
    early = grid.states()
    ask(grid, "remember", number="5")
    ask(grid, "count")
    grid.load_states(early)  # what workers keep is now of another time
    return [reply.content["metrics"]["n"] for reply in ask(grid, "count")], grid.states()


@pytest.mark.parametrize(
    ("cache_bytes", "known", "missed"), [(0, 0, False), (3000, 15, True), (10**6, 15, False)]
)
def test_any_cache_gives_the_same_states(cluster, monkeypatch, cache_bytes, known, missed):
    short, again = [], []
    without, resend = RayExecutor._without_state, Work.again

    def sent(self, parcel, actor, seen):
        found = without(self, parcel, actor, seen)
        short.extend([parcel.client] if found.state is None and found.digest else [])
        return found

    monkeypatch.setattr(RayExecutor, "_without_state", sent)
    monkeypatch.setattr(Work, "again", lambda self, p: again.append(p.client) or resend(self, p))
    with CohortGrid(app, clients=CLIENTS) as inline:
        expected = questions(inline)
    executor = RayExecutor(PATH, workers=1, cache_bytes=cache_bytes)
    with CohortGrid(clients=CLIENTS, executor=executor) as grid:
        assert questions(grid) == expected
    assert (len(short), bool(again)) == (known, missed)


def test_workers_that_cannot_start_end_the_run_with_the_reason(cluster, monkeypatch):
    monkeypatch.setattr(worker_pool, "STARTS", 2)
    monkeypatch.setattr(flower_internals, "load_app", lambda path: app)  # here, not in workers
    with CohortGrid(clients=1, executor=RayExecutor("tests.nowhere:app", workers=1)) as grid:
        for _ in range(2):
            with pytest.raises(GridError, match=r"no worker can be started: .*tests\.nowhere"):
                ask(grid, "count")


@pytest.mark.parametrize("error", [ObjectLostError, OwnerDiedError])
def test_a_result_that_was_lost_with_its_node_is_asked_for_again(cluster, monkeypatch, error):
    with CohortGrid(clients=CLIENTS, executor=RayExecutor(PATH, workers=1)) as grid:
        ask(grid, "count")
        get, failed = ray.get, []

        def lose_the_first(ref):
            failed.append(ref)
            if len(failed) == 1:
                raise error(ref.hex(), None, "")
            return get(ref)

        monkeypatch.setattr(ray, "get", lose_the_first)
        replies = ask(grid, "count")
    assert [reply.content["metrics"]["n"] for reply in replies] == [2] * CLIENTS
    assert len(failed) > CLIENTS
