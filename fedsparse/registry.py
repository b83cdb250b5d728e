"""Names of strategies, models, datasets and the like, found without importing them.

A name is built in, or comes from an installed package's entry point in the group
`fedsparse.<kind>`, or is itself a dotted path `module:attribute`.
"""

import importlib
import inspect
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from fedsparse.errors import ConfigError, UnknownNameError

METHODS = {
    "fine-tuning": "strategies.unlearning.fine_tuning:FineTuning",
    "l1-sparse": "strategies.unlearning.l1_sparse:L1Sparse",
    "prune-finetune": "strategies.unlearning.prune_finetune:PruneFinetune",
    "gradient-ascent": "strategies.unlearning.gradient_ascent:GradientAscent",
    "fisher": "strategies.unlearning.fisher:Fisher",
    "influence": "strategies.unlearning.influence:Influence",
    "salun": "strategies.unlearning.salun:SalUn",
    "discriminative-pruning": "strategies.unlearning.discriminative_pruning:DiscriminativePruning",
    "federaser": "strategies.unlearning.federaser:FedEraser",
    "rapid-retraining": "strategies.unlearning.rapid_retraining:RapidRetraining",
    "neggrad": "strategies.unlearning.neggrad:NegGrad",
    "distillation": "strategies.unlearning.distillation:Distillation",
}
"""Strategies that make a trained model forget."""

BUILTIN: Mapping[str, Mapping[str, str]] = {
    "strategies": {
        "fedavg": "strategies.fedavg:FedAvg",
        "static": "strategies.static_mask:StaticMask",
        "fedtiny": "strategies.fedtiny:FedTiny",
        "fedasync": "strategies.fedasync:FedAsync",
        "fedbuff": "strategies.fedbuff:FedBuff",
        "pfedgate": "strategies.pfedgate:PFedGate",
        "finetune": "strategies.finetune:FineTune",
        "local": "strategies.local_only:LocalOnly",
        "fedper": "strategies.fedper:FedPer",
        "lg-fedavg": "strategies.lg_fedavg:LgFedAvg",
        "fedbn": "strategies.fedbn:FedBn",
        "heterofl": "strategies.heterofl:HeteroFl",
        "fedrolex": "strategies.fedrolex:FedRolex",
        "fjord": "strategies.fjord:Fjord",
        "fedrep": "strategies.fedrep:FedRep",
        "ditto": "strategies.ditto:Ditto",
        "lotteryfl": "strategies.lotteryfl:LotteryFl",
        "sub-fedavg": "strategies.sub_fedavg:SubFedAvg",
        "fedspa": "strategies.fedspa:FedSpa",
        "dispfl": "strategies.dispfl:DisPfl",
        "pfedme": "strategies.pfedme:PFedMe",
        "fedem": "strategies.fedem:FedEM",
        "fedselect": "strategies.fedselect:FedSelect",
        "knot": "strategies.knot:Knot",
        "nldp": "strategies.nldp:Nldp",
        "ldp-iht": "strategies.ldp_iht:LdpIht",
        **METHODS,
    },
    "methods": METHODS,
    "programs": {
        "pfedgate": "clients.gating:GatedProgram",
        "finetune": "clients.finetune:FineTune",
        "split": "clients.split:Split",
        "fjord": "clients.fjord:Fjord",
        "heterofl": "clients.heterofl:OwnLabels",
        "fedrep": "clients.fedrep:FedRep",
        "ditto": "clients.ditto:Ditto",
        "lottery": "clients.lottery:Lottery",
        "sub-fedavg": "clients.sub_fedavg:SubFedAvg",
        "sparse-to-sparse": "clients.sparse_to_sparse:SparseToSparse",
        "pfedme": "clients.pfedme:PFedMe",
        "fedem": "clients.fedem:FedEM",
        "fedselect": "clients.fedselect:FedSelect",
        "nldp": "clients.ldp:Nldp",
        "ldp-iht": "clients.ldp:LdpIht",
        "gradient-ascent": "clients.unlearning.ascent:GradientAscent",
        "fisher": "clients.unlearning.measure:Fisher",
        "influence": "clients.unlearning.measure:Influence",
        "salun": "clients.unlearning.salun:SalUn",
        "neggrad": "clients.unlearning.neggrad:NegGrad",
        "distillation": "clients.unlearning.distillation:Distillation",
        "discriminative-pruning": "clients.unlearning.discriminative:DiscriminativePruning",
        "federaser": "clients.unlearning.federaser:FedEraser",
        "rapid-retraining": "clients.unlearning.rapid_retraining:RapidRetraining",
    },
    "models": {
        "mlp": "fedsparse.models.small:mlp",
        "cnn": "fedsparse.models.small:cnn",
        "leaf-cnn": "fedsparse.models.small:leaf_cnn",
        "paper-cnn": "fedsparse.models.small:paper_cnn",
        "linear": "fedsparse.models.small:linear",
        "resnet18": "fedsparse.models.resnet:resnet18",
        "mobilenet-v1": "fedsparse.models.mobilenet:mobilenet_v1",
        "mobilenet-edge": "fedsparse.models.mobilenet:mobilenet_edge",
        "transformer": "fedsparse.models.transformer:transformer",
    },
    "datasets": {
        "digits": "fedsparse.data.sources:digits",
        "fashion-mnist": "fedsparse.data.sources:fashion_mnist",
        "idx": "fedsparse.data.sources:idx",
        "npz": "fedsparse.data.sources:npz",
        "image-folder": "fedsparse.data.sources:image_folder",
        "huggingface": "fedsparse.data.hub:huggingface",
        "synthetic-regression": "fedsparse.data.synthetic:sparse_regression",
        "synthetic-images": "fedsparse.data.synthetic:images",
        "nodes": "fedsparse.data.nodes:source",
    },
}

SINGULAR = {
    "strategies": "strategy",
    "methods": "method of unlearning",
    "programs": "program of clients",
    "models": "model",
    "datasets": "dataset",
}
CALLED_WITH = {"models": "(input_shape, classes, width)", "datasets": "(config, seed)"}


@cache
def names(kind: str) -> Mapping[str, str]:
    """Return every registered name of a kind with the dotted path behind it."""
    found = dict(BUILTIN[kind])
    for point in entry_points(group=f"fedsparse.{kind}"):
        found.setdefault(point.name, point.value)
    return found


def load(kind: str, name: str) -> Any:
    """Import what a name or a dotted path `module:attribute` stands for.

    Raises UnknownNameError for a name that is not registered, ConfigError for a
    dotted path that cannot be imported.
    """
    path = names(kind).get(name)
    if path is None:
        if ":" not in name:
            raise UnknownNameError(SINGULAR[kind], name, names(kind))
        path = name
    module, _, attribute = path.partition(":")
    try:
        imported = importlib.import_module(module)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"cannot import '{path}' ({error}); is its package installed?") from error
    if not hasattr(imported, attribute):
        raise ConfigError(f"module '{module}' has no '{attribute}'; check the name '{path}'")
    return getattr(imported, attribute)


def call(kind: str, name: str, *arguments: Any) -> Any:
    """Call what a name stands for, a model's or a data set's function.

    Raises ConfigError when it cannot be called so, and what `load` raises; an error from
    within the function is its own and goes through.
    """
    found = load(kind, name)
    try:
        try:
            signature = inspect.signature(found)
        except ValueError:  # a builtin that does not tell what it takes
            return found(*arguments)
        signature.bind(*arguments)
    except TypeError as error:
        raise ConfigError(
            f"{SINGULAR[kind]} '{name}' is no function f{CALLED_WITH[kind]}: {error}"
        ) from None
    return found(*arguments)
