"""What a fleet on machines of one's own needs: certificates, keys, units, containers, a checklist.

`superlink/` and `nodes/NAME/` are what each machine gets and no more; `authority/` signs, and
stays where the folder was made. A folder is whole or not there, and no key is ever replaced.
"""

import ipaddress
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template

import tomli_w

from fedsparse import __version__
from fedsparse.errors import ConfigError
from fedsparse.runs.atomic import new_folder, write_file, writing
from simulations.deployment import certificates
from simulations.deployment.app import template
from simulations.deployment.certificates import write_public

SETTINGS = "fleet.toml"
PREFIX = "/etc/fedsparse"
AUTHORITY_DAYS = 3650
NODE_PORT = 9094
"""Where the first node's own process listens on loopback; the others one further each."""
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


@dataclass(frozen=True)
class Kit:
    """What a fleet is: how its SuperLink is reached, and the partition that each node holds."""

    hosts: tuple[str, ...]
    port: int
    nodes: Mapping[str, int]

    @property
    def partitions(self) -> int:
        """How many partitions there are, told to every node."""
        return max(self.nodes.values(), default=0) + 1

    @property
    def address(self) -> str:
        """Where nodes find the SuperLink."""
        host = f"[{self.hosts[0]}]" if ":" in self.hosts[0] else self.hosts[0]
        return f"{host}:{self.port}"


def write_kit(folder: Path, kit: Kit, *, days: int = certificates.DAYS) -> None:
    """Write a fleet's folder; one that is there is refused, and no part of one is left.

    `days` is how long the server's certificate holds; the authority's holds for ten years. Raises
    ConfigError for hosts that are none, RunFolderError where nothing can be written.
    """
    hosts = [check_host(host) for host in kit.hosts]
    certificates.require_library()
    with new_folder(folder) as made:
        authority = certificates.make_authority(days=AUTHORITY_DAYS)
        certificates.write_authority(made / "authority", authority)
        certificates.write_server(made / "superlink", authority, hosts, days=days)
        _fill(made / "superlink", kit, ("superlink.service", "superlink.env", "connection.toml"))
        _fill(made / "superlink", kit, ("flwr.sh", "register.sh", "start_superlink.sh"))
        _mkdir(made / "state" / "superlink")
        for name in kit.nodes:
            _write_node(made, kit, name)
        uid, gid = os.getuid(), os.getgid()
        write_public(made / ".env", f"FLEET_UID={uid}\nFLEET_GID={gid}\n".encode())
        write_public(made / ".gitignore", b"# keys are for nobody else\n*\n")
        _fill(made, kit, ("Dockerfile",))
        write_public(made / "README.md", _text("checklist.md", kit).encode())
        _settle(made, kit)


def read_kit(folder: Path) -> Kit:
    """Read what `write_kit` wrote; raises ConfigError for a folder that holds no fleet."""
    path = folder / SETTINGS
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        nodes = {check_name(name): int(found["nodes"][name]) for name in found["nodes"]}
        hosts = tuple(check_host(host) for host in found["hosts"])
        if not hosts or min(nodes.values(), default=0) < 0:
            raise ValueError
        return Kit(hosts, int(found["port"]), nodes)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(
            f"'{folder}' is no fleet's folder ('{path}' is missing or broken); "
            "make one with `fedsparse deploy init`"
        ) from None


def add_node(folder: Path, name: str, partition: int | None = None) -> Kit:
    """Add a node with a new key to a fleet's folder and return the fleet as it is then.

    It holds the next partition unless one is named: another node's, for a key in place of that
    node's. Raises ConfigError for a name that is taken.
    """
    kit = read_kit(folder)
    if check_name(name) in kit.nodes:
        raise ConfigError(
            f"node '{name}' is there already; for a new key choose another name, such as '{name}-b'"
        )
    held = kit.partitions if partition is None else partition
    grown = replace(kit, nodes={**kit.nodes, name: held})
    _write_node(folder, grown, name)
    _settle(folder, grown)
    return grown


def renew(folder: Path, hosts: Sequence[str] = (), *, days: int = certificates.DAYS) -> Kit:
    """Make the SuperLink's certificate and key anew, for `hosts` too, and return the fleet.

    Nodes keep what they have: they trust the authority, which stays.
    """
    kit = read_kit(folder)
    added = dict.fromkeys((*kit.hosts, *(check_host(host) for host in hosts)))
    grown = replace(kit, hosts=tuple(added))
    authority = certificates.read_authority(folder / "authority")
    certificate, key = certificates.make_server(authority, grown.hosts, days=days)
    place = folder / "superlink"
    with writing(place), tempfile.TemporaryDirectory(prefix=".renew-", dir=place) as staged:
        certificates.write_private(Path(staged) / "server.key", key)
        certificates.write_public(Path(staged) / "server.crt", certificate)
        for name in ("server.key", "server.crt"):
            os.replace(Path(staged) / name, place / name)
    _settle(folder, grown)
    return grown


def check_host(host: object) -> str:
    """Return a host as it is; raises ConfigError for what is no name and no address of one."""
    text = str(host)
    with suppress(ValueError):
        address = ipaddress.ip_address(text)
        if address.is_unspecified or address.is_multicast:
            raise ConfigError(
                f"host '{text}' is no machine's address; give one that nodes reach the server by, "
                "such as 192.0.2.7"
            )
        return str(address)
    numeric = all(part.isdigit() for part in text.split("."))
    if numeric or len(text) > 253 or not _HOST.fullmatch(text):
        raise ConfigError(
            f"host '{text}' is neither a name nor an address; give what nodes reach the server by, "
            "such as fl.example.org or 192.0.2.7, without scheme and port"
        )
    return text


def check_name(name: str) -> str:
    """Return a node's name as it is; raises ConfigError for one that is no file's name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"node name '{name}': use up to 32 small letters, digits and '-', such as node-4"
        )
    return name


def _write_node(folder: Path, kit: Kit, name: str) -> None:
    """Write a node's folder, whole or not at all, and its public key for the SuperLink."""
    with new_folder(folder / "nodes" / name) as made:
        _, public = certificates.write_node_key(made, "node")
        write_public(made / "ca.crt", (folder / "authority" / "ca.crt").read_bytes())
        _fill(made, kit, ("node.service", "node.env", "start_node.sh"), name)
        made.chmod(0o755)
        write_public(folder / "superlink" / "keys" / f"{name}.pub", public.read_bytes())
        for place in ("data", "state"):
            _mkdir(folder / place / name)


def _settle(folder: Path, kit: Kit) -> None:
    """Write what tells of the whole fleet, in place of what told of it before."""
    parts = [_text("compose_head.yaml", kit)]
    parts += [_text("compose_node.yaml", kit, name) for name in kit.nodes]
    told = {"hosts": list(kit.hosts), "port": kit.port, "nodes": dict(kit.nodes)}
    with writing(folder):
        write_file(folder / "compose.yaml", "".join(parts).encode())
        write_file(folder / SETTINGS, tomli_w.dumps(told).encode())


def _mkdir(folder: Path) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _fill(folder: Path, kit: Kit, templates: Sequence[str], name: str = "") -> None:
    """Write files from templates; `start_node.sh` becomes `start.sh`."""
    for one in templates:
        final = "start.sh" if one.startswith("start_") else one
        write_public(folder / final, _text(one, kit, name).encode())


def _text(name_of: str, kit: Kit, name: str = "") -> str:
    """Return a template's text with this fleet's words in it."""
    held = kit.nodes.get(name, 0)
    words = {
        "PREFIX": PREFIX,
        "VERSION": __version__,
        "HARDENED": template("hardened.conf"),
        "PORT": kit.port,
        "ADDRESS": kit.address,
        "HOSTS": ", ".join(kit.hosts),
        "NODES": kit.partitions,
        "NAME": name,
        "PARTITION": held,
        "NODE_PORT": NODE_PORT + list(kit.nodes).index(name) if name else NODE_PORT,
    }
    return Template(template(name_of)).substitute(words)
