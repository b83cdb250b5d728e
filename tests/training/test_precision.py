"""bfloat16 arithmetic: weights stay float32, and a processor without it is named."""

import numpy as np
import torch
from torch import nn

from fedsparse.config import ClientConfig
from fedsparse.data import Dataset
from fedsparse.training import local, precision


def test_bf16_stays_near_f32_and_leaves_weights_in_f32():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(64, 6)).astype(np.float32)
    data = Dataset(x, (x[:, 0] > 0).astype(np.int64), 2)
    trained = {}
    for name in ("f32", "bf16"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
        settings = ClientConfig(precision=name, batch_size=16, local_epochs=5)
        found = local.train(model, data, settings, rng=np.random.default_rng(1))
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        trained[name] = found.loss
    assert 0 < abs(trained["bf16"] - trained["f32"]) < 0.05 * trained["f32"]


def test_a_processor_without_bf16_is_named(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags : fpu avx2 avx512f\n")
    assert "no bfloat16 arithmetic" in precision.caveat("bf16", info)
    assert precision.caveat("f32", info) == ""
    info.write_text("processor : 0\nflags : fpu avx512_bf16\n")
    assert precision.caveat("bf16", info) == ""
    info.write_text("processor : 0\nFeatures : fp asimd bf16\n")
    assert precision.caveat("bf16", info) == ""
    assert precision.caveat("bf16", tmp_path / "none") == ""
