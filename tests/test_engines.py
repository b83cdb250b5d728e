"""One seed, one model: the same bits on every engine and any number of workers."""

import hashlib
import tomllib

import pytest

from tests.kernels.passes import needs_kernels
from tests.tiny_runs import model_bytes, rows, run

SHORT = ("run.rounds=2", "fleet.clients_per_round=3")


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    """Return a run in this process by backend, made when it is first asked for."""
    made = {}

    def of(backend):
        if backend not in made:
            out = tmp_path_factory.mktemp("inline") / "run"
            made[backend] = out, run(out, *SHORT, f"client.backend={backend}")
        return made[backend]

    return of


@pytest.mark.parametrize(
    ("engine", "workers", "backend"),
    [
        pytest.param("ray", 2, "native", marks=needs_kernels),
        pytest.param("flower", 2, "native", marks=needs_kernels),
        ("ray", 1, "torch"),
    ],
)
def test_same_bits_as_inline(inline, tmp_path, engine, workers, backend):
    reference, summary = inline(backend)
    out = tmp_path / "run"
    chosen = (f"engine.name={engine}", f"engine.workers={workers}", f"client.backend={backend}")
    other = run(out, *SHORT, *chosen)
    assert (
        hashlib.sha256(model_bytes(out)).digest() == hashlib.sha256(model_bytes(reference)).digest()
    )
    assert (out / "mask.safetensors").read_bytes() == (reference / "mask.safetensors").read_bytes()
    assert rows(out) == rows(reference)
    ignored = {"wall_seconds", "run"}
    assert {k: v for k, v in other.items() if k not in ignored} == {
        k: v for k, v in summary.items() if k not in ignored
    }


@needs_kernels
def test_a_run_that_leaves_it_open_trains_natively_and_writes_down_how(inline, tmp_path):
    out = tmp_path / "run"
    run(out, *SHORT)
    written = tomllib.loads((out / "config.toml").read_text())["client"]
    assert written["backend"] == "native"
    assert 0 <= written["sparse_linear_below"] <= 1
    assert 0 <= written["sparse_conv_below"] <= 1
    assert model_bytes(out) == model_bytes(inline("native")[0])
    assert model_bytes(out) != model_bytes(inline("torch")[0])
