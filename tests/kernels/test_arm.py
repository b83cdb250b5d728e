"""The kernels on aarch64, under emulation: the same round, fewer instructions where sparse."""

import subprocess

import pytest

from benchmarks import arm_training
from benchmarks.native_jobs import Case, prepare


@pytest.fixture(scope="module")
def arm():
    try:
        return arm_training.Arm.made()
    except arm_training.Lacking as lacking:
        pytest.skip(str(lacking))


def test_a_round_on_arm_is_that_on_x86_and_sparse_is_cheaper(arm):
    dense = arm_training.measure(arm, Case("paper-cnn", 1.0, "dense"))
    sparse = arm_training.measure(arm, Case("paper-cnn", 0.05, "sparse"))
    assert dense.difference < 1e-5
    assert sparse.difference < 1e-5
    assert 0 < 3 * sparse.instructions < dense.instructions


def test_a_file_that_is_cut_off_is_refused(arm, tmp_path):
    job = tmp_path / "job"
    prepare(Case("linear", 1.0, "dense")).write(job)
    job.write_bytes(job.read_bytes()[:-1])
    with pytest.raises(subprocess.CalledProcessError) as refused:
        arm.train(job, tmp_path / "result", 1, count=False)
    assert (refused.value.returncode, refused.value.stderr) == (64, f"node: {job}: is cut off\n")
    assert not (tmp_path / "result").exists()
