"""The ledger: a chain in which every change is found, its key, and its signature."""

import json
import shutil
import subprocess

import pytest

from fedsparse.config import resolve
from fedsparse.errors import LedgerError, RunFolderError
from fedsparse.runs import signature
from fedsparse.runs.ledger import FIRST, KEY, Ledger

CONFIG = resolve({"run": {"seed": 7}, "strategy": {"name": "flwr.serverapp.strategy:FedAvg"}})


def entry(number, *counted):
    return {
        "entry": "round",
        "round": number,
        "asked": [*counted, 99],
        "counted": list(counted),
        "samples": {str(client): ["ab" * 32, 5] for client in counted},
        "mask_before": None,
        "mask": None,
        "model": f"{number:064x}",
    }


def filled(folder, rounds=3):
    folder.mkdir(exist_ok=True)
    ledger = Ledger(folder)
    ledger.begin(CONFIG)
    for number in range(rounds):
        ledger.append(entry(number, number, number + 1))
    return ledger


@pytest.fixture
def ledger(tmp_path):
    return filled(tmp_path / "run")


def lines(ledger):
    return ledger.path.read_text().splitlines(keepends=True)


def test_each_entry_names_the_hash_of_the_one_before(ledger):
    found = ledger.verified()
    assert [e["previous"] for e in found] == [FIRST, *(e["hash"] for e in found[:-1])]
    assert found[-1]["hash"] == ledger.head
    assert [e.get("round") for e in found] == [None, 0, 1, 2]
    assert found[2]["counted"] == [1, 2]


def test_a_change_of_any_byte_is_found(ledger):
    whole = ledger.path.read_bytes()
    for place in range(0, len(whole), 5):
        if whole[place : place + 1] != b"\n":
            changed = bytearray(whole)
            changed[place] ^= 1
            ledger.path.write_bytes(changed)
            with pytest.raises(LedgerError, match=r"line|cannot be read"):
                ledger.verified()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda old: [*old[:2], *old[3:]], "line 3 does not follow"),
        (lambda old: [old[0], old[2], old[1], old[3]], "line 2 does not follow"),
        (lambda old: [*old, old[-1]], "line 5 does not follow"),
        (lambda old: old[1:], "line 1 does not follow"),
        (lambda old: [old[0].replace('": ', '":'), *old[1:]], "line 1 was changed"),
        (lambda old: [*old[:3], "{}\n"], "line 4 is not an entry"),
        (lambda old: [*old[:3], "[" * 10**5 + "\n"], "line 4 is not an entry"),
        (lambda old: [], "missing or empty"),
    ],
)
def test_what_is_missing_moved_or_added_is_named(ledger, change, said):
    ledger.path.write_text("".join(change(lines(ledger))))
    with pytest.raises(LedgerError, match=said) as error:
        ledger.verified()
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 3


def test_a_round_left_out_is_named_though_the_chain_is_whole(tmp_path):
    ledger = filled(tmp_path / "run", rounds=2)
    ledger.append(entry(3, 1))
    with pytest.raises(LedgerError, match="lacks the entry of round 2"):
        ledger.verified()


def test_a_torn_last_line_is_ignored_and_goes_with_the_next_entry(ledger):
    with ledger.path.open("a") as file:
        file.write('{"entry": "round", "rou')
    assert len(ledger.verified()) == 4
    ledger.append(entry(3, 3))
    assert [e["round"] for e in ledger.verified()[1:]] == [0, 1, 2, 3]


def test_going_back_and_on_again_gives_the_same_bytes(ledger):
    whole = ledger.path.read_bytes()
    again = Ledger(ledger.folder)
    again.go_on(again.until(0))
    for number in (1, 2):
        again.append(entry(number, number, number + 1))
    assert again.path.read_bytes() == whole


# -- the key -----------------------------------------------------------------------------


def test_equal_seeds_have_equal_keys_and_each_run_its_own_file(ledger, tmp_path):
    other = filled(tmp_path / "other")
    assert (other.folder / KEY).read_bytes() == (ledger.folder / KEY).read_bytes()
    assert (ledger.folder / KEY).stat().st_mode & 0o077 == 0
    assert ledger.key(7) != Ledger(tmp_path).key(8)


def test_a_random_key_stays_and_must_be_the_one_that_the_ledger_began_with(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.make_key()
    key = ledger.key(7)
    ledger.begin(CONFIG)
    assert ledger.key(7, ledger.verified()) == key != Ledger(tmp_path / "none").key(7)
    (tmp_path / KEY).unlink()
    with pytest.raises(LedgerError, match=r"ledger\.key' is not the key"):
        ledger.key(7, ledger.verified())
    (tmp_path / KEY).write_text("no key")
    with pytest.raises(LedgerError, match="cannot be read"):
        ledger.key(7)


# -- runs that go on from others ------------------------------------------------------------


def test_a_run_from_anothers_checkpoint_has_its_rounds_its_key_and_names_it(ledger, tmp_path):
    ledger.make_key()
    ledger.begin(CONFIG)
    for number in range(3):
        ledger.append(entry(number, number))
    (tmp_path / "child").mkdir()
    child = Ledger(tmp_path / "child")
    config = CONFIG.model_copy(update={"run": CONFIG.run.model_copy(update={"rounds": 2})})
    child.inherit(ledger, config, 1)
    first, *rounds = child.verified()
    assert first["parent"]["entry"] == ledger.verified()[2]["hash"]
    assert not first["parent"]["spliced"]
    assert first["configuration"] != ledger.verified()[0]["configuration"]
    assert [e["counted"] for e in rounds] == [[0], [1]]
    assert child.key(7) == ledger.key(7)
    (tmp_path / "later").mkdir()
    later = Ledger(tmp_path / "later")
    child.begin(config, parent={**first["parent"], "spliced": True})
    later.inherit(child, config, 1)
    assert later.verified()[0]["parent"]["spliced"]


def test_a_run_from_a_checkpoint_without_a_ledger_begins_after_it(tmp_path):
    (tmp_path / "child").mkdir()
    child = Ledger(tmp_path / "child")
    child.inherit(Ledger(tmp_path / "none"), CONFIG, 4)
    child.append(entry(5, 1))
    assert child.verified()[0]["begins"] == 5


# -- signatures ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two pairs of Ed25519 keys in PEM, private and public."""
    folder = tmp_path_factory.mktemp("keys")
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    pairs = []
    for name in ("one", "two"):
        key = Ed25519PrivateKey.generate()
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        plain = (s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
        private.write_bytes(key.private_bytes(*plain))
        public.write_bytes(
            key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
        )
        pairs.append((private, public))
    return pairs


def test_a_signature_holds_for_its_key_and_for_the_entries_until_it(ledger, keys):
    (private, public), (_, other) = keys
    with pytest.raises(LedgerError, match="is not signed"):
        signature.signed(ledger, public, ledger.verified())
    signature.sign(ledger, private)
    assert signature.signed(ledger, public, ledger.verified()) == 4
    ledger.append(entry(3, 3))
    assert signature.signed(ledger, public, ledger.verified()) == 4
    with pytest.raises(LedgerError, match="was not made with the key"):
        signature.signed(ledger, other, ledger.verified())


def test_a_ledger_written_anew_as_a_whole_is_not_the_one_that_was_signed(ledger, keys):
    private, public = keys[0]
    signature.sign(ledger, private)
    ledger.begin(CONFIG)
    for number in range(3):
        ledger.append(entry(number, number))
    assert len(ledger.verified()) == 4
    with pytest.raises(LedgerError, match="is not the ledger that"):
        signature.signed(ledger, public, ledger.verified())


@pytest.mark.parametrize("content", [b"", b"{}", b'{"head": 3, "ed25519": 4}', b"\xff"])
def test_a_damaged_signature_is_named(ledger, keys, content):
    signature.sign(ledger, keys[0][0])
    (ledger.folder / signature.NAME).write_bytes(content)
    with pytest.raises(LedgerError, match=r"ledger\.sig' does not hold a signature"):
        signature.signed(ledger, keys[0][1], ledger.verified())


def test_what_is_no_key_is_refused(ledger, keys, tmp_path):
    for path in (keys[0][1], tmp_path, tmp_path / "none"):
        with pytest.raises(RunFolderError, match=r"no unencrypted Ed25519 private|cannot be read"):
            signature.sign(ledger, path)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_keys_of_openssl_sign(ledger, tmp_path):
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    made = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", private]
    subprocess.run(made, check=True, capture_output=True)
    told = ["openssl", "pkey", "-in", private, "-pubout", "-out", public]
    subprocess.run(told, check=True, capture_output=True)
    path = signature.sign(ledger, private)
    assert json.loads(path.read_text())["head"] == ledger.head
    assert signature.signed(ledger, public, ledger.verified()) == 4
