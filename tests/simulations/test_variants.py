"""What a comparison is asked to vary, and the runs that follow from it."""

import shlex

import pytest

from fedsparse.config import override, resolve
from fedsparse.errors import ConfigError
from simulations.variants import (
    Asked,
    Point,
    Variant,
    asked_by,
    densities_of,
    points_of,
    seeds_of,
    words_of,
)
from tests.tiny_runs import BASE, tiny


def of(*names):
    return tuple(Variant.of_strategy(name) for name in names)


def points(asked, *assignments, engine=None, tree=BASE):
    return points_of(tree, ["tiny.toml"], assignments, asked, engine)


def test_points_are_variants_by_densities_by_seeds():
    found = points(Asked(of("static", "fedtiny"), (0.05, 0.2), (3, 4)))
    assert [(p.variant, p.density, p.seed) for p in found] == [
        (variant, density, seed)
        for variant in ("static", "fedtiny")
        for density in (0.05, 0.2)
        for seed in (3, 4)
    ]
    assert all(p.config.strategy["density"] == p.density for p in found)
    assert all(p.config.run.seed == p.seed for p in found)


def test_a_dense_strategy_is_run_once_a_seed():
    found = points(Asked(of("fedavg", "static"), (0.05, 0.2), (0, 1)))
    dense = [p for p in found if p.variant == "fedavg"]
    assert [(p.density, p.seed) for p in dense] == [(1.0, 0), (1.0, 1)]


def test_a_density_set_for_all_is_none_for_a_dense_strategy():
    found = points(Asked(of("fedavg", "static")), "strategy.density=0.3")
    assert [p.density for p in found] == [1.0, 0.3]


def test_a_variant_keeps_the_density_that_it_sets():
    own = Variant("thin", ("strategy.name=static", "strategy.density=0.01"))
    found = points(Asked((own, *of("static")), (0.05, 0.2)))
    assert [(p.variant, p.density) for p in found] == [
        ("thin", 0.01),
        ("static", 0.05),
        ("static", 0.2),
    ]


def test_without_lists_the_configuration_says_density_and_seed():
    (point,) = points(Asked(of("static")), "run.seed=7", "strategy.density=0.3")
    assert (point.density, point.seed) == (0.3, 7)


@pytest.mark.parametrize(
    ("own", "option", "engine"),
    [(None, None, "inline"), ("auto", None, "inline"), ("ray", None, "ray"), (None, "ray", "ray")],
)
def test_points_run_inline_unless_told_otherwise(own, option, engine):
    tree = {**BASE, "engine": {"name": own} if own else {}}
    (point,) = points(Asked(of("static")), engine=option, tree=tree)
    assert point.config.engine.name == engine


@pytest.mark.parametrize("name", ["fedavg", "static", "fedtiny", "thin"])
def test_the_command_repeats_the_point(name):
    """A density for all, a key of one strategy alone, and a variant's own changes."""
    thin = Variant("thin", ("strategy.name=static", "client.lr=0.25", "client.optimizer=adam"))
    asked = Asked((*of("fedavg", "static", "fedtiny"), thin), (), (5,))
    found = points(asked, "strategy.density=0.3", "strategy.alpha=0.2", "client.lr=0.5")
    point = next(p for p in found if p.variant == name)
    words = shlex.split(point.command)
    assert words[:3] == ["fedsparse", "run", "tiny.toml"]
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    seed = words[words.index("--seed") + 1]
    assert resolve(override(BASE, [*sets, f"run.seed={seed}"])) == point.config


def test_folders_of_points_are_distinct_and_plain():
    config = tiny()
    names = ["a", "A", "a b", "a-b", "a/b", "../a", "ä", "..", "x" * 60, "x" * 59, "mod:Class"]
    found = [Point(n, d, 0, config, "") for n in names for d in (0.1, 0.1000001)]
    slugs = [point.slug for point in found]
    assert len(set(slugs)) == len(slugs)
    for slug in slugs:
        assert set(slug) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        assert not slug.startswith(".")


def test_a_variant_is_read_from_an_option():
    found = Variant.parse('prox: strategy.name=fedavg data.path="a b.npz"')
    assert found == Variant("prox", ("strategy.name=fedavg", "data.path=a b.npz"))


@pytest.mark.parametrize(
    "text", ["", "prox", "prox:", ": client.lr=0.1", "prox client.lr=0.1", "p: 'client.lr=1"]
)
def test_what_is_no_variant_is_refused(text):
    with pytest.raises(ConfigError, match="example: 'prox: "):
        Variant.parse(text)


def test_tables_of_a_configuration():
    tree = {
        "variant": [{"name": "slow", "set": ["client.lr=0.01"]}],
        "compare": {"seeds": [1, 2], "densities": [0.1, 1], "baseline": "slow"},
    }
    assert asked_by(tree) == Asked(
        (Variant("slow", ("client.lr=0.01",)),), (0.1, 1.0), (1, 2), "slow"
    )
    assert asked_by(BASE) == Asked()


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"compare": {"seed": [1]}}, "'compare.seed'; did you mean 'seeds'"),
        ({"compare": 3}, "compare = 3"),
        ({"compare": {"baseline": 3}}, "compare.baseline = 3"),
        ({"compare": {"seeds": 3}}, "compare.seeds = 3"),
        ({"compare": {"seeds": [True]}}, "compare.seeds: True"),
        ({"compare": {"densities": []}}, r"compare.densities = \[\]"),
        ({"variant": {"name": "a"}}, r"\[\[variant\]\]"),
        ({"variant": ["a"]}, "variant 1 is no table"),
        ({"variant": [{"set": ["client.lr=1"]}]}, "variant 1 has no name"),
        ({"variant": [{"name": "a", "set": []}]}, r"variant 'a': set = \[\]"),
        ({"variant": [{"name": "a", "set": [3]}]}, r"variant 'a': set = \[3\]"),
        (
            {"variant": [{"name": "a", "sets": ["b"]}]},
            "key 'sets' of variant 1; did you mean 'set'",
        ),
        ({"variant": [{"name": "a\nb", "set": ["client.lr=1"]}]}, "one line"),
    ],
)
def test_wrong_tables_are_refused(tree, said):
    with pytest.raises(ConfigError, match=said):
        asked_by(tree)


def test_lists_of_options():
    assert words_of("a, b", "--x") == ["a", "b"]
    assert words_of(None, "--x") is None
    assert densities_of(["0.01", "1"], "--densities") == (0.01, 1.0)
    assert seeds_of(["0", "12"], "--seeds") == (0, 12)


@pytest.mark.parametrize("text", ["", ",", "a,,b", "a,"])
def test_empty_items_are_refused(text):
    with pytest.raises(ConfigError, match="an item is empty"):
        words_of(text, "--strategies")


@pytest.mark.parametrize("item", ["0", "-0.1", "1.5", "nan", "inf", "x", True, None])
def test_densities_out_of_range_are_refused(item):
    with pytest.raises(ConfigError, match="--densities: "):
        densities_of([item], "--densities")


@pytest.mark.parametrize("item", ["-1", "1.5", 1.5, "x", "", "٣", "1" * 19, True])
def test_seeds_that_are_no_whole_numbers_are_refused(item):
    with pytest.raises(ConfigError, match="--seeds: "):
        seeds_of([item], "--seeds")


def test_the_same_twice_is_refused():
    with pytest.raises(ConfigError, match="twice"):
        seeds_of(["1", "2", "1"], "--seeds")
    with pytest.raises(ConfigError, match="'static' stands there twice"):
        points(Asked(of("static", "static")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("client.lrr=0.1",), "variant 'a': unknown key 'client.lrr'; did you mean 'client.lr'"),
        (("strategy.name=fedavgg",), "variant 'a': unknown strategy 'fedavgg'"),
        (("client.lr",), "variant 'a': --set 'client.lr'"),
        (("client.lr=-1",), "variant 'a': client.lr = -1"),
        (("run.seed=3",), "variant 'a' sets run.seed"),
        (("strategy.name=fedavg", "stratgy.density=1"), r"variant 'a': unknown section"),
    ],
)
def test_what_a_variant_may_not_say(changes, said):
    with pytest.raises(ConfigError, match=said):
        points(Asked((Variant("a", changes),)))
