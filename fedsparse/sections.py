"""The sections of a configuration: every key with its default, its bounds and a line on it.

A strategy's own keys stand with the strategy, in a model that derives from
`StrategySettings`.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fedsparse import number_set
from fedsparse.number_set import NumberSet

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A number, told so before its bounds are looked at: NaN is above and below none."""


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _distinct(text: str) -> str:
    names = _names(text)
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise ValueError("must be two or more distinct names with commas between them")
    return text


LabelNames = Annotated[str, AfterValidator(_distinct)]
"""Names of classes, with commas between them."""


def _sizes(value: object) -> str:
    """Return sizes as text; one size may come as a number, as TOML reads it."""
    text = str(value) if isinstance(value, int) else value
    if not isinstance(text, str) or not re.fullmatch(_SHAPE, text):
        raise ValueError(
            "must be one to four whole numbers above 0 with x between them, as text, such as "
            "'1x28x28' for an image or '64' for a row of numbers"
        )
    return text


_SHAPE = r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8}){0,3}"
Shape = Annotated[str, BeforeValidator(_sizes)]
"""Sizes of one sample, with x between them."""

Density = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
"""The kept fraction of the prunable weights, in (0, 1]."""


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RunConfig(Section):
    """`[run]`: what is repeated, and how often it is looked at."""

    seed: int = Field(default=0, ge=0, lt=2**63, description="every random stream derives from it")
    rounds: int = Field(default=20, ge=1, description="rounds of training")
    eval_every: int = Field(default=1, ge=1, description="rounds between tests of the global model")
    checkpoint_every: int = Field(default=1, ge=1, description="rounds between checkpoints")
    keep_checkpoints: int = Field(default=3, ge=0, description="newest ones kept; 0 keeps all")
    target_accuracy: Finite | None = Field(
        default=None, gt=0, le=1, description="what time, bytes and joules to a target count to"
    )
    keep_norms: bool = Field(
        default=False, description="clients tell how far each tensor moved, for FedEraser"
    )


class DataConfig(Section):
    """`[data]`: where samples come from and how they are dealt to clients."""

    name: str = Field(default="digits", description="see `fedsparse list datasets`")
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="of the partition and splits; run.seed if unset"
    )
    path: str | None = Field(default=None, description="a file, a folder, or an id of the hub")
    partition: Literal["iid", "dirichlet", "shards", "quantity", "natural", "sampled"] = Field(
        default="dirichlet", description="how samples are dealt to clients"
    )
    alpha: Finite = Field(
        default=0.5, gt=0, description="concentration of dirichlet, quantity and sampled"
    )
    min_per_client: int = Field(default=2, ge=1, description="least samples of a client")
    shards_per_client: int = Field(default=2, ge=1, description="of sorted labels, for shards")
    samples_per_client: int = Field(
        default=32, ge=1, description="sampled: drawn anew for each client from all there are"
    )
    column: str | None = Field(default=None, description="column of the natural partition")
    samples: int | None = Field(
        default=None, ge=1, description="training samples used; all if unset"
    )
    test_samples: int | None = Field(
        default=None, ge=1, description="of the test set; all if unset"
    )
    public_samples: int = Field(default=100, ge=0, description="the server's own one-shot data")
    client_test_fraction: Finite = Field(
        default=0.1, ge=0, lt=1, description="of a client's samples, held out for its own test"
    )
    features: int = Field(default=50, ge=1, description="synthetic regression: dimension")
    nonzero: int = Field(default=5, ge=1, description="synthetic regression: true support")
    noise: Finite = Field(default=0.1, ge=0, description="synthetic: noise level")
    classes: int = Field(
        default=10, ge=1, description="synthetic images and nodes: classes; 1 for real targets"
    )
    image_size: int = Field(default=32, ge=4, description="synthetic images and folders: pixels")
    channels: Literal[1, 3] = Field(default=3, description="synthetic images and folders")
    shape: Shape | None = Field(
        default=None, description="of one sample at the nodes, such as 1x28x28 or 64"
    )
    labels: LabelNames | None = Field(
        default=None, description="classes by name in their order at the nodes, such as cat,dog"
    )

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """What `shape` says; None where it is unset."""
        return tuple(map(int, self.shape.split("x"))) if self.shape else None

    @property
    def label_names(self) -> tuple[str, ...]:
        """The classes' names in their order; none where `labels` is unset."""
        return tuple(_names(self.labels)) if self.labels else ()

    @property
    def class_count(self) -> int:
        """How many classes the nodes' labels are of; 1 for real-valued targets."""
        return len(self.label_names) or self.classes


class ForgetConfig(Section):
    """`[forget]`: what a run is made without, as if it had never been there."""

    clients: NumberSet | None = Field(default=None, description="never asked, such as 3,7-9")
    classes: NumberSet | None = Field(default=None, description="in no client's data, no test")
    samples: NumberSet | None = Field(default=None, description="rows of the training set")

    @property
    def client_set(self) -> frozenset[int]:
        """The clients that are forgotten."""
        return _numbers(self.clients)

    @property
    def class_set(self) -> frozenset[int]:
        """The classes that are forgotten."""
        return _numbers(self.classes)

    @property
    def sample_set(self) -> frozenset[int]:
        """The samples that are forgotten, as rows of the source's training set."""
        return _numbers(self.samples)

    @property
    def kind(self) -> Literal["client", "class", "samples"] | None:
        """What is forgotten; the widest where it is several things, None for nothing."""
        if self.clients:
            return "client"
        if self.classes:
            return "class"
        return "samples" if self.samples else None

    def since(self, before: "ForgetConfig") -> "ForgetConfig":
        """Return what is forgotten here and was not forgotten before."""
        new = {
            "clients": self.client_set - before.client_set,
            "classes": self.class_set - before.class_set,
            "samples": self.sample_set - before.sample_set,
        }
        return ForgetConfig(**{key: number_set.text_of(own) for key, own in new.items() if own})


def _numbers(text: str | None) -> frozenset[int]:
    return frozenset(number_set.parse(text)) if text else frozenset()


class AttackConfig(Section):
    """`[attack]`: clients that plant a backdoor or send bad updates, to see what comes of it."""

    clients: NumberSet | None = Field(default=None, description="who attacks; nobody if unset")
    updates: (
        Literal["scaled", "sign-flip", "gaussian", "not-finite", "oversize", "wrong-mask", "stale"]
        | None
    ) = Field(default=None, description="what they send after honest training; unset: a backdoor")
    scale: Finite = Field(
        default=10.0,
        gt=0,
        le=1e6,
        description="factor on updates that are scaled, flipped or noise",
    )
    label: int = Field(default=0, ge=0, description="the class that the trigger stands for")
    fraction: Finite = Field(default=0.5, gt=0, le=1, description="of their training samples")
    size: int = Field(default=3, ge=1, description="the trigger's side, in pixels")

    @property
    def client_set(self) -> frozenset[int]:
        """The clients that attack."""
        return _numbers(self.clients)

    @property
    def planters(self) -> frozenset[int]:
        """The clients that plant the backdoor: those that attack, unless by their updates."""
        return frozenset() if self.updates else self.client_set


class RobustConfig(Section):
    """`[robust]`: how broken and hostile clients are kept out of the model."""

    rule: Literal["mean", "median", "trimmed-mean", "krum", "multi-krum", "norm-clip", "trust"] = (
        Field(default="mean", description="how a round's models become one")
    )
    hostile: Finite = Field(
        default=0.2, ge=0, lt=0.5, description="fraction of a round's clients that may be hostile"
    )
    weights: Literal["equal", "samples"] = Field(
        default="equal", description="how much a client counts under a rule that takes means"
    )
    bucket_size: int = Field(
        default=1, ge=1, description="clients whose models are averaged before a rule sees them"
    )
    clip_norm: Finite | None = Field(
        default=None, gt=0, description="norm-clip: longest update; the round's median if unset"
    )
    max_norm: Finite | None = Field(
        default=None, ge=1, description="median norms of a round beyond which a reply is rejected"
    )
    max_examples: int | None = Field(
        default=None, ge=1, description="samples beyond which a reply is rejected; any if unset"
    )


class PrivacyConfig(Section):
    """`[privacy]`: what is promised to each client of the model that is made."""

    clip: Finite | None = Field(
        default=None, gt=0, description="longest update of a client, in L2; no privacy if unset"
    )
    noise: Finite = Field(
        default=1.0, ge=0, description="deviation of the noise on the sum, over clip"
    )
    delta: Finite = Field(
        default=1e-5, gt=0, lt=1, description="chance that epsilon does not hold; below 1/clients"
    )
    sampling: Literal["poisson", "fixed"] = Field(
        default="poisson", description="clients of a round: each by a coin, or so many of all"
    )
    entropy: Literal["seed", "system"] = Field(
        default="seed", description="of noise and sampling; seed is for simulation alone"
    )


class SecureConfig(Section):
    """`[secure]`: sums of clients' models of which the server sees nothing but the sum."""

    aggregation: bool = Field(default=False, description="clients mask what they send")
    threshold: Finite = Field(
        default=0.6,
        gt=0.5,
        le=1,
        description="fraction of a client's neighbours that it takes to unmask a sum",
    )
    neighbours: int = Field(
        default=0, ge=0, description="clients that each shares masks with; 0: all of the round"
    )
    bits: Literal[24, 32, 40, 48] = Field(
        default=32, description="of a masked value, as it is sent"
    )
    clip: Finite = Field(
        default=16.0, gt=0, le=2**20, description="largest magnitude of a value; others are cut"
    )
    max_examples: int = Field(
        default=10_000, ge=1, le=2**31, description="samples beyond which a client sends nothing"
    )


class ModelConfig(Section):
    """`[model]`: a model of the zoo, or a dotted path to a factory."""

    name: str = Field(default="cnn", description="see `fedsparse list models`")
    width: Finite = Field(default=1.0, gt=0, le=16, description="factor on the channels")


class ClientConfig(Section):
    """`[client]`: local training."""

    lr: Finite = Field(default=0.05, gt=0, description="learning rate of round 1")
    lr_decay: Finite = Field(default=1.0, gt=0, le=1, description="factor on lr after each round")
    batch_size: int = Field(default=32, ge=1, description="samples a step")
    local_epochs: int = Field(default=1, ge=1, description="passes over the local data a round")
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="masked like the weights")
    momentum: Finite = Field(default=0.9, ge=0, lt=1, description="of sgd")
    weight_decay: Finite = Field(default=0.0, ge=0, description="of kept weights")
    keep_optimizer: bool = Field(default=False, description="momentum outlives the round")
    backend: Literal["auto", "torch", "native"] = Field(
        default="auto", description="what trains; auto: native where it covers the model"
    )
    precision: Literal["f32", "bf16"] = Field(
        default="f32", description="of the arithmetic; weights stay f32"
    )
    sparse_linear_below: Finite | None = Field(
        default=None,
        ge=0,
        le=1,
        description="density below which native trains a linear layer sparsely; measured if unset",
    )
    sparse_conv_below: Finite | None = Field(
        default=None, ge=0, le=1, description="the same of a convolution"
    )


class FleetConfig(Section):
    """`[fleet]`: who takes part, on what devices, and how long the server waits for them."""

    clients: int = Field(default=10, ge=1, description="all there are")
    clients_per_round: int | None = Field(
        default=None, ge=1, description="drawn anew each round; all if unset"
    )
    novel_clients: int = Field(
        default=0, ge=0, description="of them, the last so many never train, and are tested"
    )
    pool: Finite | None = Field(
        default=None, gt=0, le=1, description="fraction of clients that is ever asked; all if unset"
    )
    min_replies: Finite = Field(
        default=0.5, gt=0, le=1, description="least fraction that must reply"
    )
    evaluate_clients: int = Field(default=100, ge=0, description="clients that test the last model")
    profile: str | None = Field(
        default=None, description="a device, a fleet, or a file of one; no simulated clock if unset"
    )
    fit: Literal["refuse", "batch", "density", "both"] = Field(
        default="refuse", description="what is done for a client that cannot hold the training"
    )
    deadline: Finite | None = Field(
        default=None, gt=0, description="simulated seconds after which a round's replies are late"
    )
    over_selection: Finite = Field(
        default=0.0, ge=0, le=10, description="fraction of clients asked beyond those waited for"
    )
    dropout: Finite | None = Field(
        default=None, ge=0, lt=1, description="chance a round; the devices' own if unset"
    )
    start_hour: Finite = Field(default=0.0, ge=0, lt=24, description="hour of the day at the start")
    network_trace: str | None = Field(default=None, description="bandwidth over time, a CSV file")
    device_trace: str | None = Field(default=None, description="speeds by client, CSV or JSON")
    availability_trace: str | None = Field(default=None, description="hours by client, CSV or JSON")

    @property
    def training_clients(self) -> int:
        """How many clients take part in training: the first of them."""
        return self.clients - self.novel_clients


class EngineConfig(Section):
    """`[engine]`: the grid that carries messages."""

    name: Literal["auto", "inline", "ray", "flower"] = Field(
        default="auto", description="auto: ray where it saves time, else inline"
    )
    workers: int | None = Field(default=None, ge=1, description="one a core if unset")
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="what clients train on")
    cohort: int | None = Field(
        default=None, ge=1, description="clients trained at once on cuda; chosen if unset"
    )
    ray_address: str | None = Field(default=None, description="of a Ray cluster; local if unset")
    timeout: Finite = Field(default=3600.0, gt=0, description="seconds a round waits for replies")


class StrategySettings(Section):
    """What every strategy's section holds; a strategy's `Settings` adds its own keys."""

    name: str = Field(default="fedtiny", description="see `fedsparse list strategies`")
    density: Density = Field(default=0.1, description="kept fraction of the prunable weights")
    values: Literal["f32", "f16", "bf16", "int8"] = Field(
        default="f32", description="how kept values travel"
    )
