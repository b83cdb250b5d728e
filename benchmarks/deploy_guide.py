"""Types the lines of docs/deploy.md, "On one machine, by hand", as they stand on the page.

    python benchmarks/deploy_guide.py

The lines run in one shell, in a folder and with a home of their own; fedsparse is installed in the
environment that runs this. Leaves with code 1 where a line fails or the run does; writes
benchmarks/results/deploy-guide.json.
"""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "deploy.md"
RESULT = Path(__file__).parent / "results" / "deploy-guide.json"
SECTION = "## On one machine, by hand"
SECONDS = 1800.0


def lines_of(page: str) -> list[str]:
    """Return the lines of the section's shell blocks."""
    section = page.partition(SECTION)[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def typed(lines: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run the lines in one shell; what they start is ended with it."""
    home = folder / "home"
    home.mkdir()
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FLWR_HOME")}
    shell = subprocess.Popen(
        ["bash", "-e", "-c", "\n".join(lines)],
        cwd=folder,
        env={**kept, "PATH": path, "HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = shell.communicate(timeout=SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(lines, shell.returncode, said)


def main() -> None:
    lines = lines_of(PAGE.read_text(encoding="utf-8"))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedsparse-guide-", ignore_cleanup_errors=True) as made:
        done = typed(lines, Path(made))
        reports = list(Path(made).glob("fleet/superlink/state/runs/flower-*/report.html"))
    print(done.stdout)
    found = {
        "lines": len(lines),
        "exit_code": done.returncode,
        "completed": "finished:completed" in done.stdout,
        "reports": len(reports),
        "seconds": round(time.monotonic() - began),
    }
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found))
    sys.exit(0 if lines and found["completed"] and reports and not done.returncode else 1)


if __name__ == "__main__":
    main()
