"""What this machine and a cluster can carry is known before anything is started."""

import socket

import pytest

from fedsparse.config import EngineConfig
from fedsparse.errors import ConfigError
from simulations import capacity


@pytest.mark.parametrize("address", ["auto", "local", "a name without a port"])
def test_addresses_without_a_port_are_left_to_ray(address):
    capacity.check_address(address)


def test_a_cluster_that_accepts_a_connection_is_left_to_ray():
    with socket.create_server(("127.0.0.1", 0)) as server:
        capacity.check_address(f"127.0.0.1:{server.getsockname()[1]}")


def test_four_workers_share_a_core_and_no_more(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    capacity.check_workers(8)
    with pytest.raises(ConfigError, match=r"engine\.workers = 9: .* 2 core.* set 8 or fewer"):
        capacity.check_workers(9)
    capacity.check(EngineConfig(name="inline", workers=9))
