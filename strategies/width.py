"""What methods share that give each client a narrower model: some of each layer's channels.

A client's slice is a mask, so it travels, is trained and is counted as any sparse model. The
server's model is the mean, entry by entry, of what those clients sent that hold the entry, and
stays as it is where none does (HeteroFL, Diao et al. 2021; FedRolex, Alam et al. 2022).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flwr.app import Message
from flwr.serverapp import Grid
from pydantic import Field

from fedsparse import messages, models, seeds, wire
from fedsparse.config import Density
from fedsparse.errors import ConfigError, ModelError
from fedsparse.kernels.nodes import Uncovered
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask, State
from fedsparse.sparsity.slices import Slice, Slices, window
from fedsparse.training import batchnorm, local
from strategies.addressing import MeteredGrid
from strategies.asking import by_mask
from strategies.personal import DenseSettings, PersonalStrategy
from strategies.replies import Reader, Reply
from strategies.seats import Demands, Kept, KeptOf, Seat
from strategies.sums import adds_up, mean_of
from strategies.task import Task, masked


class WidthSettings(DenseSettings):
    """Keys of `[strategy]` for a method whose clients train narrower models."""

    widths: list[Density] = Field(
        default=[1.0, 0.5, 0.25, 0.125, 0.0625],
        min_length=1,
        description="fractions of each hidden layer's channels that clients train",
    )
    assign: Literal["fixed", "dynamic", "device"] = Field(
        default="fixed",
        description="widths in turn, drawn anew each round, or the largest that a device holds",
    )
    weighted: bool = Field(default=False, description="clients count by their samples, not alike")
    static_norm: bool = Field(
        default=True,
        description="BatchNorm's statistics are measured on the server's data, for each width",
    )


@dataclass(frozen=True)
class SliceReader(Reader):
    """Reads replies of slices; where `even`, each counts as one sample, so that means have no
    weights."""

    even: bool = True

    def open(
        self, client: int, message: Message
    ) -> tuple[wire.FlatValues | None, dict[str, Any], Any]:
        """Return what a reply holds, with how much it counts as its samples."""
        flat, told, extra = super().open(client, message)
        return flat, {**told, "examples": 1} if self.even else told, extra


class WidthStrategy(PersonalStrategy):
    """Averaging over clients that each train a slice of the model."""

    Settings: type[WidthSettings] = WidthSettings
    fits = frozenset({"batch"})
    takes_rules = False

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.slices = slices_of(task)
        self.number = 0
        """The round of which this is."""
        self._grid: Grid | None = None
        self._cut: dict[tuple[float, int], Slice] = {}
        self._fitting: dict[int, float] = {}
        self._static = self.settings.static_norm and bool(batchnorm.norms(task.model))
        if self._static and len(task.data.public.y) < 2:
            raise ConfigError(
                f"strategy.static_norm = true: {self.settings.name} measures BatchNorm statistics "
                "on the server's own data; set data.public_samples to 2 or more, or static_norm to "
                "false"
            )
        if self.settings.assign == "device" and task.config.fleet.profile is None:
            raise ConfigError(
                "strategy.assign = 'device' asks what each device holds; set fleet.profile, for "
                "example --set fleet.profile=phones, or choose fixed or dynamic"
            )

    # -- what a method overrides ------------------------------------------------------

    def first_channel(self, round_number: int) -> int:
        """Return the first channel of a round's slices, wrapped in each layer by its channels."""
        return 0

    @adds_up
    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Take the mean over the clients that hold each entry."""
        if self.tally is not None:
            self.state = self.tally.mean(self.state, None, self.held_by)
        else:
            self.state = mean_of(replies, self.state, None, self.held_by)
        self.state = self.measured(None)

    def measured(self, mask: Mask | None) -> State:
        """Return the model with the BatchNorm statistics of a slice, as the server finds them.

        Training looks at no running statistics, so a mean of those of unlike widths, which fit
        none of them, is not missed (HeteroFL, static BatchNorm, there measured by the clients).
        """
        if not self._static:
            return self.state
        models.load_state(self.task.model, masked(self.state, mask))
        x, _ = local.tensors(self.task.public)
        return {**self.state, **batchnorm.measure(self.task.model, x)}

    # -- whose slice is which ---------------------------------------------------------

    def width_of(self, client: int) -> float:
        """Return the width that a client trains in this round."""
        widths: list[float] = self.settings.widths
        if self.settings.assign == "device":
            return self._width_by_device(client)
        if self.settings.assign == "dynamic":
            seed = self.task.config.run.seed
            return widths[seeds.stream(seed, self.number, client, "width").integers(len(widths))]
        return widths[client % len(widths)]

    def _width_by_device(self, client: int) -> float:
        """Return the largest width that a client's device holds; the least if it holds none."""
        widths = self.settings.widths
        if client not in self._fitting:
            budget = getattr(self._grid, "budget", None)
            if budget is None:
                raise ConfigError(
                    "strategy.assign = 'device' needs simulated devices, which this grid has not; "
                    "choose fixed or dynamic"
                )
            found = budget(client, self.own_plan(1), self._kept_at, widths)
            self._fitting[client] = min(widths) if found is None else found
        return self._fitting[client]

    def slice_of(self, width: float) -> Slice | None:
        """Return this round's slice of a width; None for the whole model."""
        if width >= 1:
            return None
        key = width, self.first_channel(self.number)
        if key not in self._cut:
            self._cut[key] = self.slices.cut(window(*key), self.task.schema.shapes)
        return self._cut[key]

    @property
    def held_by(self) -> Mapping[Mask | None, Mask]:
        """All entries of the model that a client has that trains under a mask, by mask."""
        return {cut.mask: cut.held for cut in self._cut.values()}

    def mask_of(self, client: int) -> Mask | None:
        """Return the mask of a client's slice in this round."""
        cut = self.slice_of(self.width_of(client))
        return None if cut is None else cut.mask

    def mask_to_test(self, client: int) -> Mask | None:
        """Return the mask of a client's own slice."""
        return self.mask_of(client)

    def reader(self) -> SliceReader:
        """Return a reader that knows each client's mask."""
        masks: dict[Mask | None, int] = {None: 0}
        places = {c: masks.setdefault(self.mask_of(c), len(masks)) for c in self.seats}
        return SliceReader(self.schema, tuple(masks), places, even=not self.settings.weighted)

    def kept(self) -> Kept | KeptOf | None:
        """Return how to find the kept weights by layer of a client."""
        return lambda client: self._kept_at(self.width_of(client))

    def _kept_at(self, width: float) -> Kept | None:
        cut = self.slice_of(width)
        return None if cut is None else cut.mask.layer_kept()

    def demands(self, density: float) -> Demands:
        """Return training of the narrowest slice, which some client must hold."""
        return [(self.own_plan(1), self._kept_at(min(self.settings.widths)))]

    # -- rounds -----------------------------------------------------------------------

    def prepare(self, grid: MeteredGrid) -> None:
        """Make the initial model."""
        self._grid = grid
        super().prepare(grid)

    def plan(self, round_number: int) -> Plan:
        """Go on to a round's slices, and ask for plain training."""
        self.turn_to(round_number)
        return super().plan(round_number)

    def turn_to(self, round_number: int) -> None:
        """Make the slices those of a round; the ones before it are forgotten where they differ."""
        self.number, start = round_number, self.first_channel(round_number)
        self._cut = {key: cut for key, cut in self._cut.items() if key[1] == start}

    def choose(self, grid: Grid, round_number: int, plan: Plan) -> dict[int, Seat]:
        """Return the clients of a round; a grid that knows their devices says which there are."""
        self._grid = grid
        return super().choose(grid, round_number, plan)

    def ready_to_test(self, round_number: int, grid: Grid | None) -> None:
        """Turn to the slices that clients trained."""
        self._grid = grid
        self.turn_to(round_number)

    def ask_with_model(self, clients: Iterable[int], kind: str, plan: Plan) -> list[Message]:
        """Return one message a client with its slice, for a test with statistics of its own."""
        if kind != messages.EVALUATE or not self._static:
            return super().ask_with_model(clients, kind, plan)
        whole, asked = self.state, []
        for mask, members in by_mask(clients, self.mask_to_test).items():
            self.state = self.measured(mask)
            asked += super().ask_with_model(members, kind, plan)
            self.state = whole
        return asked

    def state_dict(self) -> dict[str, Any]:
        """Add the widths that devices were found to hold."""
        fitting = {str(client): width for client, width in self._fitting.items()}
        return {**super().state_dict(), "fitting": fitting}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take these widths, too."""
        super().load_state_dict(saved)
        self._fitting = {int(client): width for client, width in saved["fitting"].items()}

    # -- figures ----------------------------------------------------------------------

    @property
    def density(self) -> float:
        """The mean over the round's clients of the kept fraction; at first, over the widths."""
        return self._mean([1.0 if cut is None else cut.mask.density for cut in self._seen()])

    @property
    def layer_density(self) -> dict[str, float]:
        """The mean over the round's clients of the kept fraction by layer."""
        dense = dict.fromkeys(self.task.prunable, 1.0)
        found = [dense if cut is None else cut.mask.layer_density() for cut in self._seen()]
        return {name: self._mean([one[name] for one in found]) for name in dense}

    def _seen(self) -> list[Slice | None]:
        widths = [self.width_of(client) for client in self.seats] or self.settings.widths
        return [self.slice_of(width) for width in widths]

    @staticmethod
    def _mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)


def slices_of(task: Task) -> Slices:
    """Return the slices of a run's model; raises ConfigError for one that has none."""
    try:
        return Slices(task.backend.graph)
    except (Uncovered, ModelError) as error:
        raise ConfigError(
            f"model.name = '{task.config.model.name}' cannot be cut into narrower models: {error}; "
            "choose another model, such as cnn"
        ) from None
