"""What tests on emulated ARM need, and why they are skipped without it."""

import pytest

from edge_export.bench import arm_root, plugin
from fedsparse.errors import BenchError


def missing():
    """Return what is missing on this machine, in words; nothing if they can run."""
    try:
        plugin.compiled(plugin.emulator())
        arm_root.find(None)
    except BenchError as error:
        return str(error)
    return ""


MISSING = missing()
emulated = pytest.mark.skipif(bool(MISSING), reason=MISSING)
