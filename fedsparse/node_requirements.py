"""What a light node installs beside fedsparse itself: `python -m fedsparse.node_requirements`.

pip cannot leave out a dependency. So fedsparse is installed with --no-deps, and then what its
extra `node` lists, which is said by its metadata; nothing but Python is needed to ask.
"""

import sys
from importlib.metadata import PackageNotFoundError, requires

EXTRA = "; extra == 'node'"


def node_requirements() -> list[str]:
    """Return the requirements of a light node, as pip reads them; none if nothing is installed."""
    try:
        lines = requires("fedsparse") or []
    except PackageNotFoundError:
        return []
    plain = [line.replace('"', "'") for line in lines]
    return sorted(line.removesuffix(EXTRA).strip() for line in plain if line.endswith(EXTRA))


def main() -> int:
    """Print them, one a line; returns 1 where fedsparse is not installed."""
    found = node_requirements()
    if not found:
        print("fedsparse is not installed: pip install --no-deps fedsparse", file=sys.stderr)
        return 1
    print("\n".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
