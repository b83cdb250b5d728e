"""One seed, one model: the same bits on every engine and any number of workers."""

import hashlib

import pytest

from tests.tiny_runs import model_bytes, rows, run

SHORT = ("run.rounds=2", "fleet.clients_per_round=3")


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    out = tmp_path_factory.mktemp("inline") / "run"
    return out, run(out, *SHORT)


@pytest.mark.parametrize(
    ("engine", "workers"), [("ray", 1), ("ray", 2), ("flower", 2)], ids=["ray-1", "ray-2", "flower"]
)
def test_same_bits_as_inline(inline, tmp_path, engine, workers):
    reference, summary = inline
    out = tmp_path / "run"
    other = run(out, *SHORT, f"engine.name={engine}", f"engine.workers={workers}")
    assert (
        hashlib.sha256(model_bytes(out)).digest() == hashlib.sha256(model_bytes(reference)).digest()
    )
    assert (out / "mask.safetensors").read_bytes() == (reference / "mask.safetensors").read_bytes()
    assert rows(out) == rows(reference)
    ignored = {"wall_seconds", "run"}
    assert {k: v for k, v in other.items() if k not in ignored} == {
        k: v for k, v in summary.items() if k not in ignored
    }
