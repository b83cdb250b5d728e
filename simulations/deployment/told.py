"""What a node is told by `--node-config`, checked before the node starts.

Flower passes over what it cannot read, and nobody reads a key that is written wrongly: a node would
train on other data than its own, or forget its promise, without a word. Needs no numpy.
"""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any

from fedsparse.errors import ConfigError
from fedsparse.privacy import promised

PLACED = ("partition-id", "num-partitions")
"""What `deploy local` tells each node itself."""
TEXTS = ("data-path", "test-path", "label", "cache-path", "state-path")
PROMISED = (promised.EPSILON_KEY, promised.DELTA_KEY)
KNOWN = (*PLACED, *TEXTS, *PROMISED)
"""Every key that fedsparse reads; a client of one's own may read others."""
_PAIR = re.compile(r"""\s*([^\s=]+)=('[^']*'|"[^"]*"|\S+)(?=\s|$)""")
NEAR = 0.75


def check_told(text: str, *, local: bool = False) -> dict[str, Any]:
    """Return what a node configuration says, pairs `KEY=VALUE` or the path of a TOML file.

    `local` is for what `deploy local` adds to each node's own. Raises ConfigError for what Flower
    would pass over or refuse, for a key that is nearly one of ours, and for a value that is none.
    """
    told = _file(text) if text.endswith(".toml") and "=" not in text else _pairs(text)
    for key in told:
        near = [] if key in KNOWN else difflib.get_close_matches(key, KNOWN, 1, NEAR)
        if near:
            raise ConfigError(f"--node-config: unknown key '{key}'; did you mean '{near[0]}'?")
        if local and key in PLACED:
            raise ConfigError(
                f"--node-config: each node is told its own '{key}' by this command; leave it out"
            )
    _check_values(told)
    return told


def _check_values(told: dict[str, Any]) -> None:
    """Raise ConfigError for a value that a message would be refused for once the node is up."""
    for key in told.keys() & set(TEXTS):
        if not (isinstance(told[key], str) and told[key].strip("\0")):
            raise ConfigError(f'--node-config: {key}={told[key]} is no text; write {key}="..."')
        if "\0" in told[key]:
            raise ConfigError(f"--node-config: {key}={told[key]!r} holds a NUL; write it without")
    for key in told.keys() & set(PLACED):
        if type(told[key]) is not int or told[key] < 0:
            raise ConfigError(
                f"--node-config: {key}={told[key]} is no whole number from 0 on; write {key}=0, 1, "
                "..."
            )
    for key in told.keys() & set(PROMISED):
        promised.bound(told, key)
    if promised.EPSILON_KEY in told and "state-path" not in told:
        raise ConfigError(
            f"--node-config: {promised.EPSILON_KEY} alone is forgotten when the node restarts; add "
            'state-path="FOLDER", where it keeps what it has told'
        )
    if promised.DELTA_KEY in told and promised.EPSILON_KEY not in told:
        raise ConfigError(
            f"--node-config: {promised.DELTA_KEY} alone promises nothing; add "
            f"{promised.EPSILON_KEY}=..., or leave it out"
        )


def _pairs(text: str) -> dict[str, Any]:
    """Return the pairs of a line; raises ConfigError for what is no pair and no value."""
    told: dict[str, Any] = {}
    rest = text.strip()
    while rest:
        found = _PAIR.match(rest)
        if found is None:
            raise ConfigError(
                f"--node-config: '{rest[:60]}' is no KEY=VALUE; write text in quotes and spaces "
                "between pairs, for example 'data-path=\"/srv/data\" partition-id=0'"
            )
        key, value = found.groups()
        try:
            told[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            plain = value.strip("'\"")
            raise ConfigError(
                f"--node-config: {key}={value} is neither a number nor true or false; write text "
                f'in quotes: {key}="{plain}"'
            ) from None
        rest = rest[found.end() :].strip()
    return told


def _file(text: str) -> dict[str, Any]:
    """Return what a TOML file holds, as Flower reads one in the place of pairs."""
    try:
        return tomllib.loads(Path(text).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--node-config: '{text}' cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--node-config: '{text}' is no valid TOML: {error}") from None
