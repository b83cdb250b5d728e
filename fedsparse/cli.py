"""The command line: a group whose commands are imported only when they are called.

`fedsparse --help` answers at once because nothing heavy is imported for it; what a
command needs, it imports in its own body. A user's mistake is one line on stderr.
"""

import errno
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fedsparse import __version__
from fedsparse.errors import FedSparseError, did_you_mean

COMMANDS = {
    "run": "simulations.commands:run",
    "resume": "simulations.commands:resume",
    "report": "simulations.commands:report",
    "compare": "simulations.sweep_commands:compare",
    "tune": "simulations.tuning_commands:tune",
    "personalize": "simulations.personal_commands:personalize",
    "influence": "simulations.influence_commands:influence",
    "unlearn": "simulations.unlearning.commands:unlearn",
    "deploy": "simulations.deployment.commands:deploy",
    "init-app": "simulations.deployment.commands:init_app",
    "export": "edge_export.commands:export",
    "bench": "edge_export.bench.commands:bench",
    "devices": "edge_export.device_commands:devices",
    "list": "fedsparse.listing:list_",
    "doctor": "fedsparse.doctor:doctor",
}
PACKAGES = ("fedsparse", "clients", "strategies", "edge_export", "simulations")
MISTAKE, INTERRUPTED = 2, 130
LONGEST = 500
"""Characters of a message that are shown; of a longer one, its beginning and its end."""

EXAMPLES = """\b
Examples:
  fedsparse run --preset demo
  fedsparse run --preset demo --set strategy.name=fedavg --json
  fedsparse resume runs/demo-fedtiny-s0
  fedsparse list strategies

\b
Exit codes: 0 done; 2 a mistake, told in one line; 3 a result that failed its own
verification, or runs of a comparison that failed; 130 interrupted, and resumable.
"""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command by name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one gets the nearest name proposed."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = did_you_mean(args[0], COMMANDS)
            raise click.UsageError(f"unknown command '{args[0]}'{hint}")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line and leave with its exit code; mistakes are one line."""
        extra |= {"prog_name": "fedsparse", "standalone_mode": False}
        sys.exit(exit_code(lambda: super(LazyGroup, self).main(*args, **extra)))


@click.group(
    cls=LazyGroup,
    epilog=EXAMPLES,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="fedsparse")
@click.pass_context
def main(context: click.Context) -> None:
    """Sparse federated learning on edge devices: train, resume, look."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def exit_code(work: Callable[[], Any]) -> int:
    """Do the work and return 0, or say in one line why not and return the reason's code.

    What is none of fedsparse's own errors, click's or the system's is a defect and goes
    through, with its traceback.
    """
    try:
        check_packages()
        done = work()
    except FedSparseError as error:
        return _fail(str(error), error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", INTERRUPTED)
    except MemoryError:
        return _out_of_memory()
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # how torch says it
            raise
        return _out_of_memory()
    except OSError as error:
        return _system_error(error)
    return done if isinstance(done, int) else 0


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    if len(line) > LONGEST:
        half = LONGEST // 2
        line = f"{line[:half]} ... {line[-half:]}"
    click.echo(f"fedsparse: error: {line}", err=True)
    return code


def _out_of_memory() -> int:
    remedy = "lower engine.workers, client.batch_size, model.width or data.samples"
    return _fail(f"out of memory; {remedy}", MISTAKE)


def _system_error(error: OSError) -> int:
    """Say in one line what the system refuses; raises the error again where that is unclear."""
    where = f"'{error.filename}'" if error.filename else "the output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _fail(f"no space left for {where}; free some, or write elsewhere", MISTAKE)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _fail(f"{where} cannot be written; check its permissions", MISTAKE)
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return _fail(f"{where} cannot be used: {error.strerror}; choose another name", MISTAKE)
    raise error


def check_packages() -> None:
    """Refuse to start when another folder on the path shadows one of the five packages."""
    root = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        place = _place(name)
        if place is None:
            raise FedSparseError(f"package '{name}' is not installed; install fedsparse again")
        if place != root / name:
            raise FedSparseError(
                f"'{place}' shadows fedsparse's package '{root / name}'; rename that folder, "
                "or take its parent off PYTHONPATH"
            )


def _place(package: str) -> Path | None:
    """Return the folder that a package would be imported from."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    found = Path(places[0]).resolve() if places else None
    return found.parent if found is not None and found.name == "__init__.py" else found


if __name__ == "__main__":
    main()
