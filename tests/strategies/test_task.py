"""What the server starts with, and what it refuses before a run has a folder."""

import numpy as np
import pytest

from fedsparse import models
from fedsparse.errors import ModelError, TrainingError
from strategies.task import Task
from tests.tiny_runs import tiny


def stored(path, x):
    np.savez(path, x=x, y=np.arange(len(x)) % 3)
    return ("data.name=npz", f"data.path={path}", "data.public_samples=6", "fleet.clients=2")


@pytest.mark.parametrize("model", ["mlp", "linear"])
def test_integers_are_tokens_and_a_model_of_numbers_refuses_them_with_the_remedy(tmp_path, model):
    samples = np.zeros((60, 9), np.uint8)
    keys = stored(tmp_path / "flat.npz", samples)
    with pytest.raises(ModelError, match="save them as floats"):
        Task.of(tiny(*keys, "data.samples=60", f"model.name={model}"))
    Task.of(tiny(*keys, "data.samples=60", "model.name=transformer"))


def test_a_model_of_tokens_refuses_numbers(tmp_path):
    keys = stored(tmp_path / "real.npz", np.zeros((60, 9), np.float32))
    with pytest.raises(ModelError, match="takes tokens"):
        Task.of(tiny(*keys, "data.samples=60", "model.name=transformer"))


def test_pretraining_that_diverges_names_its_own_rate():
    task = Task.of(tiny("model.name=mlp"))
    with pytest.raises(TrainingError, match=r"lower strategy\.pretrain_lr \(now 1e\+30\)"):
        task.pretrain(5, 1e30)


def test_a_model_that_cannot_be_copied_is_tested_before_anything_goes_on():
    task = Task.of(tiny("model.name=mlp", "client.backend=torch"))
    state = models.get_state(task.model)
    expected = task.evaluate(state)

    def refuse(memo: object) -> None:
        raise RuntimeError("this module holds a lock")

    alone = Task.of(tiny("model.name=mlp", "client.backend=torch"))
    alone.model.__deepcopy__ = refuse
    test = alone.test_of(state)
    models.load_state(alone.model, {name: value * 0 for name, value in state.items()})
    assert test() == expected
