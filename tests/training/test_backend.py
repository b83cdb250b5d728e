"""What trains is chosen once, told in words, and makes no difference to what is learnt."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedsparse import messages, models, wire
from fedsparse.config import Config
from fedsparse.errors import ConfigError
from fedsparse.kernels import library
from fedsparse.kernels.rule import Rule
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask
from fedsparse.training import backend
from fedsparse.training.backend import Backend
from fedsparse.training.native import NativeModel
from fedsparse.training.torch_model import TorchModel
from strategies.task import Task, masked
from tests.clients.test_client_app import content, train
from tests.kernels.passes import needs_kernels
from tests.tiny_runs import tiny

SHAPE = (1, 8, 8)


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return models.build("cnn", input_shape=SHAPE, classes=10, width=0.25)


def resolved(model: nn.Module, *assignments: str, shape=SHAPE) -> tuple[Config, str]:
    return backend.resolve(tiny(*assignments), model, shape)


# -- the choice ---------------------------------------------------------------------------


@needs_kernels
def test_auto_is_native_with_the_thresholds_of_this_machine_written_out(monkeypatch):
    monkeypatch.setattr(backend, "measured", lambda: Rule(0.2, 0.35))
    config, said = resolved(cnn())
    assert config.client.backend == "native"
    assert (config.client.sparse_linear_below, config.client.sparse_conv_below) == (0.2, 0.35)
    assert said == f"native kernels ({library.describe()['instruction_set']})"
    monkeypatch.setattr(backend, "measured", lambda: pytest.fail("measured again"))
    assert backend.resolve(config, cnn(), SHAPE) == (config, said)


@needs_kernels
def test_a_threshold_that_is_set_stays(monkeypatch):
    monkeypatch.setattr(backend, "measured", lambda: Rule(0.2, 0.35))
    config, _ = resolved(cnn(), "client.sparse_conv_below=0.7")
    assert (config.client.sparse_linear_below, config.client.sparse_conv_below) == (0.2, 0.7)


def lacking(wanted: str = "") -> None:
    raise library.Unavailable("the kernels were not compiled when fedsparse was installed")


def transformer() -> nn.Module:
    return models.build("transformer", input_shape=(12,), classes=4, width=0.25)


WITHOUT = {
    "model": (transformer, (12,), (), "layer 'embedding' is an Embedding"),
    "precision": (cnn, SHAPE, ("client.precision=bf16",), "client.precision = 'bf16' is torch's"),
}


@needs_kernels
@pytest.mark.parametrize("case", WITHOUT)
def test_auto_is_torch_with_the_reason_and_native_names_the_remedy(case):
    make, shape, assignments, reason = WITHOUT[case]
    config, said = resolved(make(), *assignments, shape=shape)
    assert config.client.backend == "torch"
    assert said.startswith(f"torch: {reason}")
    with pytest.raises(ConfigError) as caught:
        resolved(make(), *assignments, "client.backend=native", shape=shape)
    assert str(caught.value).startswith(f"client.backend = 'native': {reason}")
    assert str(caught.value).endswith("; set client.backend to 'auto' or 'torch'")
    assert "\n" not in str(caught.value)


def test_without_kernels_runs_use_torch_and_say_so(monkeypatch):
    monkeypatch.setattr(library, "load", lacking)
    config, said = resolved(cnn())
    assert config.client.backend == "torch"
    assert said == "torch: the kernels were not compiled when fedsparse was installed"
    model = cnn()
    loaded = Backend(model, SHAPE, config.client).load(models.get_state(model))
    assert isinstance(loaded, TorchModel)
    with pytest.raises(ConfigError, match=r"not compiled .*; set client\.backend to 'auto'"):
        resolved(cnn(), "client.backend=native")


def test_torch_is_torch_without_a_word_of_kernels(monkeypatch):
    monkeypatch.setattr(library, "load", lambda: pytest.fail("loaded"))
    assert resolved(cnn(), "client.backend=torch")[1] == "torch"


def test_on_an_accelerator_auto_is_torch():
    config, said = resolved(cnn(), "engine.device=cuda")
    assert (config.client.backend, said) == ("torch", "torch on cuda")
    with pytest.raises(ConfigError, match=r"client\.backend = native trains on the CPU"):
        tiny("engine.device=cuda", "client.backend=native")


@needs_kernels
@pytest.mark.parametrize(
    ("switch", "expected"),
    [
        ("off", "torch: the kernels are switched off by FEDSPARSE_KERNELS=off"),
        ("baseline", "native kernels (baseline)"),
    ],
)
def test_the_environment_chooses_an_instruction_set_or_none(switch, expected, tmp_path):
    code = """
from fedsparse import models
from fedsparse.config import ClientConfig, Config
from fedsparse.training import backend
config = Config(client=ClientConfig(sparse_linear_below=0.1, sparse_conv_below=0.1))
print(backend.resolve(config, models.build("mlp", input_shape=(4,), classes=2), (4,))[1])
"""
    environment = {**os.environ, "FEDSPARSE_KERNELS": switch, "XDG_CACHE_HOME": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.stdout.strip() == expected


@needs_kernels
def test_an_instruction_set_that_is_not_there_is_named():
    with pytest.raises(library.Unavailable, match="no form 'mmx' for this processor"):
        library.load("mmx")


# -- both are used alike ------------------------------------------------------------------


@needs_kernels
def test_both_models_hold_and_give_back_the_same():
    model = cnn()
    rng = np.random.default_rng(0)
    shapes = models.shapes(model, models.prunable(model))
    mask = Mask.from_arrays({n: rng.random(shape) < 0.3 for n, shape in shapes.items()})
    state = masked(models.get_state(model), mask)
    settings = tiny("client.sparse_linear_below=0.5", "client.sparse_conv_below=0.5").client
    found = {
        kind: Backend(model, SHAPE, settings.model_copy(update={"backend": kind})).load(state, mask)
        for kind in ("torch", "native")
    }
    assert isinstance(found["torch"], TorchModel)
    assert isinstance(found["native"], NativeModel)
    for read in ("whole", "kept"):
        torchs, natives = (getattr(found[kind], read)() for kind in ("torch", "native"))
        assert list(torchs) == list(natives) == list(state)
        for name, value in torchs.items():
            np.testing.assert_array_equal(natives[name], value, strict=True)


WIDE = ("model.name=cnn", "model.width=0.5", "data.samples=240", "client.batch_size=16")


def reply(kind: str, mask: Mask | None, plan: Plan, *assignments: str) -> dict[str, np.ndarray]:
    """Return a client's model, figures and gradients as one backend gives them."""
    rule = ("client.sparse_linear_below=0.3", "client.sparse_conv_below=0.3")
    task = Task.of(tiny(*WIDE, *rule, f"client.backend={kind}", *assignments))
    state = masked(models.get_state(task.model), mask)
    found = content(train(task, state, mask, plan))
    masks = () if mask is None else (mask,)
    decoded = wire.decode(wire.unpack(found[messages.ARRAYS]), task.schema, masks=masks)
    everything = {**decoded.state, "metrics": np.array(list(found[messages.METRICS].values()))}
    if messages.GROWTH in found:
        shapes = tuple((name, task.shapes[name]) for name in task.prunable if name in plan.grow)
        grown = wire.decode(wire.unpack(found[messages.GROWTH]), wire.Schema(shapes))
        everything |= {f"growth of {name}": value for name, value in grown.state.items()}
    return everything


GROW = {"fc1.weight": 11, "conv1.weight": 4}


@needs_kernels
@pytest.mark.parametrize(
    ("density", "plan", "assignments"),
    [
        (1.0, Plan(round=1), ()),
        (0.2, Plan(round=2, proximal_mu=0.1), ("client.weight_decay=0.01",)),
        (0.2, Plan(round=1, grow=GROW, samples=24), ()),
        (0.2, Plan(round=1, l1=0.01), ()),
        (0.2, Plan(round=1), ("client.optimizer=adam", "client.lr=0.001")),
    ],
    ids=["dense", "static", "fedtiny", "l1", "adam"],
)
def test_a_client_replies_the_same_on_both(density, plan, assignments):
    shapes = Task.of(tiny(*WIDE)).shapes
    rng = np.random.default_rng(0)
    mask = Mask.from_arrays({n: np.asarray(rng.random(s) < density) for n, s in shapes.items()})
    mask = None if density == 1 else mask
    torchs, natives = (reply(kind, mask, plan, *assignments) for kind in ("torch", "native"))
    assert list(torchs) == list(natives)
    assert len(torchs) > 10
    for name, value in torchs.items():
        assert np.abs(natives[name] - value).max() <= 1e-4 * np.abs(value).max(), name
        assert np.array_equal(natives[name] != 0, value != 0), name
