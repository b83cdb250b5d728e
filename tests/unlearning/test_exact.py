"""Exact unlearning: the bits of a run that never had the target, on every grid and backend."""

import hashlib
from pathlib import Path

import pytest

from fedsparse import data
from fedsparse.errors import ConfigError
from fedsparse.runs import RunFolder
from fedsparse.runs.ledger import Ledger
from fedsparse.runs.progress import Silent
from simulations.states import ClientStates
from simulations.unlearning import exact
from simulations.unlearning.target import Target, target_of
from tests.kernels.passes import needs_kernels
from tests.tiny_runs import run

FEW = (
    "fleet.clients=8",
    "fleet.clients_per_round=2",
    "run.rounds=5",
    "run.keep_checkpoints=0",
    "data.client_test_fraction=0.2",
)


def asked(path: Path) -> dict[int, int]:
    """Return the first round of each client that a run asked, 0 for what came before training."""
    found: dict[int, int] = {}
    for entry in Ledger(path).read()[1:]:
        for client in entry["asked"]:
            found.setdefault(client, entry["round"])
    return found


def hashes(path: Path) -> dict[str, str]:
    return {
        str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }


def forget(path: Path, out: Path, target: Target, *changes: str) -> exact.Rerun:
    parent = RunFolder.open(path)
    plan = exact.planned(parent, target, changes)
    exact.rerun(parent, target, plan, out, command="tiny", progress=Silent())
    return plan


def of_client(path: Path, client: int) -> Target:
    return target_of(RunFolder.open(path).config, [client], [], None, False)


def same_model(one: Path, other: Path) -> bool:
    names = [n for n in ("model.safetensors", "mask.safetensors") if (one / n).exists()]
    return all((one / n).read_bytes() == (other / n).read_bytes() for n in names)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Return a run by backend, the client that it asked last, and the run without that client."""
    made = {}

    def of(backend):
        if backend not in made:
            home = tmp_path_factory.mktemp(backend)
            settings = (*FEW, f"client.backend={backend}")
            run(home / "run", *settings)
            first = asked(home / "run")
            late = max(first, key=lambda client: first[client])
            run(home / "fresh", *settings, f"forget.clients={late}")
            made[backend] = home / "run", late, home / "fresh"
        return made[backend]

    return of


@pytest.mark.parametrize(
    ("engine", "backend"),
    [
        pytest.param("inline", "native", marks=needs_kernels),
        ("inline", "torch"),
        pytest.param("ray", "native", marks=needs_kernels),
    ],
)
def test_a_rerun_is_the_run_without_the_client(pairs, tmp_path, engine, backend):
    """FedTiny, with its BatchNorm selection before round 1: mask, statistics and weights."""
    parent, late, fresh = pairs(backend)
    before, first = hashes(parent), asked(parent)
    chosen = (f"engine.name={engine}", "engine.workers=2")
    plan = forget(parent, tmp_path / "without", of_client(parent, late), *chosen)
    assert plan.certificate == exact.RERUN
    assert plan.back == first[late] - 1 > 0
    assert same_model(tmp_path / "without", fresh)
    assert not same_model(tmp_path / "without", parent)
    assert hashes(parent) == before
    rows = RunFolder.open(tmp_path / "without").clients()
    assert late not in {row["client"] for row in rows}


def test_a_client_of_the_selection_before_round_1_needs_a_run_from_the_start(tmp_path):
    run(tmp_path / "run", *FEW)
    ledger = Ledger(tmp_path / "run").read()
    chosen = next(entry for entry in ledger if entry.get("round") == 0)["asked"][0]
    plan = forget(tmp_path / "run", tmp_path / "without", of_client(tmp_path / "run", chosen))
    assert (plan.first, plan.back) == (0, None)
    run(tmp_path / "fresh", *FEW, f"forget.clients={chosen}")
    assert same_model(tmp_path / "without", tmp_path / "fresh")


STATIC = ("strategy.name=static", "strategy.criterion=random", "strategy.density=0.1")


def test_a_client_that_was_never_asked_changes_nothing(tmp_path):
    run(tmp_path / "run", *FEW, *STATIC, "run.rounds=2")
    never = next(c for c in range(8) if c not in asked(tmp_path / "run"))
    plan = forget(tmp_path / "run", tmp_path / "without", of_client(tmp_path / "run", never))
    assert (plan.certificate, plan.first) == (exact.UNUSED, None)
    assert same_model(tmp_path / "without", tmp_path / "run")
    run(tmp_path / "fresh", *FEW, *STATIC, "run.rounds=2", f"forget.clients={never}")
    assert same_model(tmp_path / "without", tmp_path / "fresh")


def test_a_pool_makes_most_deletions_empty(tmp_path):
    pooled = (*FEW, *STATIC, "fleet.pool=0.25", "run.rounds=6")
    run(tmp_path / "run", *pooled)
    parent = RunFolder.open(tmp_path / "run")
    found = [exact.planned(parent, of_client(parent.path, c)).certificate for c in range(8)]
    assert found.count(exact.UNUSED) == 6


def test_samples_go_back_to_the_first_round_of_who_trains_on_them(tmp_path):
    run(tmp_path / "run", *FEW, *STATIC)
    parent = RunFolder.open(tmp_path / "run")
    first = asked(parent.path)
    late = max(first, key=lambda client: first[client])
    ids = data.of(parent.config).ids(late)[:3]
    listed = tmp_path / "ids.txt"
    listed.write_text("# to forget\n" + "\n".join(map(str, ids)))
    target = target_of(parent.config, [], [], listed, False)
    plan = forget(parent.path, tmp_path / "without", target)
    assert plan.back == first[late] - 1
    named = ",".join(map(str, ids))
    run(tmp_path / "fresh", *FEW, *STATIC, f"forget.samples={named}")
    assert same_model(tmp_path / "without", tmp_path / "fresh")


def test_samples_that_are_only_tested_on_change_nothing(tmp_path):
    run(tmp_path / "run", *FEW, *STATIC)
    parent = RunFolder.open(tmp_path / "run")
    listed = tmp_path / "ids.txt"
    listed.write_text(str(data.of(parent.config).test_ids(0)[0]))
    target = target_of(parent.config, [], [], listed, False)
    assert exact.planned(parent, target).certificate == exact.UNUSED


def test_a_class_is_rerun_from_the_start(tmp_path):
    run(tmp_path / "run", *FEW, *STATIC, "run.rounds=2")
    target = target_of(RunFolder.open(tmp_path / "run").config, [], [3], None, False)
    plan = forget(tmp_path / "run", tmp_path / "without", target)
    assert plan.back is None
    run(tmp_path / "fresh", *FEW, *STATIC, "run.rounds=2", "forget.classes=3")
    assert same_model(tmp_path / "without", tmp_path / "fresh")


@pytest.mark.parametrize("strategy", ["pfedgate", "ditto", "fedper"])
def test_what_the_client_kept_is_gone_and_others_keep_theirs(tmp_path, strategy):
    settings = (*FEW, f"strategy.name={strategy}", "strategy.density=1.0", "run.rounds=4")
    run(tmp_path / "run", *settings)
    first = asked(tmp_path / "run")
    late = max(first, key=lambda client: first[client])
    forget(tmp_path / "run", tmp_path / "without", of_client(tmp_path / "run", late))
    run(tmp_path / "fresh", *settings, f"forget.clients={late}")
    assert same_model(tmp_path / "without", tmp_path / "fresh")
    kept = []
    for name in ("run", "without", "fresh"):
        folder = RunFolder.open(tmp_path / name)
        states = ClientStates(folder.path)
        states.restore(4, folder.checkpoint(4)["clients"])
        kept.append(states.all())
        states.close()
    assert late in kept[0]
    assert late not in kept[1]
    assert kept[1] == kept[2]


def test_devices_and_their_clock_are_those_of_the_run_without_it(tmp_path):
    settings = (*FEW, *STATIC, "fleet.profile=phones", "fleet.over_selection=0.5")
    run(tmp_path / "run", *settings)
    first = asked(tmp_path / "run")
    late = max(first, key=lambda client: first[client])
    forget(tmp_path / "run", tmp_path / "without", of_client(tmp_path / "run", late))
    run(tmp_path / "fresh", *settings, f"forget.clients={late}")
    assert same_model(tmp_path / "without", tmp_path / "fresh")
    ours, theirs = (RunFolder.open(tmp_path / n).summary() for n in ("without", "fresh"))
    assert ours["simulated_seconds"] == theirs["simulated_seconds"]


@pytest.mark.parametrize("strategy", ["fedasync", "fedbuff"])
def test_an_asynchronous_run_goes_back_to_before_the_client_started(tmp_path, strategy):
    settings = (*FEW, f"strategy.name={strategy}", "fleet.profile=phones", "run.rounds=6")
    run(tmp_path / "run", *settings)
    first = asked(tmp_path / "run")
    late = max(first, key=lambda client: first[client])
    forget(tmp_path / "run", tmp_path / "without", of_client(tmp_path / "run", late))
    run(tmp_path / "fresh", *settings, f"forget.clients={late}")
    assert same_model(tmp_path / "without", tmp_path / "fresh")


def test_forgetting_twice_forgets_both(tmp_path):
    run(tmp_path / "run", *FEW, *STATIC)
    one, two = sorted(asked(tmp_path / "run"))[:2]
    forget(tmp_path / "run", tmp_path / "first", of_client(tmp_path / "run", one))
    forget(tmp_path / "first", tmp_path / "both", of_client(tmp_path / "first", two))
    run(tmp_path / "fresh", *FEW, *STATIC, f"forget.clients={one},{two}")
    assert same_model(tmp_path / "both", tmp_path / "fresh")
    again = exact.planned(RunFolder.open(tmp_path / "both"), of_client(tmp_path / "both", one))
    assert again.certificate == exact.UNUSED


def test_an_interrupted_rerun_goes_on(tmp_path, monkeypatch):
    run(tmp_path / "run", *FEW, *STATIC)
    late = max(asked(tmp_path / "run").items(), key=lambda pair: pair[1])[0]
    target = of_client(tmp_path / "run", late)
    saved = RunFolder.save_checkpoint

    def interrupted(self, number, tree):
        saved(self, number, tree)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "save_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            forget(tmp_path / "run", tmp_path / "without", target)
    forget(tmp_path / "run", tmp_path / "without", target)
    run(tmp_path / "fresh", *FEW, *STATIC, f"forget.clients={late}")
    assert same_model(tmp_path / "without", tmp_path / "fresh")


def test_a_run_that_lost_its_early_checkpoints_starts_again(tmp_path):
    run(tmp_path / "run", *FEW, *STATIC, "run.keep_checkpoints=1")
    early = min(asked(tmp_path / "run").items(), key=lambda pair: pair[1])[0]
    plan = exact.planned(RunFolder.open(tmp_path / "run"), of_client(tmp_path / "run", early))
    assert plan.back is None
    assert "from the start" in plan.reason


def test_what_another_method_made_cannot_be_made_exact_afterwards(tmp_path):
    run(tmp_path / "run", *FEW, *STATIC)
    settings = (f"strategy.parent={tmp_path / 'run'}", "strategy.name=fine-tuning")
    run(tmp_path / "tuned", *FEW, "run.rounds=1", "forget.clients=1", *settings)
    with pytest.raises(ConfigError, match="unlearn from that run"):
        exact.check_parent(RunFolder.open(tmp_path / "tuned"))


@pytest.mark.parametrize("what", ["client", "samples"])
def test_with_clusters_the_others_are_not_run_again(tmp_path, what):
    """KNOT: whoever is in another cluster is asked nothing, and the bits are the fresh run's."""
    clusters = ("strategy.clusters=4", "strategy.density=0.3", "strategy.criterion=random")
    settings = (*FEW, "strategy.name=knot", *clusters, "fleet.clients_per_round=4")
    run(tmp_path / "run", *settings)
    parent = RunFolder.open(tmp_path / "run")
    first = asked(parent.path)
    late = max(first, key=lambda client: first[client])
    target = of_client(parent.path, late)
    if what == "samples":
        listed = tmp_path / "ids.txt"
        listed.write_text(str(data.of(parent.config).ids(late)[0]))
        target = target_of(parent.config, [], [], listed, False)
    forget(parent.path, tmp_path / "without", target)
    key = {"client": "clients", "samples": "samples"}[what]
    run(tmp_path / "fresh", *settings, f"forget.{key}={getattr(target.forget, key)}")
    assert same_model(tmp_path / "without", tmp_path / "fresh")
    rerun = RunFolder.open(tmp_path / "without").clients()
    trained = [row for row in rerun if row["kind"] == "train"]
    again = {row["client"] for row in trained if row["round"] >= first[late]}
    assert 0 < len(again) < len({row["client"] for row in parent.clients()}) / 2


def test_a_strategy_of_flowers_own_never_hears_of_a_forgotten_client(tmp_path):
    settings = (*FEW, "strategy.name=flwr.serverapp.strategy:FedAdam", "run.rounds=2")
    run(tmp_path / "run", *settings)
    plan = forget(tmp_path / "run", tmp_path / "without", of_client(tmp_path / "run", 3))
    assert plan.first <= 1
    run(tmp_path / "fresh", *settings, "forget.clients=3")
    assert same_model(tmp_path / "without", tmp_path / "fresh")
    assert 3 not in {row["client"] for row in RunFolder.open(tmp_path / "without").clients()}


@pytest.mark.parametrize("share", [0.5, 0.6, 1.0])
def test_in_a_pool_the_others_keep_their_places(tmp_path, share):
    settings = (*FEW, *STATIC, f"fleet.pool={share}", "run.rounds=4")
    run(tmp_path / "run", *settings)
    first = asked(tmp_path / "run")
    late = max(first, key=lambda client: first[client])
    forget(tmp_path / "run", tmp_path / "without", of_client(tmp_path / "run", late))
    run(tmp_path / "fresh", *settings, f"forget.clients={late}")
    assert same_model(tmp_path / "without", tmp_path / "fresh")


def test_a_strategy_of_flowers_own_that_asks_everyone_does_not_wait_for_who_is_gone(tmp_path):
    settings = (*FEW, "strategy.name=flwr.serverapp.strategy:FedAvg", "run.rounds=1")
    run(tmp_path / "run", *settings, "fleet.clients_per_round=8")
    plan = forget(tmp_path / "run", tmp_path / "without", of_client(tmp_path / "run", 3))
    assert plan.back is None
    rows = RunFolder.open(tmp_path / "without").clients()
    assert {row["client"] for row in rows if row["kind"] == "train"} == {0, 1, 2, 4, 5, 6, 7}


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    run(tmp_path / "run", *FEW, *STATIC)
    late = max(asked(tmp_path / "run").items(), key=lambda pair: pair[1])
    newest = tmp_path / "run" / "checkpoints" / f"{late[1] - 1:06d}.json"
    newest.write_bytes(newest.read_bytes()[:-20])
    plan = forget(tmp_path / "run", tmp_path / "without", of_client(tmp_path / "run", late[0]))
    assert plan.back == late[1] - 2
    run(tmp_path / "fresh", *FEW, *STATIC, f"forget.clients={late[0]}")
    assert same_model(tmp_path / "without", tmp_path / "fresh")


@pytest.mark.parametrize("name", ["append_metrics", "append_clients"])
def test_a_rerun_that_was_cut_short_while_it_was_prepared_is_prepared_again(
    tmp_path, monkeypatch, name
):
    run(tmp_path / "run", *FEW, *STATIC)
    late = max(asked(tmp_path / "run").items(), key=lambda pair: pair[1])[0]
    target, plain = of_client(tmp_path / "run", late), getattr(RunFolder, name)

    def interrupted(self, rows):
        plain(self, rows)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            forget(tmp_path / "run", tmp_path / "without", target)
    plan = forget(tmp_path / "run", tmp_path / "without", target)
    run(tmp_path / "fresh", *FEW, *STATIC, f"forget.clients={late}")
    assert same_model(tmp_path / "without", tmp_path / "fresh")
    repeated = RunFolder.open(tmp_path / "without").metrics()[plan.back + 1 :]
    assert len(repeated) == plan.repeated
