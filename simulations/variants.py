"""What is compared: variants, densities and seeds, and the points that they make together.

A variant is a named list of changes to the configuration; each point is one whole run. All
that can be refused of a point's configuration is refused here, before anything runs.
"""

import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import tomli_w

from fedsparse.config import (
    Config,
    StrategySettings,
    differences,
    override,
    resolve,
    settings_of,
)
from fedsparse.errors import ConfigError, UnknownNameError, did_you_mean

Tree = Mapping[str, Any]

OWN = ("variant", "compare")
"""Tables of a configuration that are for a comparison alone."""

_KEYS = ("seeds", "densities", "baseline")
_LONGEST_NAME = 60
_EXAMPLE = "'prox: strategy.name=fedavg strategy.proximal_mu=0.1'"


@dataclass(frozen=True)
class Variant:
    """A name, and the `section.key=value` changes that it stands for."""

    name: str
    changes: tuple[str, ...]

    @classmethod
    def of_strategy(cls, name: str) -> "Variant":
        """Return the variant that only chooses a strategy; an unknown one is refused."""
        settings_of(name)
        return cls(name, (f"strategy.name={name}",))

    @classmethod
    def parse(cls, text: str) -> "Variant":
        """Read `NAME: KEY=VALUE KEY=VALUE ...`; raises ConfigError when it is none."""
        name, colon, rest = text.partition(":")
        try:
            changes = tuple(shlex.split(rest))
        except ValueError as error:
            raise ConfigError(f"--variant '{text}': {error}; example: {_EXAMPLE}") from None
        if not (colon and name.strip() and changes):
            raise ConfigError(f"--variant '{text}' is not NAME: KEY=VALUE; example: {_EXAMPLE}")
        return cls(_checked_name(name.strip()), changes)

    @property
    def keys(self) -> set[str]:
        """The dotted keys that it changes."""
        return {change.partition("=")[0].strip() for change in self.changes}


@dataclass(frozen=True)
class Asked:
    """What a comparison is asked to vary; empty sequences mean the configuration's own."""

    variants: tuple[Variant, ...] = ()
    densities: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    baseline: str | None = None


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    variant: str
    density: float
    seed: int
    config: Config
    command: str
    """The exact command that repeats it, but for the folder."""

    @property
    def slug(self) -> str:
        """The name of its run folder; different points have different ones."""
        short = f"{self.density:g}"
        density = short if float(short) == self.density else repr(self.density)
        return f"{_plain_name(self.variant)}-d{density}-s{self.seed}"


def asked_by(tree: Tree) -> Asked:
    """Return what `[[variant]]` and `[compare]` of a configuration ask for."""
    compare = tree.get("compare", {})
    if not isinstance(compare, Mapping):
        raise ConfigError(f"compare = {compare!r}: [compare] is a section, give it keys")
    for key in compare:
        if key not in _KEYS:
            raise ConfigError(f"unknown key 'compare.{key}'{did_you_mean(key, _KEYS)}")
    baseline = compare.get("baseline")
    if baseline is not None and not isinstance(baseline, str):
        raise ConfigError(f"compare.baseline = {baseline!r}: must be the name of a variant")
    return Asked(
        variants=tuple(_variants(tree.get("variant", []))),
        densities=densities_of(compare.get("densities"), "compare.densities"),
        seeds=seeds_of(compare.get("seeds"), "compare.seeds"),
        baseline=baseline,
    )


def _variants(found: Any) -> Iterable[Variant]:
    if not isinstance(found, list):
        raise ConfigError("variants are tables of a list: write [[variant]], not [variant]")
    for number, table in enumerate(found, 1):
        if not isinstance(table, Mapping):
            raise ConfigError(f"variant {number} is no table; write [[variant]] with name and set")
        for key in table:
            if key not in ("name", "set"):
                raise ConfigError(
                    f"unknown key '{key}' of variant {number}{did_you_mean(key, ('name', 'set'))}"
                )
        name, changes = table.get("name"), table.get("set")
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f'variant {number} has no name; give it one: name = "..."')
        texts = isinstance(changes, list) and all(isinstance(text, str) for text in changes)
        if not texts or not changes:
            raise ConfigError(
                f"variant '{name}': set = {changes!r}: must be a list of changes such as "
                "'client.lr=0.1'"
            )
        yield Variant(_checked_name(name.strip()), tuple(changes))


def _checked_name(name: str) -> str:
    if not name.isprintable() or len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"variant {name[:80]!r}: a name is one line of at most {_LONGEST_NAME} characters"
        )
    return name


def words_of(text: str | None, option: str) -> list[str] | None:
    """Return the items of a list `A,B,C`; raises ConfigError for an empty list or item."""
    if text is None:
        return None
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise ConfigError(f"{option} '{text}': an item is empty; give a list such as A,B")
    return items


def densities_of(found: Any, option: str) -> tuple[float, ...]:
    """Return densities, given as text or as numbers; raises ConfigError for what is none."""
    return tuple(_each(found, option, _density, "densities in (0, 1]", "0.01, 0.05"))


def seeds_of(found: Any, option: str) -> tuple[int, ...]:
    """Return seeds, given as text or as numbers; raises ConfigError for what is none."""
    return tuple(_each(found, option, _seed, "whole numbers from 0", "0, 1, 2"))


def _each(
    found: Any, option: str, read: Callable[[Any], Any], what: str, example: str
) -> list[Any]:
    if found is None:
        return []
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{option} = {found!r}: give a list of {what}, such as {example}")
    values = [read(item) for item in found]
    for item, value in zip(found, values, strict=True):
        if value is None:
            raise ConfigError(f"{option}: {item!r} is wrong; give {what}, such as {example}")
    twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
    if twice is not None:
        raise ConfigError(f"{option}: {twice!r} stands there twice; give each once")
    return values


def _density(item: Any) -> float | None:
    try:
        value = float(item) if not isinstance(item, bool) else math.nan
    except (TypeError, ValueError):
        return None
    return value if 0 < value <= 1 else None


def _seed(item: Any) -> int | None:
    text = str(item) if not isinstance(item, float) else ""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def points_of(
    tree: Tree, source: Sequence[str], assignments: Sequence[str], asked: Asked, engine: str | None
) -> list[Point]:
    """Return the points: variants x densities x seeds, in that order.

    `tree` is the configuration that `fedsparse run SOURCE` starts from. A dense strategy,
    and a variant that sets its own density, are run once a seed, not once a density. Raises
    ConfigError, which names the variant, for a configuration that is not valid.
    """
    _check_variants(asked.variants)
    base = override(tree, assignments)
    found = []
    for variant in asked.variants:
        try:
            changed = override(base, variant.changes)
            swept = () if "strategy.density" in variant.keys or _dense(changed) else asked.densities
            for density in swept or (None,):
                own = [] if density is None else [f"strategy.density={density!r}"]
                for seed in asked.seeds or (None,):
                    last = [*own, *([] if seed is None else [f"run.seed={seed}"])]
                    last += [f"engine.name={engine or engine_of(changed)}"]
                    config = resolve(override(changed, last))
                    changes = [*assignments, *variant.changes, *last]
                    command = command_of(tree, source, changes, config)
                    reached = float(config.strategy["density"])
                    found.append(Point(variant.name, reached, config.run.seed, config, command))
        except ConfigError as error:
            raise ConfigError(f"variant '{variant.name}': {error}") from None
    return found


def _check_variants(variants: Sequence[Variant]) -> None:
    if not variants:
        raise ConfigError("nothing to compare; give --strategies A,B or --variant NAME: KEY=VALUE")
    names = [variant.name for variant in variants]
    for i, variant in enumerate(variants):
        if variant.name in names[:i]:
            raise ConfigError(f"variant '{variant.name}' stands there twice; name each its own way")
        if "run.seed" in variant.keys:
            raise ConfigError(
                f"variant '{variant.name}' sets run.seed, but all variants share the seeds; "
                "use --seeds"
            )


def check_baseline(baseline: str | None, variants: Sequence[str]) -> str:
    """Return the baseline, the first variant by default; an unknown one is refused."""
    if baseline is None:
        return variants[0]
    if baseline not in variants:
        raise UnknownNameError("baseline", baseline, variants)
    return baseline


def is_dense(strategy: str) -> bool:
    """Whether a strategy keeps every weight unless told otherwise."""
    return bool(settings_of(strategy).model_fields["density"].default == 1.0)


def _dense(tree: Tree) -> bool:
    """Whether the strategy of a configuration is dense."""
    strategy = tree.get("strategy", {})
    name = strategy.get("name") if isinstance(strategy, Mapping) else None
    default = StrategySettings.model_fields["name"].default
    return is_dense(name if isinstance(name, str) else default)


def engine_of(tree: Tree) -> Any:
    """Return the engine that is asked for; inline when none is, for points fill the cores."""
    engine = tree.get("engine", {})
    name = engine.get("name", "auto") if isinstance(engine, Mapping) else "auto"
    return "inline" if name == "auto" else name


def command_of(tree: Tree, source: Sequence[str], changes: Sequence[str], config: Config) -> str:
    """Return `fedsparse run` with the changes that hold in `config`, and what they leave out."""
    held = [text for text in changes if _holds(text, config)]
    kept = [text for text in dict.fromkeys(held) if not text.startswith("run.seed=")]
    plain = resolve(override(tree, [*kept, f"run.seed={config.run.seed}"]))
    for key, (_, now) in differences(plain.model_dump(), config.model_dump()).items():
        if now is not None:
            kept.append(f"{key}={tomli_w.dumps({'v': now}).partition(' = ')[2].strip()}")
    sets = [word for text in kept for word in ("--set", text)]
    return shlex.join(["fedsparse", "run", *source, *sets, "--seed", str(config.run.seed)])


def _holds(assignment: str, config: Config) -> bool:
    settings = config.model_dump()
    return all(
        key in settings[section] and settings[section][key] == value
        for section, values in override({}, [assignment]).items()
        for key, value in values.items()
    )


def _plain_name(name: str) -> str:
    """Return a name fit for a folder; one that had to change ends in its digest."""
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:40]
    digest = blake2b(name.encode(), digest_size=3).hexdigest()
    return plain if plain == name else f"{plain}-{digest}".lstrip("-")
