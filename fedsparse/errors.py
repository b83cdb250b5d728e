"""The one family of errors that fedsparse raises on purpose.

Each message is one line that names the bad value and the remedy; the command
line prints it and leaves with the error's exit code, without a traceback.
"""

import difflib
from collections.abc import Iterable

LONGEST_LINE = 300
"""Characters of a reason that tables and messages show."""


class FedSparseError(Exception):
    """Base of every error that fedsparse raises on purpose.

    `exit_code` is what the command line leaves with: 2 is the user's mistake.
    """

    exit_code = 2


class ConfigError(FedSparseError):
    """A configuration value is missing, of the wrong type, or out of range."""


class UnknownNameError(ConfigError):
    """A name that nothing is registered under; the message names the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        choices = sorted(known)
        super().__init__(f"unknown {kind} '{name}'{did_you_mean(name, choices)}")


class MaskError(FedSparseError):
    """Masks, scores or densities that do not fit each other or their model."""


class WireError(FedSparseError):
    """A payload that is truncated, damaged, hostile, or not meant for this model."""


class DataError(FedSparseError):
    """A data source that is missing, unreadable or too small for what is asked."""


class StateError(FedSparseError):
    """What a client keeps on its disk between messages: damaged, another's, or not writable."""


class ModelError(FedSparseError):
    """A model that does not fit the data or the state it is given."""


class TrainingError(FedSparseError):
    """Local training that cannot go on, such as a loss that is not finite."""


class GridError(FedSparseError):
    """A grid that cannot be built or that lost its workers."""


class SecureAggregationError(GridError):
    """A message of secure aggregation that is refused, or a sum that cannot be unmasked."""


class TooFewRepliesError(GridError):
    """A round with fewer replies than its stated minimum; the run is resumable."""


class RunFolderError(FedSparseError):
    """A run folder that is missing, broken, in use, or not writable."""


class LedgerError(FedSparseError):
    """A ledger that was changed or lacks entries: what it says cannot be relied on."""

    exit_code = 3


class ExportError(FedSparseError):
    """A model that cannot be exported as asked, or a file that is no such export."""


class VerificationError(FedSparseError):
    """An exported file that does not compute what its model computes."""

    exit_code = 3


class BenchError(FedSparseError):
    """A measurement that cannot be made here; the message says what is missing."""


class MissingExtraError(FedSparseError):
    """A feature whose optional packages are not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs extra packages: pip install 'fedsparse[{extra}]'")


class MissingTorchError(MissingExtraError):
    """Work for torch at a node that was installed without it."""

    def __init__(self, feature: str) -> None:
        FedSparseError.__init__(
            self,
            f"{feature} needs torch, which this node lacks: pip install torch at the node, or "
            "choose what trains natively (docs: light node)",
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the tail of a message that proposes the nearest of `known` names."""
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; choose one of: {', '.join(choices)}" if choices else ""


def unreadable(error: OSError) -> str:
    """Return why a file cannot be read, and what to do."""
    if isinstance(error, PermissionError):
        return "its permissions forbid it; allow this user to read it"
    return f"{error.strerror or error}; check the path, and the disk that it is on"


def one_line(text: str | None) -> str:
    """Return the last line of a reason, for tables and messages: bounded, and nothing but print.

    It may come from another machine, and what controls a terminal is not shown. Of one that is too
    long the middle is left out, for the remedy stands at the end.
    """
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    if not lines:
        return "no reason given"
    found, half = lines[-1], (LONGEST_LINE - 5) // 2
    if len(found) > LONGEST_LINE:
        found = f"{found[:half]} ... {found[-half:]}"
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in found)
