"""What sparse strategies share: who is asked, how models travel, how replies add up.

A method subclasses `SparseStrategy` and overrides only what differs: the initial mask
(`prepare`), what is asked of clients (`plan`), and how replies become the next model and
mask (`aggregate`). It is a Flower `Strategy`, and runs in Flower's loop as in ours, which adds
checkpoints and figures.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsparse import messages, wire
from fedsparse.config import StrategySettings
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask, State
from strategies import metrics
from strategies.added import PartialSum
from strategies.addressing import (
    Directory,
    MeteredGrid,
    cohort,
    require_replies,
    round_size,
    tested_by,
)
from strategies.asking import asked, by_mask
from strategies.checks import overlong, trusted
from strategies.combining import Before, exact_mean, rule_of
from strategies.held import HeldMasks
from strategies.private import Private, check_private
from strategies.refusals import check_fit, check_plain, check_rule, check_target
from strategies.replies import Answer as Answer
from strategies.replies import Reader
from strategies.replies import Reply as Reply
from strategies.seats import FULL, Demands, Kept, KeptOf, Seat, erk_counts, submask
from strategies.sums import Tally, add_reply, adds_up
from strategies.sums import weighted_mean as weighted_mean
from strategies.task import Task

T = TypeVar("T")


class SparseStrategy(Strategy):
    """A federated method over one global model and one global mask (or none, if dense)."""

    Settings: type[StrategySettings] = StrategySettings

    fits: frozenset[str] = frozenset({"batch"})
    """What a client with little memory may be given instead of a refusal: batch, density."""

    sparser = "--set strategy.density={}"
    """How a smaller density is asked for."""

    program = ""
    """What clients do with the model, by the registered name; plain training if unset."""

    part = ""
    """Which of the model's tensors travel, as `fedsparse.models.part` names them; all if unset."""

    trains_plainly = False
    """Whether clients' program is for tests alone."""

    takes_rules = True
    """Whether another rule than the mean may make the next model, where `aggregate` asks for it."""

    private = False
    """Whether model and mask depend on clients by `mean` alone; not inherited."""

    tells_once = False
    """Whether a client answers once in a run, privately by itself: its loss is but noise."""

    global_model = True
    """Whether the server's state is a model of use: one that is tested and reported."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.settings: Any = self.Settings.model_validate(task.config.strategy)
        self.state: State = {}
        self.mask: Mask | None = None
        self.directory: Directory | None = None
        self.failures: dict[int, str] = {}
        self.held = HeldMasks()
        takes = self.takes_rules and self.takes_mean
        check_rule(task.config, self.settings.name, takes, self.program or self.part)
        check_private(task.config, self.settings.name, vars(type(self)).get("private", False))
        self.rule = rule_of(task)
        self.round_number = 0
        self.seats: dict[int, Seat] = {}
        self.tally: Tally | None = None
        """Sums of the round's models, where nothing more than their mean is wanted."""
        self.schema = task.part(self.part)
        self._parts: dict[float, Mask | None] = {}
        check_fit(task.config, self.settings.name, self.fits)
        if self.program and not self.trains_plainly:
            check_plain(task.config, self.settings.name)
        if not self.global_model:
            check_target(task.config, self.settings.name)

    @property
    def clients_keep(self) -> bool:
        """Whether clients keep models of their own from round to round."""
        return bool(self.program)

    # -- what a method overrides ------------------------------------------------------

    def prepare(self, grid: MeteredGrid) -> None:
        """Make the initial model and mask; may exchange messages with clients."""
        self.state = self.task.pretrain(0, 0.0)

    def plan(self, round_number: int) -> Plan:
        """Return what is asked of the clients in this round."""
        return self.own_plan(round_number)

    @adds_up
    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Turn replies into the next `self.state` and `self.mask`."""
        self.state = self.mean(replies)

    def reader(self) -> Reader:
        """Return how this round's replies are read, wherever that is done."""
        masks, numbers, places = {self.mask: 0}, {}, {}
        for client, seat in self.seats.items():
            if seat.share not in numbers:
                numbers[seat.share] = masks.setdefault(self.mask_of(client), len(masks))
            if number := numbers[seat.share]:
                places[client] = number
        return Reader(self.schema, tuple(masks), places)

    def round_reader(self) -> Reader:
        """Return `reader`, with what every reply of this round is held to."""
        most = self.task.config.robust.max_examples
        return replace(self.reader(), round_number=self.round_number, most_examples=most)

    def demands(self, density: float) -> Demands:
        """Return what this method will ask of clients at a density, its heaviest rounds included.

        A fleet of which no client holds one of these is refused before the first round.
        """
        return [(self.own_plan(1), erk_counts(self.task, density))]

    def spent(self, round_number: int) -> dict[str, float | None]:
        """Return the privacy that the rounds so far have cost, where any is promised."""
        rule = self.rule
        return {"epsilon": rule.epsilon(round_number)} if isinstance(rule, Private) else {}

    def budget_of(self, client: int) -> float:
        """Return the fraction of the model that a client may use at once."""
        return 1.0

    def ready_to_test(self, round_number: int, grid: Grid | None) -> None:
        """Settle what tests by clients depend on; there is no grid after the run."""

    def mask_to_test(self, client: int) -> Mask | None:
        """Return the mask of the model that a client is sent for its own test."""
        return self.mask

    @property
    def mask_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The tensors that masks cover, with their shapes."""
        return self.task.shapes

    @property
    def takes_mean(self) -> bool:
        """Whether `aggregate` asks `mean` for the next model, and not for one of its own."""
        own = type(self)
        return own.mean is SparseStrategy.mean and getattr(own.aggregate, "adds_up", False)

    @property
    def adds_up(self) -> bool:
        """Whether workers may add replies up: as `aggregate` says.

        Not where a subclass takes the mean or reads the replies in a way of its own.
        """
        each = self.rule is not None or self.task.config.robust.max_norm is not None
        usual = type(self).read_replies is SparseStrategy.read_replies
        return self.takes_mean and usual and not each

    # -- state of a run ---------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next round depends on, as arrays and plain values."""
        mask = None if self.mask is None else dict(self.mask.packed)
        return {"state": dict(self.state), "mask": mask, "held": self.held.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.state = saved["state"]
        packed = saved["mask"]
        self.mask = None if packed is None else Mask.from_packed(self.mask_shapes, packed)
        self.held.load_state_dict(saved["held"], self.mask_shapes)

    def splice(
        self, earlier: dict[str, Any], last: dict[str, Any], forgotten: frozenset[int]
    ) -> dict[str, Any]:
        """Return what a rerun without some clients starts from: an `earlier` state they are not in.

        `last` is the state at the end, where parts may be taken from that never met them.
        """
        return earlier

    @property
    def density(self) -> float:
        """The kept fraction of the prunable weights."""
        return 1.0 if self.mask is None else self.mask.density

    @property
    def layer_density(self) -> dict[str, float]:
        """The kept fraction by prunable tensor."""
        if self.mask is None:
            return dict.fromkeys(self.task.prunable, 1.0)
        return self.mask.layer_density()

    def arrays(self) -> ArrayRecord:
        """Return the model as it is sent to a client that knows nothing yet."""
        return wire.pack(wire.encode(self.shared, mask=self.mask, values=self.settings.values))

    # -- Flower's seams ---------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask this round's cohort to train the model that `arrays` holds.

        It goes to each client in the shortest form that the client can read.
        """
        if self.directory is None:
            self.begin(grid)
        plan, self._parts = self.plan(server_round), {}
        self.round_number = server_round
        self.seats = self.choose(grid, server_round, plan)
        return self.ask_with_model(self.seats, messages.TRAIN, plan)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Learn from the replies; return the model as Flower's own loop hands it on."""
        learnt = self.learn(server_round, replies)
        return self.arrays(), learnt

    def learn(self, server_round: int, replies: Iterable[Message]) -> MetricRecord:
        """Decode the replies that can be trusted and let the method aggregate them.

        Raises TooFewRepliesError when fewer than `fleet.min_replies` of the cohort are
        left; the model and the mask are then as before.
        """
        self.round_number = server_round
        good = self.add_replies(replies) if self.adds_up else self.read_replies(replies)
        self.failures |= (long := overlong(good, self.before, self.task.config.robust.max_norm))
        good = [reply for reply in good if reply.client not in long]
        nobody = isinstance(self.rule, Private) and not self.seats
        wanted = round_size(self.task.config.fleet)
        wanted = 0 if nobody else min(wanted, len(self.seats) or wanted)
        require_replies(len(good), wanted, self.task.config.fleet.min_replies, self.failures)
        self.note_held([reply.client for reply in good])
        self.aggregate(server_round, good)
        told = [(r.loss, r.examples) for r in good] or [(0.0, 1)]
        loss = metrics.average(*zip(*told, strict=True))
        return MetricRecord({"loss": loss, "clients": len(good)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients to test the model on their own samples."""
        self.ready_to_test(server_round, grid)
        clients = tested_by(self.task.config.fleet, self.task.absent)
        return self.ask_with_model(clients, messages.EVALUATE, self.own_plan(server_round))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the mean accuracy and loss over clients, weighted by their samples.

        None when no reply can be trusted.
        """
        good = self._trusted(
            replies, lambda _, message: metrics.read(message, "examples", "loss", "accuracy")
        )
        return metrics.over_clients(good) if good else None

    def summary(self) -> None:
        """Log the settings, as Flower's strategies do."""
        log(20, "%s: %s", type(self).__name__, self.settings)

    def begin(self, grid: Grid) -> None:
        """Find the clients and make the model, for loops that do not, such as Flower's own."""
        clients, absent = self.task.config.fleet.clients, self.task.absent
        self.directory = Directory.of(grid, clients, absent=absent)
        self.prepare(MeteredGrid(grid, self.directory))

    # -- for methods ------------------------------------------------------------------

    @property
    def shared(self) -> State:
        """The tensors that travel."""
        return {name: self.state[name] for name in self.schema.names} if self.part else self.state

    @property
    def before(self) -> Before:
        """What this round's replies answer."""
        return Before(self.round_number, self.shared, self.mask, len(self.seats))

    def own_plan(self, round_number: int) -> Plan:
        """Return a plan with this method's program, part and costs."""
        return Plan(
            round_number,
            self.settings.values,
            program=self.program,
            part=self.part,
            held=self.held_entries,
            work=self.work,
        )

    @property
    def held_entries(self) -> int:
        """Numbers that a client holds beside what training the model takes."""
        return 0

    @property
    def work(self) -> float:
        """What a client computes in a round, as a multiple of plain training."""
        return 1.0

    def kept(self) -> Kept | KeptOf | None:
        """Return the kept weights by layer, or how to find a client's; None for a dense model."""
        return None if self.mask is None else self.mask.layer_kept()

    def choose(self, grid: Grid, round_number: int, plan: Plan) -> dict[int, Seat]:
        """Return the clients of a round, ascending, each with its seat.

        A grid that knows its clients' devices chooses among those that can take part.
        """
        draw = getattr(grid, "cohort", None)
        if draw is None:
            config = self.task.config
            if isinstance(self.rule, Private):
                return dict.fromkeys(self.rule.cohort(round_number), FULL)
            drawn = cohort(config.fleet, config.run.seed, round_number, self.task.absent)
            return dict.fromkeys(drawn, FULL)
        seats: dict[int, Seat] = draw(round_number, plan, self.kept(), self.fits)
        return seats

    def mask_of(self, client: int) -> Mask | None:
        """Return the mask under which a client of this round trains."""
        share = self.seats.get(client, FULL).share
        if share not in self._parts:
            self._parts[share] = submask(self.state, self.mask, self.task.shapes, share)
        return self._parts[share]

    def mean(self, replies: Sequence[Reply]) -> State:
        """Return the average model, weight by weight where clients trained unlike parts of it."""
        if self.tally is not None:
            mean = self.tally.mean(self.shared, self.mask)
        else:
            mean = (self.rule or exact_mean)(replies, self.before)
        return {**self.state, **mean} if self.part else mean

    def note_held(self, good: Sequence[int]) -> None:
        """Note who of those asked to train has shown to hold its mask."""
        replied = set(good)
        for mask, clients in by_mask(self.seats, self.mask_of).items():
            self.held.replied(mask, clients, [c for c in clients if c in replied])

    def ask(
        self, clients: Sequence[int], kind: str, plan: Plan, arrays: dict[str, ArrayRecord]
    ) -> list[Message]:
        """Return one message a client, all with the same content."""
        assert self.directory is not None
        content = RecordDict(
            {**arrays, messages.CONFIG: messages.write_config(self.task.config, plan)}
        )
        node_of = self.directory.node_of
        return [Message(content, node_of[client], kind) for client in clients]

    def ask_with_model(self, clients: Iterable[int], kind: str, plan: Plan) -> list[Message]:
        """Return one message a client with the model, masks only where they are not held.

        In training each client's seat says how much of the model, in which batches.
        """
        assert self.directory is not None
        clients, training = list(clients), kind == messages.TRAIN
        seats = self.seats if training else {}
        groups = by_mask(clients, self.mask_of if training else self.mask_to_test)
        records: dict[int, ArrayRecord] = {}
        for mask, members in groups.items():
            records |= self.held.records(self.shared, mask, members, self.settings.values)
        return asked(
            self.task.config,
            plan,
            records,
            seats=seats,
            budget_of=self.budget_of,
            node_of=self.directory.node_of,
            kind=kind,
            clients=clients,
        )

    def query(
        self,
        grid: Grid,
        kind: str,
        clients: Sequence[int],
        plan: Plan,
        arrays: dict[str, ArrayRecord],
        read: Callable[[Message], T],
    ) -> list[Answer[T]]:
        """Ask clients something outside of training and return the answers that can be trusted.

        Raises TooFewRepliesError when fewer than `fleet.min_replies` of them are left.
        """
        config = self.task.config
        sent = self.ask(clients, kind, plan, arrays)
        good = self._trusted(
            grid.send_and_receive(sent, timeout=config.engine.timeout),
            lambda client, message: Answer(
                client, metrics.read(message, "examples")["examples"], read(message)
            ),
        )
        require_replies(len(good), len(clients), config.fleet.min_replies, self.failures)
        return good

    def read_replies(self, replies: Iterable[Message]) -> list[Reply]:
        """Decode training replies; those that cannot be trusted go to `self.failures`."""
        self.tally = None
        return self._trusted(replies, self.round_reader().read)

    def add_replies(self, replies: Iterable[Message]) -> list[Reply]:
        """Add training replies to `self.tally`, where workers haven't, and return the rest of them.

        Those that cannot be trusted go to `self.failures`.
        """
        reader = self.round_reader()
        self.tally, parts = Tally(reader.schema, reader.masks), dict[int, PartialSum]()
        good = self._trusted(replies, partial(add_reply, reader, self.tally, parts))
        for part in parts.values():
            self.tally.merge(part)
        return good

    def _trusted(self, replies: Iterable[Message], read: Callable[[int, Message], T]) -> list[T]:
        """Read replies, each client's first alone; what is wrong with one is its failure."""
        assert self.directory is not None
        good, self.failures = trusted(replies, self.directory.client_of, read)
        return good
