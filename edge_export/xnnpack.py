"""Which layers XNNPACK computes sparsely, and why it does not compute the others so.

On ARM it rewrites a chain of layers to channels-first and computes the chain's 1x1 convolutions
with their kept weights alone: from a 3x3 convolution of stride 2 over three channels, through 1x1
and depthwise convolutions, additions and activations, to a global average; more than two thirds of
the chain's 1x1 weights must be zero (XNNPACK, src/subgraph.c, rewrite for NCHW).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_export import network as net
from edge_export.network import Layer, Network

ENTRY, INSIDE, EXIT = "entry", "inside", "exit"
ZEROS = 2 / 3
"""The fraction of zeros that the 1x1 weights of a chain must exceed."""
DEPTHWISE = {3: 1, 5: 2}
"""Kernels of depthwise convolutions that a chain may hold, and their padding."""


@dataclass(frozen=True)
class Chain:
    """A chain's layers, by index, and what breaks it; its 1x1 weights and how many are zero."""

    layers: frozenset[int]
    broken: str | None
    weights: int
    zeros: int

    @property
    def sparse(self) -> bool:
        """Whether it is computed sparsely."""
        return self.broken is None and 3 * self.zeros > 2 * self.weights


@dataclass(frozen=True)
class Verdict:
    """Whether a layer is computed with its kept weights alone, and the reason if it is not."""

    layer: str
    sparse: bool
    reason: str


def chains(network: Network, *, widen: bool) -> list[Chain]:
    """Return the chains of a network; `widen` counts a grey entry as one of three channels."""
    found: list[Chain] = []
    seen: set[int] = set()
    for start, layer in enumerate(network.layers):
        if start not in seen and _place(layer, network, widen) == ENTRY:
            chain = _follow(network, start, widen)
            seen |= chain.layers
            found.append(chain)
    return found


def verdicts(network: Network, *, widen: bool, arm: bool = True) -> list[Verdict]:
    """Return, of each layer with weights, whether XNNPACK computes it sparsely, and why not."""
    known = chains(network, widen=widen)
    rows = []
    for number, layer in enumerate(network.layers):
        if isinstance(layer, net.Convolution | net.Linear):
            chain = next((c for c in known if number in c.layers), None)
            reason = _reason(layer, chain, network, arm, widen)
            rows.append(Verdict(layer.name, reason == "", reason))
    return rows


def wants_wider_entry(network: Network) -> bool:
    """Whether zero channels for the first convolution make a chain sparse that is not so."""
    first = network.layers[0]
    if not isinstance(first, net.Convolution) or first.weight.shape[1] >= 3:
        return False
    return any(chain.sparse and 0 in chain.layers for chain in chains(network, widen=True))


def _follow(network: Network, start: int, widen: bool) -> Chain:
    """Return the chain that starts at a layer, with everything that its values reach."""
    inside = {start}
    queue = [start]
    broken = None
    while queue:
        layer = network.layers[queue.pop()]
        if _place(layer, network, widen) == EXIT:
            continue
        consumers = network.consumers(layer.output)
        if not consumers:
            broken = broken or "the chain reaches the output without a global average"
        for number in consumers:
            place = _place(network.layers[number], network, widen)
            if place not in (INSIDE, EXIT):
                broken = broken or _breaks(network.layers[number])
            elif number not in inside:
                inside.add(number)
                queue.append(number)
    made = {network.layers[number].output for number in inside}
    for number in sorted(inside - {start}):
        outside = [value for value in network.layers[number].inputs if value not in made]
        if outside:
            broken = (
                broken or f"'{network.layers[number].name}' adds a value from outside the chain"
            )
    weights = [
        layer.weight
        for layer in (network.layers[number] for number in inside)
        if isinstance(layer, net.Convolution) and layer.pointwise
    ]
    size = sum(weight.size for weight in weights)
    zeros = size - sum(int(np.count_nonzero(weight)) for weight in weights)
    return Chain(frozenset(inside), broken, size, zeros)


def _place(layer: Layer, network: Network, widen: bool) -> str | None:
    """Return what a layer can be in a chain: its entry, inside, its exit, or None."""
    match layer:
        case net.Convolution():
            return _convolution_place(layer, network, widen)
        case net.Add() | net.Activation():
            return INSIDE
        case net.AveragePool():
            value = network.values[layer.inputs[0]]
            whole = (layer.rows, layer.columns) == (((0, value.height),), ((0, value.width),))
            return EXIT if whole else None
    return None


def _convolution_place(layer: net.Convolution, network: Network, widen: bool) -> str | None:
    kernel, stride = layer.weight.shape[2:], layer.stride
    if layer.dilation != (1, 1):
        return None
    if layer.depthwise:
        size = kernel[0]
        plain = kernel == (size, size) and layer.padding == (DEPTHWISE.get(size, -1),) * 2
        single = len(layer.weight) == network.values[layer.inputs[0]].channels
        return INSIDE if plain and single and stride in ((1, 1), (2, 2)) else None
    if layer.pointwise:
        return INSIDE
    channels = layer.weight.shape[1]
    if widen and layer is network.layers[0]:
        channels = max(channels, 3)
    geometry = (kernel, stride, layer.padding, layer.groups, channels)
    return ENTRY if geometry == ((3, 3), (2, 2), (1, 1), 1, 3) else None


def _breaks(layer: Layer) -> str:
    what = _kind(layer) if isinstance(layer, net.Convolution) else type(layer).__name__
    return f"the chain is broken by '{layer.name}' ({what})"


def _kind(layer: net.Convolution) -> str:
    rows, columns = layer.weight.shape[2:]
    depthwise = "depthwise " if layer.depthwise else ""
    stride = "" if layer.stride == (1, 1) else f", stride {layer.stride[0]}"
    return f"{depthwise}{rows}x{columns} convolution{stride}"


def _reason(
    layer: net.Convolution | net.Linear,
    chain: Chain | None,
    network: Network,
    arm: bool,
    widen: bool,
) -> str:
    """Return why a layer is computed densely; '' for one that is not."""
    if isinstance(layer, net.Linear):
        return "a linear layer: XNNPACK computes it densely"
    if not layer.pointwise:
        return f"a {_kind(layer)}: XNNPACK has no sparse kernel for it"
    if not arm:
        return "x86: XNNPACK keeps to its dense kernels, a sparse file is smaller and no faster"
    if chain is None:
        return _no_chain(network, widen)
    if chain.broken is not None:
        return chain.broken
    if not chain.sparse:
        share = chain.zeros / chain.weights
        return f"{share:.1%} of the chain's 1x1 weights are zero, it takes more than 2/3"
    return ""


def _no_chain(network: Network, widen: bool) -> str:
    first = next((x for x in network.layers if isinstance(x, net.Convolution)), None)
    if first is not None and _place(first, network, widen) != ENTRY:
        return (
            f"no chain begins: the first convolution '{first.name}' is a {_kind(first)}, a chain "
            "needs one of 3x3, stride 2, padding 1 over three channels"
        )
    return "not reached from the chain's entry"


def sparse_layers(rows: Sequence[Verdict]) -> frozenset[str]:
    """Return the names of the layers that are computed sparsely."""
    return frozenset(row.layer for row in rows if row.sparse)
