"""Where activations and their gradients lie in the arena.

Offsets are in floats a lane, so they hold for any batch. Three kinds of places:

- a value that is read on the way back is kept in a place of its own, whose halo stays zero;
- a value that BatchNorm makes is not kept: it is made again, from what it was made of, where
  the way back reads it. In between, its place is others';
- a gradient lives from where it is first written to where it is last read. Where only a
  BatchNorm reads a value, the gradient lies where the value does, unless the halo that it needs,
  and the value does not, would take too much.

The last two share room: no two of them overlap while both are needed.
"""

from dataclasses import dataclass, field

from fedsparse.kernels.nodes import (
    Add,
    AveragePool,
    Conv,
    Flatten,
    MaxPool,
    Node,
    Norm,
    Relu,
    Value,
)

HALO = 0.2
"""The most that a halo may add to a value that does not need it."""
Interval = tuple[int, int]
"""First and last moment; step i runs at moment i, and backward at 2 * steps - 1 - i."""


@dataclass
class Tensor:
    """An activation while the plan is made; `base` is where the memory of an alias lies.

    A `flat` one is read as a vector, too, so nothing may lie between its planes. `maker` is the
    step that makes the value again, where it is not kept.
    """

    value: Value
    needs_gradient: bool
    halo: int = 0
    gradient_halo: int = 0
    base: int | None = None
    flat: bool = False
    offset: int = 0
    gradient: int = -1
    maker: int = -1

    def plane(self, halo: int) -> int:
        """Pixels from a channel to the next, with a halo.

        An odd number, so that the planes' pixels do not all fall into the same lines of a cache.
        """
        area = (self.value.height + 2 * halo) * (self.value.width + 2 * halo)
        return area if self.flat else area | 1

    def pixels(self, halo: int) -> int:
        """Floats a lane, with a halo."""
        return self.value.channels * self.plane(halo)


@dataclass(frozen=True)
class Step:
    """An operation over tensors: a node, or one with the ReLU next to it."""

    node: Node
    inputs: tuple[int, ...]
    output: int
    relu: Relu | None = None


def _set_halos(steps: list[Step], tensors: list[Tensor]) -> None:
    """Give each tensor the halo that convolutions read: inputs forward, gradients backward."""
    for step in steps:
        if isinstance(step.node, Conv):
            node = step.node
            source, target = tensors[step.inputs[0]], tensors[step.output]
            source.halo = max(source.halo, *node.padding)
            for k, d, p in zip(node.kernel, node.dilation, node.padding, strict=True):
                target.gradient_halo = max(target.gradient_halo, d * (k - 1) - p)


def _settle_aliases(steps: list[Step], tensors: list[Tensor]) -> None:
    """Let flattened tensors lie where the unflattened do, unless a halo is between."""
    for step in steps:
        if isinstance(step.node, Flatten):
            source, target = tensors[step.inputs[0]], tensors[step.output]
            if not (source.halo or target.halo or source.gradient_halo or target.gradient_halo):
                target.base = step.inputs[0]
                tensors[root(tensors, step.inputs[0])].flat = True


def root(tensors: list[Tensor], index: int) -> int:
    """Return the tensor in whose memory another lies."""
    while (base := tensors[index].base) is not None:
        index = base
    return index


def lay_out(steps: list[Step], tensors: list[Tensor]) -> int:
    """Give every value and every gradient its place; return the floats a lane of all."""
    _set_halos(steps, tensors)
    _settle_aliases(steps, tensors)
    readers = _readers(steps, tensors)
    shared = _made_again(steps, tensors, readers)
    lives = _gradients(steps, tensors)
    in_place = {index for index in lives if _in_place(steps, index, tensors)}
    end = 0
    for index, tensor in enumerate(tensors):
        if index in in_place:
            tensor.halo = tensor.gradient_halo
        if tensor.base is None and index not in shared:
            tensor.offset, end = end, end + tensor.pixels(tensor.halo)
    places = [
        _Place(index, False, tensors[index].pixels(tensors[index].halo), live)
        for index, live in shared.items()
    ]
    for index, live in lives.items():
        tensor = tensors[index]
        if index in in_place:
            tensor.gradient = tensor.offset
        else:
            places.append(_Place(index, True, tensor.pixels(tensor.gradient_halo), [live]))
    top = _pack(places, end)
    for place in places:
        if place.gradient:
            tensors[place.tensor].gradient = place.start
        else:
            tensors[place.tensor].offset = place.start
    for index, tensor in enumerate(tensors):
        lies = tensors[root(tensors, index)]
        tensor.offset, tensor.gradient, tensor.maker = lies.offset, lies.gradient, lies.maker
    return top


@dataclass
class _Place:
    """Room for a value or a gradient, and when it is needed."""

    tensor: int
    gradient: bool
    pixels: int
    live: list[Interval]
    start: int = field(default=0)

    def meets(self, other: "_Place") -> bool:
        """Whether both are needed at one moment."""
        return any(a <= d and c <= b for a, b in self.live for c, d in other.live)


def _pack(places: list[_Place], base: int) -> int:
    """Put places behind `base`, the largest first, each as low as it can be; return the end."""
    done: list[_Place] = []
    for place in sorted(places, key=lambda p: (-p.pixels, p.tensor, p.gradient)):
        start = base
        for other in sorted((d for d in done if d.meets(place)), key=lambda d: d.start):
            if start + place.pixels <= other.start:
                break
            start = max(start, other.start + other.pixels)
        place.start = start
        done.append(place)
    return max((p.start + p.pixels for p in done), default=base)


def _readers(steps: list[Step], tensors: list[Tensor]) -> dict[int, list[int]]:
    """Return by tensor the steps that read its memory, in forward order."""
    found: dict[int, list[int]] = {}
    for number, step in enumerate(steps):
        for index in dict.fromkeys(root(tensors, i) for i in step.inputs):
            if not _moves_nothing(step, tensors):
                found.setdefault(index, []).append(number)
    return found


def _moves_nothing(step: Step, tensors: list[Tensor]) -> bool:
    return isinstance(step.node, Flatten) and tensors[step.output].base is not None


def _made_again(
    steps: list[Step], tensors: list[Tensor], readers: dict[int, list[int]]
) -> dict[int, list[Interval]]:
    """Return the values that are not kept, with when each is needed; note who makes them."""
    found: dict[int, list[Interval]] = {}
    last = len(steps) - 1
    for number, step in enumerate(steps):
        read = readers.get(step.output, [])
        kinds = {type(steps[r].node) for r in read}
        if not isinstance(step.node, Norm) or not read or kinds - {Conv, MaxPool, AveragePool, Add}:
            continue
        if root(tensors, steps[-1].output) == step.output:
            continue
        back = [2 * last + 1 - r for r in read if isinstance(steps[r].node, Conv | MaxPool)]
        found[step.output] = [(number, read[-1]), *((moment, moment) for moment in back)]
        tensors[step.output].maker = number
    return found


def _gradients(steps: list[Step], tensors: list[Tensor]) -> dict[int, Interval]:
    """Return when each gradient is first written and last read."""
    born: dict[int, int] = {root(tensors, steps[-1].output): len(steps)}
    dies: dict[int, int] = {}
    for number in reversed(range(len(steps))):
        step, moment = steps[number], 2 * len(steps) - 1 - number
        dies[root(tensors, step.output)] = moment
        for index in step.inputs:
            lies = root(tensors, index)
            if tensors[lies].needs_gradient:
                born.setdefault(lies, moment)
                dies[lies] = moment
    return {index: (moment, dies[index]) for index, moment in born.items()}


def _in_place(steps: list[Step], index: int, tensors: list[Tensor]) -> bool:
    """Whether a gradient lies where its value does: only a BatchNorm reads that, there and back.

    Who made it with a ReLU, or as a maximum, reads it again on the way back.
    """
    readers = [s for s in steps if index in (root(tensors, i) for i in s.inputs)]
    makers = [s for s in steps if root(tensors, s.output) == index]
    if any(s.relu or isinstance(s.node, Relu | MaxPool) for s in makers):
        return False
    if len(readers) != 1 or not isinstance(readers[0].node, Norm):
        return False
    tensor = tensors[index]
    return tensor.pixels(tensor.gradient_halo) <= (1 + HALO) * tensor.pixels(0)
