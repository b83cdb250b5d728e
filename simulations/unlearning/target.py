"""What a run is to forget: clients, classes, samples of a file, or whoever planted its backdoor."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsparse import number_set
from fedsparse.config import Config, ForgetConfig, override, resolve
from fedsparse.errors import ConfigError

MOST_NAMED = 8


@dataclass(frozen=True)
class Target:
    """What one request names; `forget` says it as a configuration does."""

    forget: ForgetConfig

    @property
    def kind(self) -> str:
        """What is forgotten: client, class or samples."""
        return str(self.forget.kind)

    @property
    def words(self) -> str:
        """The target in plain words."""
        numbers = {
            "client": self.forget.client_set,
            "class": self.forget.class_set,
            "samples": self.forget.sample_set,
        }[self.kind]
        if self.kind == "samples":
            return f"{len(numbers):,} sample{'s' * (len(numbers) != 1)}"
        plural = {"client": "clients", "class": "classes"}[self.kind]
        named = ", ".join(map(str, sorted(numbers)[:MOST_NAMED]))
        more = f" and {len(numbers) - MOST_NAMED} more" if len(numbers) > MOST_NAMED else ""
        return f"{self.kind if len(numbers) == 1 else plural} {named}{more}"


def target_of(
    config: Config,
    clients: Sequence[int],
    classes: Sequence[int],
    samples: Path | None,
    backdoor: bool,
) -> Target:
    """Return what a request means of a run's configuration; raises ConfigError unless it is one."""
    given = [bool(clients), bool(classes), samples is not None, backdoor]
    if sum(given) != 1:
        raise ConfigError(
            "name what is to be forgotten: --client, --class, --samples or --backdoor"
        )
    if samples is not None:
        return Target(ForgetConfig(samples=number_set.text_of(read_samples(samples))))
    if classes:
        return Target(ForgetConfig(classes=number_set.text_of(classes)))
    if backdoor and not config.attack.planters:
        raise ConfigError("--backdoor: no client of this run planted one ([attack] is empty)")
    named = config.attack.client_set if backdoor else clients
    for client in named:
        if client >= config.fleet.clients:
            raise ConfigError(
                f"there is no client {client}; the run's are 0 to {config.fleet.clients - 1}"
            )
    return Target(ForgetConfig(clients=number_set.text_of(named)))


def read_samples(path: Path) -> list[int]:
    """Return the sample ids of a text file: one a line, or several with commas; # is a remark.

    Raises ConfigError for a file that cannot be read, names nothing, or names a sample twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"--samples: no file '{path}'; give a text file of sample ids") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--samples: '{path}' cannot be read as text: {error}") from None
    lines = enumerate((line.partition("#")[0] for line in text.splitlines()), 1)
    words = [(n, word.strip()) for n, line in lines for word in line.split(",") if word.strip()]
    for number, word in words:
        if not (word.isdecimal() and len(word) < 13):
            raise ConfigError(f"--samples: '{path}' line {number}: '{word[:40]}' is no sample id")
    if not words:
        raise ConfigError(f"--samples: '{path}' names no sample; write one id a line")
    ids = [int(word) for _, word in words]
    (most, times), *_ = Counter(ids).most_common(1)
    if times > 1:
        raise ConfigError(f"--samples: '{path}' names sample {most} {times} times; name each once")
    return ids


OURS = ("strategy.name", "strategy.parent", "strategy.parent_model")
"""Keys that the request itself sets."""


def check_changes(changes: Sequence[str], *, exact: bool) -> None:
    """Refuse changes of what the request itself says, or that an exact rerun cannot have.

    Raises ConfigError: a rerun that trained otherwise would not be that of the run.
    """
    for change in changes:
        key = change.partition("=")[0].strip()
        if exact and not key.startswith("engine."):
            raise ConfigError(
                f"--set {key}: an exact rerun has the run's own settings; only [engine] may change"
            )
        if key in OURS or key.startswith(("forget.", "attack.", "data.")):
            raise ConfigError(f"--set {key}: the target and --method say this; leave it out")


def tree_of(config: Config) -> dict[str, dict[str, object]]:
    """Return a configuration as the nested mapping that it can be made from again."""
    return {
        section: {key: value for key, value in values.items() if value is not None}
        for section, values in config.model_dump().items()
    }


def without(config: Config, target: Target, changes: Sequence[str] = ()) -> Config:
    """Return a configuration that forgets a target, too, with other changes of its keys."""
    tree = tree_of(config)
    tree["forget"] = {
        key: number_set.text_of(getattr(config.forget, own) | getattr(target.forget, own))
        for key, own in (
            ("clients", "client_set"),
            ("classes", "class_set"),
            ("samples", "sample_set"),
        )
        if getattr(config.forget, own) | getattr(target.forget, own)
    }
    return resolve(override(tree, changes))


def forgotten_before(config: Config, target: Target) -> bool:
    """Tell whether a run was made without the whole target already."""
    old, new = config.forget, target.forget
    return (
        new.client_set <= old.client_set
        and new.class_set <= old.class_set
        and new.sample_set <= old.sample_set
    )
