"""The real command line, called in this process or in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

import tomli_w
from click.testing import CliRunner, Result

from fedsparse.cli import main
from tests.tiny_runs import BASE

ROOT = Path(__file__).parents[1]


def invoke(*arguments: object) -> Result:
    """Call `fedsparse` here; what is no error of ours comes out as itself."""
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def spawn(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start `fedsparse` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "fedsparse.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT), **os.environ, **environment},
    )


def tiny_toml(folder: Path) -> Path:
    """Write the configuration of a run that lasts a second."""
    path = folder / "tiny.toml"
    path.write_text(tomli_w.dumps({**BASE, "run": {"rounds": 2}}))
    return path


def error_line(result: Result) -> str:
    """Return the one line of a refused command, after checking that it is one alone."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("fedsparse: error: ")
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.removeprefix("fedsparse: error: ").rstrip("\n")
