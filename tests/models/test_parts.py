"""Parts of a model by rule: names, shapes and order that server and clients agree on."""

import pytest

from clients.job import Built
from fedsparse import models
from fedsparse.description import Description
from fedsparse.errors import ConfigError
from fedsparse.models.parts import copied, copy_of, part, part_shapes
from strategies.task import Task
from tests.tiny_runs import tiny


def cnn():
    return models.build("cnn", input_shape=(1, 8, 8), classes=10, width=0.5)


@pytest.mark.parametrize("rule", ["", "head", "body", "unnormalised", "none"])
def test_a_parts_shapes_are_those_of_the_model(rule):
    model = cnn()
    state = models.get_state(model)
    found = part_shapes(model, rule)
    assert tuple(found) == part(model, rule)
    assert all(shape == state[name].shape for name, shape in found.items())


def test_copies_are_the_whole_model_with_a_number_before_each_name():
    model = cnn()
    whole = part_shapes(model, "")
    found = part_shapes(model, "copies-12")
    assert list(found) == [f"{number}.{name}" for number in range(12) for name in whole]
    assert copied(11, "fc1.bias") == "11.fc1.bias"
    for number in (0, 1, 11):  # 1 is not 11
        assert copy_of(number, found) == whole


@pytest.mark.parametrize("rule", ["copies-", "copies-two", "copies--1", "heads"])
def test_another_rule_is_refused(rule):
    with pytest.raises(ConfigError, match=f"unknown part of a model '{rule}'"):
        part_shapes(cnn(), rule)


@pytest.mark.parametrize("rule", ["head", "unnormalised", "copies-2"])
def test_server_and_clients_agree(rule):
    task = Task.of(tiny())
    key = ("cnn", 0.5, (1, 8, 8), 10)
    told = Description.of(task.model, key[2])
    assert Built(key).part(rule) == Built(key, told).part(rule) == task.part(rule)


@pytest.mark.parametrize("rule", ["head", "body"])
def test_a_model_of_one_layer_has_no_parts(rule):
    model = models.build("linear", input_shape=(8,), classes=3, width=1.0)
    with pytest.raises(ConfigError, match=f"is all one layer and has no {rule} of its own"):
        part(model, rule)
