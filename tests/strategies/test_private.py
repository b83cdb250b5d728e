"""Privacy by client: what one client can move, how much noise there is, and what is refused."""

import itertools
import json
import types

import numpy as np
import pytest

from fedsparse.errors import ConfigError
from fedsparse.privacy.gaussian import system_normals
from fedsparse.sparsity import Mask
from strategies import foreign
from strategies.private import Private, clipped
from strategies.replies import Before, Reply
from strategies.task import Task
from tests.tiny_runs import model_bytes, rows, run, tiny

STATIC = ("strategy.name=static", "strategy.criterion=random", "model.name=mlp")
CLIP = "privacy.clip=0.5"
MASK = Mask.from_arrays({"w": np.arange(400).reshape(20, 20) % 4 == 0})
OLD = {"w": MASK["w"].astype(np.float32), "b": np.ones(20, np.float32)}


def rule(*assignments, clients=8):
    config = tiny(*STATIC, CLIP, f"fleet.clients={clients}", *assignments)
    return Private(Task.of(config))


def reply(client, scale):
    rng = np.random.default_rng(client)
    kept = {"w": OLD["w"][MASK["w"]], "b": OLD["b"]}
    moved = {n: v + np.float32(scale) * rng.standard_normal(v.shape) for n, v in kept.items()}
    return Reply(client, 10, {n: v.astype(np.float32) for n, v in moved.items()}, 0.1, None)


def before(number=1):
    return Before(number, OLD, MASK)


def flat(state):
    return np.concatenate([state["w"].reshape(-1), state["b"]]).astype(np.float64)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_without_a_client_the_sum_moves_by_the_clip_at_most(scale):
    private = rule("privacy.noise=0")
    replies = [reply(client, 0.3) for client in range(7)] + [reply(7, scale)]
    with_it, without = (flat(private(r, before())) for r in (replies, replies[:-1]))
    moved = np.linalg.norm(with_it - without) * 8
    assert moved <= 0.5 + 1e-5
    if scale >= 1:
        assert moved == pytest.approx(0.5, rel=1e-4), "an update that is long is cut to the clip"


def test_samples_that_a_client_tells_give_it_no_weight():
    private = rule("privacy.noise=0")
    many = [Reply(r.client, 10**9, r.kept, r.loss, None) for r in [reply(0, 1.0)]]
    np.testing.assert_array_equal(
        flat(private(many, before())), flat(private([reply(0, 1.0)], before()))
    )


def test_an_update_that_is_not_finite_counts_as_none():
    assert not clipped(np.array([1.0, np.nan]), 1.0).any()
    assert not clipped(np.array([1.0, np.inf]), 1.0).any()
    np.testing.assert_allclose(clipped(np.array([3.0, 4.0]), 1.0), [0.6, 0.8])
    np.testing.assert_array_equal(clipped(np.array([0.3, 0.4]), 1.0), [0.3, 0.4])


@pytest.mark.parametrize("entropy", ["seed", "system"])
def test_the_model_s_noise_is_sigma_times_the_clip_over_the_expected_clients(entropy):
    private = rule("privacy.noise=2", f"privacy.entropy={entropy}")
    kept = np.concatenate([MASK["w"].reshape(-1), np.ones(20, bool)])
    found = np.concatenate([(flat(private([], before(n))) - flat(OLD))[kept] for n in range(200)])
    wanted = 2 * 0.5 / 8
    assert len(found) == 200 * 120
    assert np.std(found) == pytest.approx(wanted, rel=0.04)  # 24,000 draws: 9 standard errors
    assert abs(np.mean(found)) < 6 * wanted / np.sqrt(len(found))


def test_what_is_pruned_gets_no_noise():
    state = rule()([reply(0, 1.0)], before())
    assert not state["w"][~MASK["w"]].any()
    assert state["w"][MASK["w"]].all()


def test_seeded_noise_is_another_each_round_and_the_same_again():
    private = rule()
    np.testing.assert_array_equal(private.noise(1, 9), private.noise(1, 9))
    assert (private.noise(1, 9) != private.noise(2, 9)).all()
    system = rule("privacy.entropy=system")
    assert (system.noise(1, 9) != system.noise(1, 9)).all()


def test_normals_of_the_system_are_normal():
    found = system_normals(200_000)
    assert abs(found.mean()) < 0.02
    assert found.std() == pytest.approx(1, abs=0.02)
    assert np.mean(np.abs(found) > 1.959964) == pytest.approx(0.05, abs=0.005)


def test_a_variance_that_noise_makes_negative_is_zero():
    old = {"norm.running_var": np.full(1000, 1e-6, np.float32)}
    found = rule()([], Before(1, old, None))["norm.running_var"]
    assert found.min() == 0
    assert found.max() > 0


@pytest.mark.parametrize("entropy", ["seed", "system"])
def test_everyone_is_in_a_poisson_round_by_a_coin_of_their_own(entropy):
    private = rule("fleet.clients_per_round=2", f"privacy.entropy={entropy}")
    drawn = [private.cohort(number) for number in range(1, 2001)]
    assert private.rate == 0.25
    sizes = np.array([len(cohort) for cohort in drawn])
    assert np.mean(sizes) == pytest.approx(2, abs=0.2)
    assert np.var(sizes) == pytest.approx(8 * 0.25 * 0.75, rel=0.25)
    there = np.bincount(np.concatenate([np.array(c, int) for c in drawn]), minlength=8) / 2000
    np.testing.assert_allclose(there, 0.25, atol=0.06)
    assert 0 in sizes, "nobody at all is a cohort, too"


@pytest.mark.parametrize("entropy", ["seed", "system"])
def test_a_fixed_cohort_always_has_its_size(entropy):
    more = ("fleet.clients_per_round=2", "privacy.sampling=fixed", f"privacy.entropy={entropy}")
    private = rule(*more)
    assert {len(set(private.cohort(number))) for number in range(1, 50)} == {2}


def test_a_run_keeps_account_goes_through_empty_rounds_and_is_the_same_again(tmp_path):
    more = (*STATIC, CLIP, "fleet.clients_per_round=1", "run.rounds=6", "run.seed=3")
    first = run(tmp_path / "a", *more)
    told = [row["epsilon"] for row in rows(tmp_path / "a")]
    asked = [row["clients_asked"] for row in rows(tmp_path / "a")]
    assert 0 in asked[1:], "the seed draws a round of nobody; it is a part of the promise"
    assert told[0] == 0.0
    assert all(a < b for a, b in itertools.pairwise(told))
    assert (first["epsilon"], first["delta"]) == (told[-1], 1e-5)
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["epsilon"] == told[-1]
    run(tmp_path / "b", *more)
    assert model_bytes(tmp_path / "a") == model_bytes(tmp_path / "b")


def test_without_privacy_or_noise_no_epsilon_is_told(tmp_path):
    assert run(tmp_path / "a", *STATIC, "run.rounds=1")["epsilon"] is None
    found = run(tmp_path / "b", *STATIC, CLIP, "privacy.noise=0", "run.rounds=1")
    assert (found["epsilon"], found["delta"]) == (None, None)


@pytest.mark.parametrize(
    ("assignments", "reason"),
    [
        ((CLIP,), r"privacy\.clip: 'fedtiny' learns from clients beside .* static"),
        (("strategy.name=finetune", CLIP), r"'finetune' learns from clients beside"),
        (("strategy.name=heterofl", CLIP), r"'heterofl' learns from clients beside"),
        (("strategy.name=fine-tuning", CLIP), r"'fine-tuning' learns from clients beside"),
        ((*STATIC, CLIP, "robust.rule=median"), r"leave out the keys of \[robust\]"),
        ((*STATIC, CLIP, "robust.max_norm=3"), r"leave out the keys of \[robust\]"),
        ((*STATIC, CLIP, "fleet.profile=phones"), r"leave fleet\.profile out"),
        (
            (
                *STATIC,
                CLIP,
                "strategy.criterion=saliency",
                "strategy.scored_by=clients",
            ),
            r"scored_by = 'clients': .* set it to 'server'",
        ),
        (("strategy.name=flwr.serverapp.strategy:FedAvg", CLIP), r"choose static or fedavg"),
    ],
)
def test_what_is_not_accounted_for_is_refused_with_a_remedy(assignments, reason):
    with pytest.raises(ConfigError, match=reason):
        foreign.make(Task.of(tiny(*assignments)))


def test_a_method_on_top_of_a_private_one_vouches_for_itself():
    from strategies.fedavg import FedAvg

    sub = types.new_class("Sub", (FedAvg,))
    with pytest.raises(ConfigError, match="learns from clients"):
        sub(Task.of(tiny("strategy.name=fedavg", CLIP)))
