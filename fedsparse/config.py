"""The configuration of a run: TOML sections, checked, with every default written out.

A configuration comes from a preset or a file, then `--set KEY=VALUE` on top. The
strategy's own keys are checked by the strategy's `Settings` model, so a plug-in's
keys are as well guarded as ours. Messages name the key, the value and the remedy.
"""

import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsparse import registry
from fedsparse.errors import ConfigError, UnknownNameError, did_you_mean
from fedsparse.sections import (
    AttackConfig,
    ClientConfig,
    DataConfig,
    Density,
    EngineConfig,
    Finite,
    FleetConfig,
    ForgetConfig,
    ModelConfig,
    PrivacyConfig,
    RobustConfig,
    RunConfig,
    SecureConfig,
    StrategySettings,
)

__all__ = [
    "AttackConfig",
    "ClientConfig",
    "Config",
    "DataConfig",
    "Density",
    "EngineConfig",
    "Finite",
    "FleetConfig",
    "ForgetConfig",
    "ModelConfig",
    "PrivacyConfig",
    "RobustConfig",
    "RunConfig",
    "SecureConfig",
    "StrategySettings",
    "differences",
    "fitting",
    "from_json",
    "keys",
    "override",
    "read_toml",
    "resolve",
    "sections",
    "settings_of",
]


class Config(BaseModel):
    """A whole run. `strategy` is already checked by the strategy's own settings model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    strategy: dict[str, Any] = Field(default_factory=dict)
    client: ClientConfig = ClientConfig()
    fleet: FleetConfig = FleetConfig()
    engine: EngineConfig = EngineConfig()
    forget: ForgetConfig = ForgetConfig()
    attack: AttackConfig = AttackConfig()
    robust: RobustConfig = RobustConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    secure: SecureConfig = SecureConfig()

    def to_json(self) -> str:
        """Return the configuration as canonical JSON, as it travels to clients."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))

    def to_toml(self) -> str:
        """Return the configuration as TOML; unset values are left out."""
        return tomli_w.dumps(
            {
                section: {k: v for k, v in values.items() if v is not None}
                for section, values in self.model_dump().items()
            }
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which two configurations, as nested mappings, differ: (old, new)."""
    before, after = _dotted(old), _dotted(new)
    pairs = {key: (before.get(key), after.get(key)) for key in {**before, **after}}
    return {key: (was, now) for key, (was, now) in pairs.items() if was != now}


def _dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    sections = {name: section for name, section in tree.items() if isinstance(section, dict)}
    return {f"{name}.{key}": value for name in sections for key, value in sections[name].items()}


def resolve(tree: Mapping[str, Any]) -> Config:
    """Check a nested mapping and return the configuration with all defaults.

    Raises ConfigError, one line that names the key and the value, for unknown
    sections, keys or names, wrong types and values out of range.
    """
    _check_sections(tree)
    strategy = dict(tree.get("strategy", {}))
    name = strategy.get("name", StrategySettings.model_fields["name"].default)
    if not isinstance(name, str):
        raise ConfigError(f"strategy.name = {name!r}: must be a string")
    settings = settings_of(name)
    try:
        checked = settings.model_validate(strategy)
    except ValidationError as error:
        raise ConfigError(_explain(error, settings, ("strategy",))) from None
    try:
        config = Config.model_validate({**tree, "strategy": checked.model_dump()})
    except ValidationError as error:
        raise ConfigError(_explain(error, settings)) from None
    _check_together(config)
    return config


def _check_sections(tree: Mapping[str, Any]) -> None:
    """Refuse what is no section, or a section that nobody knows."""
    for section, values in tree.items():
        if section not in Config.model_fields:
            moved = [] if isinstance(values, Mapping) else _sections_with(section)
            if moved:
                raise ConfigError(f"key '{section}' is outside a section; put it below {moved[0]}")
            raise ConfigError(f"unknown section '[{section}]'{did_you_mean(section, _sections())}")
        if not isinstance(values, Mapping):
            raise ConfigError(f"{section} = {values!r}: [{section}] is a section, give it keys")


def _sections_with(key: str) -> list[str]:
    """Return the sections, as TOML heads, that know a key of this name."""
    return [f"[{k.partition('.')[0]}]" for k in keys(StrategySettings) if k.endswith(f".{key}")]


def settings_of(strategy: str) -> type[StrategySettings]:
    """Return the settings model of a strategy by name or dotted path.

    A class that does not say what its settings are (a strategy of Flower's own)
    takes any key, and its constructor judges them.
    """
    found = getattr(registry.load("strategies", strategy), "Settings", None)
    return found if found is not None else ForeignSettings


class ForeignSettings(StrategySettings):
    """Settings of a strategy that is not ours: every key goes to its constructor."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    density: Density = 1.0


def from_json(text: str) -> Config:
    """Rebuild a configuration that `Config.to_json` wrote, as clients receive it."""
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        reason = _explain(error, StrategySettings)
        raise ConfigError(f"the configuration of the server is not valid: {reason}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; raises ConfigError when it is missing, binary or broken."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration file '{path}'; give a path to a TOML file") from None
    except IsADirectoryError:
        raise ConfigError(f"'{path}' is a folder; give a path to a TOML file") from None
    except PermissionError:
        raise ConfigError(f"'{path}' cannot be read; check its permissions") from None
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"'{path}' is not a text file; give a path to a TOML file") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"'{path}' is not valid TOML: {error}") from None


def override(tree: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return `tree` with `section.key=value` assignments on top.

    Values are read as TOML and, where that fails, as plain strings. Choosing another
    strategy drops the keys that only the one before it knows.
    """
    _check_sections(tree)
    merged = {section: dict(values) for section, values in tree.items()}
    changes = [_assignment(text) for text in assignments]
    for section, name, value in sorted(changes, key=lambda c: c[:2] != ("strategy", "name")):
        if (section, name) == ("strategy", "name") and isinstance(value, str):
            merged["strategy"] = fitting(value, merged.get("strategy", {}))
        merged.setdefault(section, {})[name] = value
    return merged


def _assignment(text: str) -> tuple[str, str, Any]:
    """Split `section.key=value`; raises ConfigError when it is none."""
    key, equals, value = text.partition("=")
    section, dot, name = (part.strip() for part in key.partition("."))
    if not (equals and dot and section and name):
        raise ConfigError(
            f"--set '{text}' is not SECTION.KEY=VALUE; example: --set strategy.density=0.05"
        )
    return section, name, _toml_value(value.strip())


def fitting(strategy: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `[strategy]` section without what belongs to its present strategy alone.

    A density does not go over to a strategy that is dense unless told otherwise.
    """
    known = settings_of(strategy).model_fields
    before = _own_keys(section.get("name", StrategySettings.model_fields["name"].default))
    dense = known["density"].default == 1.0
    return {
        key: value
        for key, value in section.items()
        if (key in known or key not in before) and not (dense and key == "density")
    }


def _own_keys(strategy: Any) -> Iterable[str]:
    """Return the keys of a strategy's section; none for a name that is not known."""
    try:
        return settings_of(strategy).model_fields if isinstance(strategy, str) else ()
    except ConfigError:
        return ()


def _toml_value(text: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return found["value"] if list(found) == ["value"] else text


def _sections() -> list[str]:
    return list(Config.model_fields)


def sections(settings: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the model behind each section, given that of the strategy section."""
    found = {section: field.annotation for section, field in Config.model_fields.items()}
    return {**found, "strategy": settings}  # type: ignore[dict-item]


def keys(settings: type[BaseModel]) -> list[str]:
    """Return every dotted key, given the settings model of the strategy section."""
    return [
        f"{section}.{name}"
        for section, model in sections(settings).items()
        for name in model.model_fields
    ]


def _explain(
    error: ValidationError, settings: type[BaseModel], prefix: tuple[str, ...] = ()
) -> str:
    """Turn pydantic's first complaint into one line with the dotted key and the value."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in prefix + first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest_key(key, keys(settings))}"
    return f"{key} = {first['input']!r}: {_wording(first['msg'])}"


def _wording(message: str) -> str:
    """Shorten pydantic's complaint to what the value must be."""
    plain = message.removeprefix("Value error, ").replace("Input should be", "must be")
    return plain[0].lower() + plain[1:]


def _nearest_key(key: str, known: list[str]) -> str:
    """Propose a key: first of the same section, then any with the same last name."""
    section, _, name = key.partition(".")
    own = [k.partition(".")[2] for k in known if k.startswith(f"{section}.")]
    hint = did_you_mean(name, own)
    if hint.startswith("; did"):
        return f"; did you mean '{section}.{hint.split(chr(39))[1]}'?"
    moved = [k for k in known if k.endswith(f".{name}")]
    return f"; did you mean '{moved[0]}'?" if moved else hint


def _check_together(config: Config) -> None:
    """Refuse values that are each fine but do not go together."""
    fleet = config.fleet
    if fleet.novel_clients >= fleet.clients:
        raise ConfigError(
            f"fleet.novel_clients = {fleet.novel_clients} leaves none of fleet.clients = "
            f"{fleet.clients} to train; lower it"
        )
    if fleet.clients_per_round is not None and fleet.clients_per_round > fleet.training_clients:
        if fleet.novel_clients:
            raise ConfigError(
                f"fleet.clients_per_round = {fleet.clients_per_round} is more than the "
                f"{fleet.training_clients} clients that train; lower it or fleet.novel_clients"
            )
        raise ConfigError(
            f"fleet.clients_per_round = {fleet.clients_per_round} is more than fleet.clients = "
            f"{fleet.clients}; lower it or register more clients"
        )
    if fleet.pool and (fleet.clients_per_round or 1) > math.ceil(
        fleet.pool * fleet.training_clients
    ):
        raise ConfigError(
            f"fleet.pool = {fleet.pool:g} of {fleet.training_clients} clients is less than "
            f"fleet.clients_per_round = {fleet.clients_per_round}; raise it"
        )
    if config.engine.device == "cuda" and config.client.backend == "native":
        raise ConfigError(
            "client.backend = native trains on the CPU; set it to torch for engine.device = cuda"
        )
    if config.engine.cohort is not None and config.engine.device == "cpu":
        raise ConfigError(
            f"engine.cohort = {config.engine.cohort}: clients train at once on an accelerator "
            "alone; set engine.device = cuda, or leave engine.cohort out"
        )
    for section, named in (("forget", config.forget), ("attack", config.attack)):
        foreign = [client for client in named.client_set if client >= fleet.clients]
        if foreign:
            raise ConfigError(
                f"{section}.clients names client {min(foreign)}; the run's are 0 to "
                f"{fleet.clients - 1}"
            )
    if len(config.forget.client_set - set(range(fleet.training_clients, fleet.clients))) >= (
        fleet.training_clients
    ):
        raise ConfigError("forget.clients leaves no client to train; name fewer")
    for kind, name in (("models", config.model.name), ("datasets", config.data.name)):
        if ":" not in name and name not in registry.names(kind):
            raise UnknownNameError(registry.SINGULAR[kind], name, registry.names(kind))
