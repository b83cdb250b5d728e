"""Who touched a run: the first round of a target, and `fedsparse influence`."""

import json
import shutil

import pytest

from fedsparse import data
from fedsparse.config import ForgetConfig
from fedsparse.errors import LedgerError
from fedsparse.runs import RunFolder, merkle, tables
from fedsparse.runs.ledger import NAME, Ledger
from simulations.influence import back, checked, deletion, first_influence
from simulations.unlearning.target import read_samples
from tests.command_line import error_line, invoke
from tests.device_files import fleet_file
from tests.strategies.stage import QUICK
from tests.tiny_runs import run, run_and_interrupt

SETTING = (
    *QUICK,
    "strategy.name=static",
    "strategy.density=0.5",
    "strategy.pretrain_epochs=0",
    "fleet.clients=8",
    "fleet.novel_clients=1",
    "fleet.clients_per_round=2",
    "data.client_test_fraction=0.3",
    "data.public_samples=0",
    "run.rounds=4",
    "run.keep_checkpoints=2",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of four rounds of two clients, of seven that train and one that never does."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out, *SETTING)
    return out


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it that may be damaged."""
    return shutil.copytree(whole, tmp_path / "copy")


def first(out, **forget):
    folder = RunFolder.open(out)
    named = {key: str(value) for key, value in forget.items()}
    return first_influence(folder, data.of(folder.config), ForgetConfig(**named))


def asked(out):
    """Return the first round in which each client was asked, by the rows of clients."""
    found: dict[int, int] = {}
    for row in RunFolder.open(out).clients():
        if row["kind"] == "train":
            found.setdefault(row["client"], row["round"])
    return found


# -- the first round ---------------------------------------------------------------------------


def test_a_client_touches_the_first_round_in_which_it_was_asked(whole):
    found = asked(whole)
    assert len(set(found.values())) > 1
    for client in range(8):
        assert first(whole, clients=client) == found.get(client)
    early, late = min(found, key=found.get), max(found, key=found.get)
    assert first(whole, clients=f"{early},{late}") == found[early]


def test_who_never_trained_touched_nothing_though_it_tested_the_model(whole):
    tested = [r["client"] for r in RunFolder.open(whole).clients() if r["kind"] == "evaluate"]
    unasked = set(range(8)) - asked(whole).keys()
    assert 7 in unasked <= set(tested)
    assert all(first(whole, clients=client) is None for client in unasked)


def test_a_sample_touches_what_clients_touch_that_train_on_it(whole):
    found, federated = asked(whole), data.of(RunFolder.open(whole).config)
    late = max(found, key=found.get)
    assert first(whole, samples=federated.ids(late)[0]) == found[late] > 1
    assert first(whole, samples=federated.test_ids(late)[0]) is None
    assert first(whole, samples=federated.ids(7)[0]) is None
    both = f"{federated.ids(late)[0]},{federated.ids(min(found, key=found.get))[0]}"
    assert first(whole, samples=both) == 1


def test_a_class_touches_the_first_round_with_a_client_that_trains_on_it(whole):
    found, federated = asked(whole), data.of(RunFolder.open(whole).config)
    held = {c: set(federated.client(c).train.y.tolist()) for c in found}
    for label in range(10):
        rounds = [found[c] for c in found if label in held[c]]
        assert first(whole, classes=label) == min(rounds, default=None)
    assert len({first(whole, classes=label) for label in range(10)}) > 1


def test_the_servers_own_samples_come_before_every_round(tmp_path):
    run(tmp_path / "run", *SETTING, "data.public_samples=30")
    assert first(tmp_path / "run", classes=3) == 0


def test_who_was_asked_before_training_touched_round_0(tmp_path):
    run(tmp_path / "run", "run.rounds=1", "fleet.clients=5", "fleet.clients_per_round=2")
    start = Ledger(tmp_path / "run").read()[1]
    assert [first(tmp_path / "run", clients=client) for client in start["asked"]] == [0, 0]


def test_a_client_that_came_late_in_its_first_round_touched_it(tmp_path):
    fleet = fleet_file(tmp_path, {"share": 0.5, "dense_flops": 1e4}, {"share": 0.5})
    run(tmp_path / "run", *SETTING, f"fleet.profile={fleet}", "fleet.over_selection=1.0")
    lost = {}
    for row in RunFolder.open(tmp_path / "run").clients():
        if row["kind"] == "train":
            lost.setdefault(row["client"], (row["round"], row["status"]))
    late = [client for client, (_, status) in lost.items() if status == "late"]
    assert late
    assert all(first(tmp_path / "run", clients=c) == lost[c][0] for c in late)


def test_a_strategy_that_draws_among_all_nodes_was_touched_by_all(tmp_path):
    flower = ("strategy.name=flwr.serverapp.strategy:FedAvg", "strategy.fraction_train=0.5")
    run(tmp_path / "run", *SETTING[:5], *flower, "run.rounds=2", "fleet.novel_clients=0")
    assert {first(tmp_path / "run", clients=client) for client in range(8)} == {1}


def test_what_is_forgotten_already_touched_nothing(tmp_path):
    run(tmp_path / "run", *SETTING, "forget.clients=2", "run.rounds=8")
    assert first(tmp_path / "run", clients=2) is None
    federated = data.of(RunFolder.open(tmp_path / "run").config)
    assert first(tmp_path / "run", samples=federated.ids(2)[0]) is None


def test_without_a_ledger_of_the_whole_run_everything_may_have_touched_it(copy, tmp_path):
    (copy / NAME).unlink()
    assert first(copy, clients=7) == 0
    run_and_interrupt(pytest.MonkeyPatch(), tmp_path / "run", 4, *SETTING)
    (tmp_path / "run" / NAME).unlink()
    assert invoke("resume", tmp_path / "run", "--quiet", "--no-report").exit_code == 0
    assert first(tmp_path / "run", clients=7) == 0


def test_parts_from_another_runs_end_may_have_met_anyone(copy):
    ledger, folder = Ledger(copy), RunFolder.open(copy)
    entries = ledger.read()[1:]
    ledger.begin(folder.config, parent={"entry": "ab", "configuration": "cd", "spliced": True})
    for entry in entries:
        ledger.append({k: v for k, v in entry.items() if k not in ("previous", "hash")})
    assert first(copy, clients=7) == 0


def test_a_deletion_goes_back_to_the_newest_checkpoint_before_it(whole):
    folder = RunFolder.open(whole)
    assert folder.checkpoints() == [3, 4]
    assert [back(folder, folder.config, "client", n) for n in (0, 3, 4)] == [None, None, 3]
    assert deletion(folder, "client", 4) == {"first_influence": 4, "rewind_to": 3, "repeat": 1}
    assert deletion(folder, "client", 2) == {"first_influence": 2, "rewind_to": None, "repeat": 4}
    assert deletion(folder, "class", 4)["rewind_to"] is None
    assert deletion(folder, "client", None) == {
        "first_influence": None,
        "rewind_to": None,
        "repeat": 0,
    }


# -- the command ---------------------------------------------------------------------------------


def found(out, *options):
    result = invoke("influence", out, *options, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_clients_rounds_bytes_samples_and_share_are_listed(whole):
    rows = [r for r in RunFolder.open(whole).clients() if r["kind"] == "train"]
    client = rows[0]["client"]
    own = [row for row in rows if row["client"] == client]
    one = found(whole, "--client", client)["client"]
    assert [r["round"] for r in one["rounds"]] == [row["round"] for row in own]
    assert (one["first_round"], one["last_round"]) == (own[0]["round"], own[-1]["round"])
    assert one["bytes_up"] == sum(row["bytes_up"] for row in own)
    assert one["bytes_down"] == sum(row["bytes_down"] for row in own)
    assert one["samples"] == own[0]["examples"]
    together = sum(row["examples"] for row in rows if row["round"] == own[0]["round"])
    assert one["rounds"][0]["share"] == pytest.approx(own[0]["examples"] / together)
    assert len(one["masks"]) == 1
    assert one["deletion"]["first_influence"] == own[0]["round"]


def test_a_samples_clients_are_listed_with_proofs_that_anyone_can_check(whole):
    federated, rounds = data.of(RunFolder.open(whole).config), asked(whole)
    client = max(rounds, key=rounds.get)
    sample = int(federated.ids(client)[1])
    one = found(whole, "--sample", sample)["sample"]
    (holder,) = one["clients"]
    assert (holder["client"], holder["part"]) == (client, "train")
    assert holder["rounds"][0] == rounds[client] == one["deletion"]["first_influence"]
    told = holder["proof"]
    path = [(side == "left", bytes.fromhex(h)) for step in told["path"] for side, h in step.items()]
    shown = merkle.Proof(told["sample"], bytes.fromhex(told["nonce"]), tuple(path))
    assert merkle.verify(bytes.fromhex(told["root"]), shown)
    roots = [root for e in Ledger(whole).read()[1:] for root, _ in e["samples"].values()]
    assert told["root"] in roots
    tested = found(whole, "--sample", int(federated.test_ids(client)[0]))["sample"]
    assert [(h["part"], h["proof"]) for h in tested["clients"]] == [("test", None)]
    assert tested["deletion"]["repeat"] == 0


def test_each_client_that_drew_a_sample_of_its_own_is_listed(tmp_path):
    few = ("data.partition=sampled", "data.samples=40", "data.samples_per_client=20")
    run(tmp_path / "run", *SETTING, *few)
    federated = data.of(RunFolder.open(tmp_path / "run").config)
    sample = int(federated.ids(0)[0])
    one = found(tmp_path / "run", "--sample", sample)["sample"]
    holders = [c for c in range(8) if sample in [*federated.ids(c), *federated.test_ids(c)]]
    assert [holder["client"] for holder in one["clients"]] == holders
    assert len(holders) > 1


def test_people_read_tables(whole):
    client = min(asked(whole))
    sample = int(data.of(RunFolder.open(whole).config).ids(client)[0])
    done = invoke("influence", whole, "--client", client, "--sample", sample)
    assert done.exit_code == 0
    for words in ("intact", f"client {client}", "share of samples", f"sample {sample}", "verified"):
        assert words in done.stdout
    never = min(set(range(8)) - asked(whole).keys())
    assert "never asked" in invoke("influence", whole, "--client", never).stdout
    assert "nothing to repeat" in invoke("influence", whole, "--client", never).stdout


def test_looking_changes_nothing(whole):
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    found(whole, "--client", 0, "--sample", data.of(RunFolder.open(whole).config).ids(0)[0])
    assert {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--client", 8], "there is no client 8; the run's are 0 to 7"),
        (["--client", -1], "there is no client -1"),
        (["--sample", 99999], "sample 99999 belongs to no client"),
        (["--sample", 10**30], "belongs to no client"),
        (["--sample", -1], "belongs to no client"),
        (["--client", "x"], "'x' is not a valid integer"),
        (["--sign", "nowhere.pem"], "'nowhere.pem' cannot be read"),
    ],
)
def test_mistakes_are_one_line(whole, options, said):
    assert said in error_line(invoke("influence", whole, *options))


def test_an_unfinished_run_tells_of_its_rounds_so_far(tmp_path, monkeypatch):
    run_and_interrupt(monkeypatch, tmp_path / "run", 3, *SETTING)
    one = found(tmp_path / "run", "--client", min(asked(tmp_path / "run")))
    assert one["rounds"] >= 3
    assert one["client"]["deletion"]["first_influence"] >= 1


def test_signed_and_checked(copy, tmp_path):
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, private, public = Ed25519PrivateKey.generate(), tmp_path / "k.pem", tmp_path / "k.pub"
    plain = (s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    private.write_bytes(key.private_bytes(*plain))
    own = key.public_key()
    public.write_bytes(own.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    refused = invoke("influence", copy, "--verify-key", public)
    assert (refused.exit_code, "is not signed" in refused.stderr) == (3, True)
    assert found(copy, "--sign", private)["signature"] == str(copy / "ledger.sig")
    assert found(copy, "--verify-key", public)["signed"] == 6


# -- what was changed ------------------------------------------------------------------------------


def tampered(out):
    """Return the one line with which a damaged ledger is refused, everywhere."""
    result = invoke("influence", out, "--client", 0)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.count("\n") == 1
    with pytest.raises(LedgerError):
        first(out, clients=0)
    return result.stderr


def lines(out):
    return (out / NAME).read_text().splitlines(keepends=True)


def test_a_name_struck_out_of_the_ledger_is_found(copy):
    entry = json.loads(lines(copy)[3])
    changed = {**entry, "counted": entry["counted"][1:]}
    text = "".join([*lines(copy)[:3], tables.to_json(changed) + "\n", *lines(copy)[4:]])
    (copy / NAME).write_text(text)
    assert "line 4 was changed after it was written" in tampered(copy)


def test_an_end_that_was_cut_off_is_found(copy):
    (copy / NAME).write_text("".join(lines(copy)[:-1]))
    assert "lacks the entry of round 4" in tampered(copy)


def test_an_empty_ledger_is_found_and_a_missing_one_told(copy):
    (copy / NAME).write_text("")
    assert "missing or empty" in tampered(copy)
    (copy / NAME).unlink()
    assert invoke("influence", copy).exit_code == 3


def test_a_ledger_written_anew_does_not_fit_the_rows_of_clients(copy):
    ledger, folder = Ledger(copy), RunFolder.open(copy)
    entries = ledger.read()[1:]
    gone = entries[1]["counted"][0]
    ledger.begin(folder.config)
    for entry in entries:
        less = [client for client in entry["counted"] if client != gone]
        new = {**entry, "asked": less, "counted": less}
        ledger.append({k: v for k, v in new.items() if k not in ("previous", "hash")})
    assert "do not name the same clients in round 1" in tampered(copy)


def test_another_model_or_configuration_is_found(copy, whole, tmp_path):
    run(tmp_path / "other", *SETTING, "run.seed=1")
    shutil.copy(tmp_path / "other" / NAME, copy / NAME)
    assert "another configuration" in tampered(copy)
    shutil.copy(whole / NAME, copy / NAME)
    assert len(checked(RunFolder.open(copy))) == 6
    shutil.copy(tmp_path / "other" / "model.safetensors", copy / "model.safetensors")
    assert "is not the model that the last entry" in tampered(copy)


def test_data_that_were_changed_since_do_not_fit_the_roots(whole, monkeypatch):
    from fedsparse.data import FederatedData

    folder = RunFolder.open(whole)
    client = min(asked(whole))
    plain = FederatedData.ids
    sample = int(data.of(folder.config).ids(client)[0])
    monkeypatch.setattr(FederatedData, "ids", lambda self, k: plain(self, k)[:-1])
    result = invoke("influence", whole, "--sample", sample)
    assert result.exit_code == 3
    assert f"root of client {client} is not that of its samples now" in result.stderr


def test_the_ids_of_a_client_are_what_a_request_to_forget_them_reads(whole, tmp_path):
    done = invoke("influence", whole, "--client", 1, "--ids")
    ids = data.of(RunFolder.open(whole).config).ids(1).tolist()
    assert done.stdout.split() == [str(i) for i in ids]
    (tmp_path / "ids.txt").write_text(done.stdout)
    assert sorted(read_samples(tmp_path / "ids.txt")) == ids
    assert "--ids" in error_line(invoke("influence", whole, "--ids"))
