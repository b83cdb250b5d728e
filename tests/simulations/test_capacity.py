"""What this machine and a cluster can carry is known before anything is started."""

import http.server
import socket
import threading

import pytest

from fedsparse.config import EngineConfig
from fedsparse.errors import ConfigError, GridError
from simulations import capacity
from tests.command_line import error_line, invoke


@pytest.mark.parametrize("address", ["auto", "local"])
def test_addresses_by_name_are_left_to_ray(address):
    capacity.check_address(address)


@pytest.mark.parametrize("address", ["nohost", "a name without a port", "127.0.0.1:", ":6379"])
def test_what_is_no_host_and_port_is_refused_before_anything_is_made(address, tmp_path):
    line = error_line(invoke("run", "--ray-address", address, "--out", tmp_path / "run"))
    assert f"engine.ray_address = '{address}' is no HOST:PORT; give what" in line
    assert not (tmp_path / "run").exists()


def test_a_port_that_accepts_and_says_nothing_is_no_cluster(monkeypatch, tmp_path):
    monkeypatch.setattr(capacity, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        out = tmp_path / "run"
        line = error_line(invoke("run", "--ray-address", address, "--out", out))
    assert f"engine.ray_address = '{address}' is no Ray cluster" in line
    assert not out.exists()


def test_a_web_server_is_no_cluster():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(GridError, match=r"no Ray cluster; give the address .* port 6379"):
            capacity.check_address(f"127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_ray_clients_address_is_told_to_carry_no_streams():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(GridError, match=r"without ray://"):
            capacity.check_address(address)


def test_an_empty_address_is_refused():
    assert "engine.ray_address is empty" in error_line(invoke("run", "--ray-address", ""))


def test_an_address_does_not_go_with_an_engine_that_has_no_cluster():
    result = invoke("run", "--engine", "inline", "--ray-address", "127.0.0.1:1")
    assert result.exit_code == 2
    assert "--ray-address: --engine inline runs on no cluster" in result.stderr


def test_four_workers_share_a_core_and_no_more(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    capacity.check_workers(8)
    with pytest.raises(ConfigError, match=r"engine\.workers = 9: .* 2 core.* set 8 or fewer"):
        capacity.check_workers(9)
    capacity.check(EngineConfig(name="inline", workers=9))
