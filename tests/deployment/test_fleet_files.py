"""`fedsparse deploy init` and what keeps its folder; `init-app`; who gets an answer of the link."""

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import tomllib
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from fedsparse.errors import ConfigError
from simulations.deployment import certificates, kit
from simulations.deployment.app import package_of
from simulations.deployment.inspection import inspect
from simulations.deployment.kit import Kit, write_kit
from simulations.deployment.link import REFUSAL, NodesOnly, is_loopback
from tests.command_line import error_line, invoke

PRIVATE = ("authority/ca.key", "superlink/server.key", "nodes/node-0/node.key")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kit") / "fleet"
    done = invoke("deploy", "init", folder, "--nodes", 2, "--host", "fl.example.org")
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def fleet(made, tmp_path):
    """A copy to change, keys and permissions as they were."""
    shutil.copytree(made, tmp_path / "fleet")
    return tmp_path / "fleet"


def ill(folder, **given) -> list[str]:
    return [f"{one.what}: {one.said}" for one in inspect(folder, **given) if not one.well]


def test_every_machine_gets_its_own_private_key_and_nobody_elses(made):
    assert {p.name for p in (made / "superlink").glob("*.key")} == {"server.key"}
    keys = [(made / "nodes" / f"node-{n}" / "node.key").read_bytes() for n in range(2)]
    assert keys[0] != keys[1]
    for private in PRIVATE:
        assert (made / private).stat().st_mode & 0o777 == 0o600
    assert made.stat().st_mode & 0o077 == 0
    assert sorted(p.name for p in (made / "superlink/keys").iterdir()) == [
        "node-0.pub",
        "node-1.pub",
    ]


def test_each_node_is_told_the_server_and_its_partition(made):
    told = (made / "nodes/node-1/node.env").read_text()
    assert "SUPERLINK=fl.example.org:8000\n" in told
    assert "NODE_CONFIG='partition-id=1 num-partitions=2'\n" in told


def test_a_node_keeps_decoded_samples_where_it_keeps_its_state(made, tmp_path):
    """Its user has no home: without a place for them each message would parse all data anew."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$XDG_CACHE_HOME"\n')
    python.chmod(0o755)
    told = {"PATH": os.environ["PATH"], "PYTHON": str(python), "STATE": str(tmp_path / "state")}
    done = subprocess.run(
        ["sh", made / "nodes/node-0/start.sh"], env=told, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path}/state/cache\n"


def test_a_strict_reader_accepts_the_servers_certificate(made):
    """Python 3.13 verifies so by default."""
    reader = ssl.create_default_context(cafile=str(made / "authority/ca.crt"))
    reader.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made / "superlink/server.crt", made / "superlink/server.key")
    shake(reader, server, "fl.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake(reader, server, "other.example.org")


def shake(reader: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """Do a TLS handshake in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        reader.wrap_bio(down, up, server_hostname=name),
        server.wrap_bio(up, down, server_side=True),
    ]
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue


def test_the_units_are_what_systemd_reads(made, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    for unit in (made / "superlink/superlink.service", made / "nodes/node-0/node.service"):
        copy = shutil.copy(unit, tmp_path)
        done = subprocess.run(
            ["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_the_containers_are_a_service_for_each_machine(made):
    services = yaml.safe_load((made / "compose.yaml").read_text())["services"]
    assert list(services) == ["superlink", "node-0", "node-1"]
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        for volume in service["volumes"]:
            assert (made / volume.partition(":")[0]).is_dir()
        assert (made / service["env_file"]).is_file()


@pytest.mark.parametrize(
    "host", ["https://a.org", "a.org:8000", "", "a b", "-a.org", "1.2.3", "300.1.1.1", "x" * 64]
)
def test_what_is_no_host_is_refused_in_a_line_and_nothing_is_made(tmp_path, host):
    line = error_line(invoke("deploy", "init", tmp_path / "f", "--nodes", 1, "--host", host))
    assert "neither a name nor an address" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1"])
def test_an_address_that_no_node_can_reach_is_refused(tmp_path, host):
    line = error_line(invoke("deploy", "init", tmp_path / "f", "--nodes", 1, "--host", host))
    assert f"host '{host}' is no machine's address" in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_never_written_into(tmp_path):
    (tmp_path / "f").mkdir()
    for command in (("deploy", "init", "--nodes", 1, "--host", "a.org"), ("init-app",)):
        assert "is there already" in error_line(invoke(*command, tmp_path / "f"))
    assert list((tmp_path / "f").iterdir()) == []


def test_a_failure_halfway_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kit, "_settle", full)
    with pytest.raises(Exception, match="full"):
        write_kit(tmp_path / "f", Kit(("a.org",), 8000, {"node-0": 0}))
    assert list(tmp_path.iterdir()) == []


def test_a_new_fleet_is_well(made):
    assert ill(made) == []
    done = invoke("deploy", "check", made, "--json")
    assert done.exit_code == 0
    assert all(one["well"] for one in json.loads(done.stdout))


def test_certificates_near_their_end_are_to_be_mended(made):
    in_a_year = datetime.now(UTC) + timedelta(days=340)
    assert [line.partition(":")[0] for line in ill(made, now=in_a_year)] == ["superlink/server.crt"]
    in_ten = datetime.now(UTC) + timedelta(days=3660)
    assert any("authority/ca.crt: expired" in line for line in ill(made, now=in_ten))


def test_keys_that_others_may_read_are_to_be_mended(fleet):
    for private in PRIVATE:
        (fleet / private).chmod(0o644)
    assert [line.partition(":")[0] for line in ill(fleet)] == list(PRIVATE)
    assert invoke("deploy", "check", fleet).exit_code == 3


def test_what_does_not_belong_together_is_to_be_mended(fleet):
    other = certificates.make_authority()
    crt, _ = certificates.make_server(other, ["fl.example.org"])
    (fleet / "superlink/server.crt").write_bytes(crt)
    (fleet / "superlink/keys/node-0.pub").write_text("another")
    found = "\n".join(ill(fleet))
    for reason in ("not signed by", "server.key is missing or another's", "node.pub is not"):
        assert reason in found
    certificate, _ = certificates.make_server(certificates.read_authority(fleet / "authority"))
    (fleet / "superlink/server.crt").write_bytes(certificate)
    assert any("not for fl.example.org" in line for line in ill(fleet))


def test_renewing_serves_more_hosts_and_leaves_the_nodes_as_they_are(fleet):
    before = (fleet / "superlink/server.crt").read_bytes()
    node = {p.name: p.read_bytes() for p in (fleet / "nodes/node-0").iterdir()}
    assert invoke("deploy", "renew", fleet, "--host", "192.0.2.8").exit_code == 0
    assert (fleet / "superlink/server.crt").read_bytes() != before
    assert node == {p.name: p.read_bytes() for p in (fleet / "nodes/node-0").iterdir()}
    assert kit.read_kit(fleet).hosts == ("fl.example.org", "192.0.2.8")
    assert ill(fleet) == []
    assert sorted(p.name for p in (fleet / "superlink").glob(".*")) == []


def test_a_node_is_added_and_another_gets_a_new_key(fleet):
    assert invoke("deploy", "node", fleet, "node-2").exit_code == 0
    assert invoke("deploy", "node", fleet, "node-1-b", "--partition", 1).exit_code == 0
    found = kit.read_kit(fleet)
    assert dict(found.nodes) == {"node-0": 0, "node-1": 1, "node-2": 2, "node-1-b": 1}
    assert "partition-id=1 num-partitions=3" in (fleet / "nodes/node-1-b/node.env").read_text()
    assert ill(fleet) == []
    key = (fleet / "nodes/node-2/node.key").read_bytes()
    assert "there already" in error_line(invoke("deploy", "node", fleet, "node-2"))
    assert "small letters" in error_line(invoke("deploy", "node", fleet, "../x"))
    assert (fleet / "nodes/node-2/node.key").read_bytes() == key


@pytest.mark.parametrize("text", ["", "port = 8000", "hosts = 3\nport = 1\n[nodes]\n", "\x00"])
def test_a_folder_that_is_no_fleets_is_refused(tmp_path, text):
    (tmp_path / "fleet.toml").write_text(text)
    for command in ("check", "renew"):
        assert "is no fleet's folder" in error_line(invoke("deploy", command, tmp_path))


def test_an_app_has_the_same_keys_and_places_for_ones_own(tmp_path):
    done = invoke("init-app", tmp_path / "My run", "--preset", "demo", "--set", "client.lr=0.01")
    assert done.exit_code == 0, done.output
    app = tomllib.loads((tmp_path / "My run/pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["config"]["client"]["lr"] == 0.01
    assert app["components"] == {
        "serverapp": "my_run_app.server:app",
        "clientapp": "my_run_app.client:app",
    }
    for part in ("server", "client"):
        text = (tmp_path / "My run/my_run_app" / f"{part}.py").read_text()
        names: dict[str, object] = {}
        exec(compile(text, part, "exec"), names)
        assert names["__all__"] == ["app"]


def test_an_app_for_what_real_nodes_cannot_do_is_refused(tmp_path):
    line = error_line(invoke("init-app", tmp_path / "a", "--set", "fleet.profile=phones"))
    assert "real nodes run in real time" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("folder", "package"),
    [("numpy", "numpy_app"), ("4 nodes", "fl_4_nodes_app"), ("é!", "fedsparse_app")],
)
def test_an_apps_package_is_nobody_elses(folder, package):
    assert package_of(folder) == package


def answer(path: str, client: str, kind: str = "http") -> str:
    """Return what a request gets from the screened SuperLink: its answer or the refusal."""
    said: list[dict[str, object]] = []

    async def link(scope, receive, send):
        said.append({"type": "passed"})

    async def send(message):
        said.append(message)

    scope = {"type": kind, "path": path, "client": (client, 50000)}
    asyncio.run(NodesOnly(link)(scope, None, send))
    if said[0]["type"] == "http.response.start":
        assert said[1]["body"] == REFUSAL
        return str(said[0]["status"])
    return str(said[0]["type"])


def test_others_get_answers_to_what_nodes_ask_alone():
    assert answer("/v1/fleet/pull-messages", "192.0.2.9") == "passed"
    for path in ("/v1/control/start-run", "/v1/runtime/acquire-task", "/docs", "/", "/v1/fleet"):
        assert answer(path, "192.0.2.9") == "403"
    for path in ("/v1/fleet/../control/start-run", "//v1/fleet/x", "/V1/fleet/x"):
        assert answer(path, "192.0.2.9") == "403"
    assert answer("/v1/control/start-run", "127.0.0.1") == "passed"
    assert answer("/v1/fleet/x", "192.0.2.9", "websocket") == "websocket.close"
    assert answer("/", "192.0.2.9", "lifespan") == "passed"


OWN, OTHERS = ("127.0.0.1", "::1", "::ffff:127.0.0.1"), ("10.0.0.1", "::ffff:10.0.0.1", "", "x")


@pytest.mark.parametrize("host", [*OWN, *OTHERS])
def test_this_machine_is_known_by_its_address(host):
    assert is_loopback(host) is (host in OWN)


def test_an_authority_without_its_key_is_told(tmp_path):
    certificates.write_server(tmp_path, certificates.make_authority())
    with pytest.raises(ConfigError, match="signing key"):
        certificates.read_authority(tmp_path)


def test_a_partition_that_no_node_holds_is_named(fleet):
    kit.add_node(fleet, "far", 4)
    assert ill(fleet) == [
        "nodes: no node holds partition 2, 3; add one, `fedsparse deploy node --partition`"
    ]
