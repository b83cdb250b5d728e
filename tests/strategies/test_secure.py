"""Secure aggregation: the sum is the clients' sum to the last bit, whoever is lost, or none.

Clients answer in this process, so that what each of them put under its masks is known here.
"""

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord
from safetensors.numpy import load_file

from fedsparse import messages, wire
from fedsparse.errors import ConfigError, TooFewRepliesError
from fedsparse.messages import SECURE_KEYS, SECURE_SHARES, SECURE_UNMASK, TRAIN
from fedsparse.runs import RunFolder
from fedsparse.runs.ledger import Ledger
from fedsparse.secure import letters, masks, shamir
from fedsparse.secure.fixed_point import HEAD, FixedPoint
from simulations.experiment import CLIENT_APP, resume_experiment
from simulations.grid import CohortGrid
from simulations.report import write_report
from strategies import foreign, secure_round
from strategies.addressing import Directory
from strategies.replies import split
from strategies.secure import SecureGrid
from strategies.secure_round import SecureRound, neighbours
from strategies.task import Task
from tests.strategies.stage import QUICK
from tests.strategies.test_rounds import carry
from tests.tiny_runs import model_bytes, rows, run, run_and_interrupt, tiny

SPARSE = ("strategy.name=static", "strategy.criterion=random", "strategy.density=0.3")
DENSE = ("strategy.name=fedavg",)
SECURE = (*QUICK, "secure.aggregation=true", "data.partition=iid")
STEPS = {"keys": SECURE_KEYS, "shares": SECURE_SHARES, "training": TRAIN}


class Meddled(CohortGrid):
    """A grid that loses or changes replies: `meddle` is called with kind, round, client, reply."""

    def __init__(self, *args, meddle=lambda *_: None, **kwargs):
        super().__init__(*args, **kwargs)
        self.meddle = meddle

    def send_and_receive(self, messages, *, timeout=None):
        """Return the replies that `meddle` does not call lost."""
        sent = list(messages)
        number = sent[0].content["config"]["server-round"] if sent[0].content else 0
        kind = sent[0].metadata.message_type
        return [
            reply
            for reply in super().send_and_receive(sent, timeout=timeout)
            if self.meddle(kind, number, self.client_of(reply.metadata.src_node_id), reply)
            != "lost"
        ]


def loses(*places):
    """Return a meddler that loses the replies at some places: (kind, client)."""
    return lambda kind, _, client, __: "lost" if (kind, client) in places else None


@pytest.fixture
def plain(monkeypatch):
    """What clients put under masks since the test began, in the order in which they trained."""
    right, seen = FixedPoint.encode, []

    def encode(self, values, told):
        words = right(self, values, told)
        seen.append(words.copy())
        return words

    monkeypatch.setattr(FixedPoint, "encode", encode)
    return seen


@pytest.fixture
def sums(monkeypatch):
    """What the server came to in each round that has a sum."""
    right, seen = SecureRound.play, []

    def play(self, asked):
        seen.append(right(self, asked))
        return seen[-1]

    monkeypatch.setattr(SecureRound, "play", play)
    return seen


def staged(*assignments, meddle=lambda *_: None, clients=6):
    """Return a prepared strategy and the secure grid of its clients."""
    config = tiny(*SECURE, f"fleet.clients={clients}", *assignments)
    strategy = foreign.make(Task.of(config))
    inner = Meddled(CLIENT_APP, clients=clients, meddle=meddle)
    directory = strategy.directory = Directory.of(inner, clients, 1.0)
    grid = SecureGrid(inner, directory, config=config)
    strategy.prepare(grid)
    return strategy, grid


def play(strategy, grid, number=1):
    """Play a round as the loop does and return the replies to training."""
    asked = strategy.configure_train(number, strategy.arrays(), ConfigRecord(), grid)
    return grid.send_and_receive(asked, reader=strategy.round_reader())


def reasons(replies):
    """Return why clients are in no sum."""
    return {
        reply.metadata.src_node_id - 1000: reply.error.reason
        for reply in replies
        if reply.has_error()
    }


def whole(fixed, words):
    return fixed.decode(words)[0]


# -- the sum -----------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [SPARSE, DENSE], ids=["sparse", "dense"])
@pytest.mark.parametrize("more", [(), ("secure.neighbours=4",), ("secure.bits=48",)])
def test_the_sum_is_the_clients_sum_to_the_last_bit(plain, sums, strategy, more):
    made, grid = staged(*strategy, *more, clients=7)
    replies = play(made, grid)
    assert not reasons(replies)
    assert len(plain) == 7
    exactly = sum(whole(grid.fixed, words) for words in plain)
    np.testing.assert_array_equal(sums[0].values, exactly)
    made.learn(1, replies)
    samples = int(sum(words[0] for words in plain))
    mean = (exactly * grid.fixed.unit / samples).astype(np.float32)
    kept = split(mean, made.schema, made.mask)
    for name, value in made.state.items():
        if made.mask is not None and name in made.mask:
            np.testing.assert_array_equal(value[made.mask[name]], kept[name])
            assert not value[~made.mask[name]].any()
        else:
            np.testing.assert_array_equal(value, kept[name])


@pytest.mark.parametrize("strategy", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_the_model_is_the_plain_one_to_half_a_unit_a_client_over_the_samples(tmp_path, strategy):
    more = (*QUICK, *strategy, "fleet.clients=6")
    run(tmp_path / "plain", *more)
    run(tmp_path / "secure", *more, "secure.aggregation=true")
    fixed = FixedPoint.of(tiny(*more, "secure.aggregation=true"))
    samples = 0.9 * 160  # a tenth is held out, at most
    most = 6 * fixed.unit / 2 / (samples - 6) + 1e-7
    found = [load_file(tmp_path / name / "model.safetensors") for name in ("plain", "secure")]
    apart = max(np.abs(found[0][name] - found[1][name]).max() for name in found[0])
    assert 0 < apart <= most


def test_a_run_is_the_same_again_whatever_the_masks_and_after_an_interruption(
    tmp_path, monkeypatch
):
    more = (*SECURE, *SPARSE, "run.rounds=3")
    run(tmp_path / "a", *more)
    run(tmp_path / "b", *more)
    assert model_bytes(tmp_path / "a") == model_bytes(tmp_path / "b")
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    run_and_interrupt(monkeypatch, tmp_path / "c", 3, *more)
    resume_experiment(tmp_path / "c")
    assert model_bytes(tmp_path / "a") == model_bytes(tmp_path / "c")


def test_masks_that_do_not_cancel_for_one_pair_are_seen(plain, sums, monkeypatch):
    right = masks.add_pairs

    def wrong(words, client, seeds, sign=1):
        right(words, client, {j: s for j, s in seeds.items() if (client, j) != (1, 2)}, sign)

    made, grid = staged(*SPARSE)
    monkeypatch.setattr(masks, "add_pairs", wrong)
    assert set(reasons(play(made, grid))) == set(range(6)), "the samples are out of any range"
    monkeypatch.setattr(secure_round.SecureRound, "check", lambda *_: None)
    play(made, grid, 2)
    assert (sums[-1].values != sum(whole(grid.fixed, words) for words in plain[6:])).all()


# -- who is lost -------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("lost", "near"), [({2}, 0), ({0, 5}, 0), ({2}, 4)])
def test_whoever_is_lost_the_others_sum_is_exact(plain, sums, step, lost, near):
    threshold = "secure.threshold=0.51"
    meddle = loses(*((STEPS[step], client) for client in lost))
    made, grid = staged(*SPARSE, threshold, f"secure.neighbours={near}", meddle=meddle, clients=7)
    replies = play(made, grid)
    assert set(reasons(replies)) == lost
    assert all(f"secure aggregation, {step}: no reply" in why for why in reasons(replies).values())
    if step == "training":  # they trained, and their masks are in the others' words
        assert len(plain) == 7
        plain = [words for client, words in enumerate(plain) if client not in lost]
    assert len(plain) == 7 - len(lost)
    np.testing.assert_array_equal(sums[0].values, sum(whole(grid.fixed, words) for words in plain))
    told = grid.figures(None, frozenset())
    assert (told["secure_summed"], told["secure_dropped"]) == (7 - len(lost), len(lost))


def test_one_that_does_not_help_to_unmask_is_in_the_sum(plain, sums):
    made, grid = staged(*SPARSE, meddle=loses((SECURE_UNMASK, 1)))
    assert not reasons(play(made, grid))
    np.testing.assert_array_equal(sums[0].values, sum(whole(grid.fixed, words) for words in plain))


def test_clients_lost_at_every_step_at_once(plain, sums):
    places = ((SECURE_KEYS, 0), (SECURE_SHARES, 3), (TRAIN, 6), (SECURE_UNMASK, 8))
    made, grid = staged(*SPARSE, meddle=loses(*places), clients=10)
    replies = play(made, grid)
    assert set(reasons(replies)) == {0, 3, 6}
    trained = [client for client in range(10) if client not in (0, 3)]
    exactly = sum(
        whole(grid.fixed, words) for c, words in zip(trained, plain, strict=True) if c != 6
    )
    np.testing.assert_array_equal(sums[0].values, exactly)


@pytest.mark.parametrize("kind", [TRAIN, SECURE_UNMASK])
def test_a_round_below_the_threshold_is_lost_and_the_next_goes_on(tmp_path, kind):
    config = tiny(*SECURE, *SPARSE, "fleet.clients=6", "run.rounds=3", "secure.threshold=1")

    def meddle(of, number, client, _):
        return "lost" if (of, number, client) == (kind, 2, 4) else None

    grid = Meddled(CLIENT_APP, clients=6, meddle=meddle)
    folder = carry(tmp_path / "run", config, grid)
    entries = folder.metrics()
    assert [row.get("secure_summed") for row in entries] == [None, 6, 0, 6]
    assert [row["clients_replied"] for row in entries] == [0, 6, 0, 6]
    lost = [row for row in folder.clients() if row["round"] == 2 and row["kind"] == "train"]
    assert {row["status"] for row in lost} == {"failed"}
    named = "threshold = 1 asks for 5" if kind == TRAIN else "it takes 5"
    assert all(named in row["reason"] for row in lost if row["client"] != 4)
    hashes = [e["model"] for e in Ledger(folder.path).verified() if e["entry"] == "round"]
    assert hashes[1] == hashes[2] != hashes[3]


def test_with_too_few_replies_for_any_round_the_run_stops_and_can_be_resumed(tmp_path):
    config = tiny(*SECURE, *SPARSE, "fleet.clients=6")
    grid = Meddled(CLIENT_APP, clients=6, meddle=loses(*((TRAIN, k) for k in range(4))))
    with pytest.raises(TooFewRepliesError, match=r"0 of 6.*secure aggregation"):
        carry(tmp_path / "run", config, grid)


# -- replies that are not to be trusted --------------------------------------------------


def instead(kind, client, made):
    """Return a meddler that puts other arrays into one client's reply."""

    def meddle(of, number, who, reply):
        if (of, who) == (kind, client):
            content = wire.unpack(reply.content[messages.ARRAYS])
            reply.content[messages.ARRAYS] = wire.pack(made(content))

    return meddle


@pytest.mark.parametrize(
    ("kind", "made", "reason"),
    [
        (SECURE_KEYS, lambda c: c[:-1], "public keys have 63 bytes; 2 of 32"),
        (SECURE_SHARES, lambda c: c[:-1], "sealed shares have 469 bytes; 5 of 94"),
        (TRAIN, lambda c: c[:-9], "damaged"),
        (TRAIN, lambda c: c[:50] + b"\1" + c[51:], "damaged"),
        (TRAIN, lambda c: c + bytes(2**16), "at most"),
        (TRAIN, lambda c: b"", "holds no masked model"),
    ],
)
def test_a_reply_of_wrong_bytes_is_left_out_with_its_reason(plain, sums, kind, made, reason):
    strategy, grid = staged(*SPARSE, meddle=instead(kind, 3, made))
    found = reasons(play(strategy, grid))
    assert list(found) == [3]
    assert reason in found[3]
    trained = plain if len(plain) == 5 else plain[:3] + plain[4:]
    np.testing.assert_array_equal(
        sums[0].values, sum(whole(grid.fixed, words) for words in trained)
    )


def test_a_model_in_plain_or_of_a_round_before_is_left_out(sums):
    strategy, grid = staged(*SPARSE)
    first = play(strategy, grid)
    kept = {}

    def meddle(of, number, who, reply):
        if of == TRAIN and who == 1:
            model = wire.encode_kept(
                strategy.mask.take(strategy.state), strategy.schema, strategy.mask
            )
            reply.content[messages.ARRAYS] = wire.pack(model)
        if of == TRAIN and who == 2 and number == 1:
            kept["arrays"] = reply.content[messages.ARRAYS]
        if of == TRAIN and who == 2 and number == 2:
            reply.content[messages.ARRAYS] = kept["arrays"]
        if of == TRAIN and who == 3:
            reply.content[messages.METRICS] = MetricRecord({"server-round": 7, "memory-bytes": 1})

    grid.inner.meddle = meddle
    found = reasons(play(strategy, grid))
    assert set(found) == {1, 3}
    assert "no masked model" in found[1]
    assert "of round 7; this is round 1" in found[3]
    found = reasons(play(strategy, grid, 2))
    assert "another round" in found[2]
    assert not reasons(first)


def test_a_wrong_share_is_found_and_the_sum_made_without_it(plain, sums):
    def swapped(content):
        return bytes(shamir.SHARE) + content[shamir.SHARE :]

    strategy, grid = staged(*SPARSE, meddle=instead(SECURE_UNMASK, 0, swapped), clients=8)
    assert not reasons(play(strategy, grid))
    np.testing.assert_array_equal(sums[0].values, sum(whole(grid.fixed, words) for words in plain))


def test_shares_that_are_all_wrong_end_the_round_with_a_reason(sums):
    def swapped(of, number, who, reply):
        if of == SECURE_UNMASK:
            content = wire.unpack(reply.content[messages.ARRAYS])
            moved = content[shamir.SHARE :] + content[: shamir.SHARE]
            reply.content[messages.ARRAYS] = wire.pack(moved)

    strategy, grid = staged(*SPARSE, meddle=swapped)
    assert all("are wrong ones" in why for why in reasons(play(strategy, grid)).values())
    assert grid.lost
    assert not sums


# -- what is told ------------------------------------------------------------------------


def test_rows_and_figures_tell_means_alone_and_every_byte_counts(tmp_path):
    found = run(tmp_path / "run", *SECURE, *SPARSE, "fleet.clients=6", "data.partition=quantity")
    plain = run(tmp_path / "plain", *QUICK, *SPARSE, "fleet.clients=6", "data.partition=quantity")
    folder = RunFolder.open(tmp_path / "run")
    told = [row for row in folder.clients() if row["kind"] == "train"]
    for key in ("examples", "loss", "accuracy", "train_flops", "memory_bytes"):
        assert len({row[key] for row in told}) == 1, f"{key} differs by client"
    before = RunFolder.open(tmp_path / "plain")
    trained = [row for row in before.clients() if row["kind"] == "train"]
    assert len({row["examples"] for row in trained}) > 1
    assert round(sum(row["examples"] for row in trained) / 6) == told[0]["examples"]
    assert found["train_flops"] == plain["train_flops"]
    made, _ = staged(*SPARSE)
    payload = 52 + 4 * (HEAD + letters.values_under(made.schema, made.mask))
    steps = 64 + (32 + 5 * letters.SEALED) + payload + 5 * shamir.SHARE
    assert {row["bytes_up"] for row in told} == {steps}
    down = 5 * 68 + 5 * (5 + letters.SEALED)
    plain_down = {row["client"]: row["bytes_down"] for row in trained}
    assert {row["bytes_down"] - plain_down[row["client"]] for row in told} == {down}


def test_values_out_of_range_are_cut_and_counted(plain):
    made, grid = staged(*SPARSE, "secure.clip=0.01")
    made.learn(1, play(made, grid))
    assert grid.figures(None, frozenset())["secure_clipped"] > 0
    assert max(np.abs(value).max() for value in made.state.values()) <= 0.01 + 1e-9


def test_neighbours_are_mutual_connected_and_as_many_as_asked():
    for count, wanted in ((10, 4), (10, 3), (7, 2), (50, 12)):
        near = neighbours(list(range(count)), wanted)
        assert {len(others) for others in near.values()} == {wanted + wanted % 2}
        assert all(i in near[j] and i != j for i, others in near.items() for j in others)
        reached, new = {0}, {0}
        while new := {j for i in new for j in near[i]} - reached:
            reached |= new
        assert len(reached) == count
    assert neighbours([3, 1, 2], 0) == {3: [1, 2], 1: [3, 2], 2: [3, 1]}
    assert neighbours([3, 1, 2], 9) == neighbours([3, 1, 2], 0)


# -- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignments", "reason"),
    [
        (("strategy.name=fedtiny",), "'fedtiny' needs more of each client than the mean"),
        (("strategy.name=finetune",), "'finetune' needs more of each client"),
        (("strategy.name=flwr.serverapp.strategy:FedAdam",), "needs more of each client"),
        ((*SPARSE, "strategy.scored_by=clients", "strategy.criterion=snip"), "scored_by"),
        ((*SPARSE, "robust.rule=median"), r"keys of \[robust\] judge each client's reply"),
        ((*SPARSE, "robust.max_norm=3"), r"keys of \[robust\]"),
        ((*SPARSE, "robust.max_examples=30"), r"secure\.max_examples bounds samples"),
        ((*SPARSE, "privacy.clip=1"), r"privacy\.clip is cut and noised by the server"),
        ((*SPARSE, "attack.updates=scaled", "attack.clients=1"), r"attack\.updates"),
        ((*SPARSE, "run.keep_norms=true"), r"run\.keep_norms"),
        ((*SPARSE, "fleet.profile=phones"), r"leave fleet\.profile out"),
        ((*SPARSE, "fleet.clients=2"), "with 2 clients a round"),
        ((*SPARSE, "secure.bits=24"), "too coarse"),
        ((*SPARSE, "secure.max_examples=8"), "a client has .* samples; raise it"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(assignments, reason):
    with pytest.raises(ConfigError, match=reason) as error:
        foreign.make(Task.of(tiny(*QUICK, "secure.aggregation=true", *assignments)))
    assert "\n" not in str(error.value)


def test_the_report_says_what_the_server_saw(tmp_path):
    run(tmp_path / "run", *SECURE, *SPARSE)
    page = write_report([tmp_path / "run"]).read_text()
    assert "secure aggregation (threshold 0.6): the server saw the sum alone in 1 of 1" in page
