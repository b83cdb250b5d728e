"""The bounds that a node promises its samples, as its configuration says them.

Read before the node starts, where numpy may be missing, and again with each message.
"""

import sys
from collections.abc import Mapping
from typing import Any

from fedsparse.errors import ConfigError

EPSILON_KEY = "max-epsilon"
DELTA_KEY = "max-delta"
_RULES = {
    EPSILON_KEY: (1.0, sys.float_info.max, "a finite number above 0"),
    DELTA_KEY: (1e-5, 1.0, "a number between 0 and 1"),
}
"""What each is unless given, what it must be below, and how that is said."""


def _quoted(value: object) -> str:
    return repr(value) if isinstance(value, float | str | bool) else str(value)[:40]


def bound(node_config: Mapping[str, Any], key: str) -> float:
    """Return a bound that a node promises, the usual one where it is not given.

    Raises ConfigError for what promises nothing: NaN, infinity, a delta of 1, or no number.
    """
    usual, below, what = _RULES[key]
    value = node_config.get(key, usual)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < below:
        raise ConfigError(
            f"this node's '{key}' is {_quoted(value)}; start it with {what}, for example "
            f"--node-config '{key}={usual}'"
        )
    return float(value)
