"""What a request means, and the requests that mean nothing."""

import pytest

from fedsparse.errors import ConfigError
from simulations.unlearning.target import Target, forgotten_before, read_samples, target_of, without
from tests.tiny_runs import tiny


def asked(clients=(), classes=(), samples=None, backdoor=False, config=None) -> Target:
    return target_of(config or tiny(), clients, classes, samples, backdoor)


def test_a_target_says_what_it_is():
    assert asked(clients=[3]).words == "client 3"
    assert asked(clients=[2, 0]).words == "clients 0, 2"
    assert asked(classes=[7, 3]).words == "classes 3, 7"
    assert asked(classes=[7]).forget.classes == "7"


@pytest.mark.parametrize("content", ["5\n7\n6\n", "5, 6,7", "# who asked\n5 # first\n\n6,7\n"])
def test_a_file_names_one_sample_a_line_or_several(tmp_path, content):
    path = tmp_path / "ids.txt"
    path.write_text(content)
    assert sorted(read_samples(path)) == [5, 6, 7]
    target = asked(samples=path)
    assert (target.forget.samples, target.words) == ("5-7", "3 samples")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "names no sample"),
        ("# nothing\n", "names no sample"),
        ("1\n2\n1\n", "names sample 1 2 times"),
        ("1\nx\n", "line 2: 'x' is no sample id"),
        ("-1\n", "is no sample id"),
        ("1.5\n", "is no sample id"),
        ("3-5\n", "is no sample id"),
    ],
)
def test_a_file_of_anything_else_is_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "ids.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_samples(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        read_samples(tmp_path / "gone")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_samples(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        read_samples(tmp_path / "bytes")


def test_exactly_one_kind_is_named():
    for wrong in ({}, {"clients": [1], "classes": [2]}, {"classes": [1], "backdoor": True}):
        with pytest.raises(ConfigError, match="name what is to be forgotten"):
            asked(**wrong)


def test_unknown_clients_and_a_backdoor_that_nobody_planted_are_refused():
    with pytest.raises(ConfigError, match="there is no client 4; the run's are 0 to 3"):
        asked(clients=[4])
    with pytest.raises(ConfigError, match="no client of this run planted one"):
        asked(backdoor=True)
    poisoned = tiny("attack.clients=1", "attack.label=7")
    assert asked(backdoor=True, config=poisoned).words == "client 1"


def test_what_was_forgotten_before_stays_forgotten():
    config = tiny("forget.clients=1")
    both = without(config, asked(clients=[2]))
    assert both.forget.clients == "1-2" or both.forget.clients == "1,2"
    assert without(config, asked(classes=[3])).forget.model_dump() == {
        "clients": "1",
        "classes": "3",
        "samples": None,
    }
    assert forgotten_before(both, asked(clients=[1]))
    assert not forgotten_before(both, asked(clients=[1, 3]))


def test_forgetting_everyone_is_refused():
    with pytest.raises(ConfigError, match="leaves no client to train"):
        without(tiny(), asked(clients=[0, 1, 2, 3]))
