"""The loop closed: export, measure, import, simulate; seconds follow from what was measured."""

import json

import pytest

pytest.importorskip("ai_edge_litert", reason="pip install 'fedsparse[export]'")

from fedsparse.runs import RunFolder
from tests.command_line import invoke, tiny_toml
from tests.edge_export.on_device.exported_files import both, network
from tests.edge_export.on_device.test_measure import script

QUICK = ("model.name=mlp", "data.samples=240", "fleet.evaluate_clients=0", "strategy.name=static")


def simulated(folder, profile):
    """Run two rounds on a profile; return the rows of clients and the summary."""
    assignments = [word for key in QUICK for word in ("--set", key)]
    options = ("--out", folder / "run", "--json", "--set", f"fleet.profile={profile}")
    found = invoke("run", tiny_toml(folder), *options, *assignments)
    assert found.exit_code == 0, found.output
    return RunFolder.open(folder / "run").clients(), json.loads(found.stdout)


def check(rows, summary, name, flops):
    """Each client computes for its FLOPs over the profile's speed, and a round for its slowest."""
    assert {row["device"] for row in rows} == {name}
    for row in rows:
        assert row["compute_seconds"] == pytest.approx(row["train_flops"] / flops, rel=1e-9)
    slowest = [
        max(
            row["download_seconds"] + row["compute_seconds"] + row["upload_seconds"]
            for row in rows
            if row["round"] == number
        )
        for number in (1, 2)
    ]
    assert summary["simulated_seconds"] == pytest.approx(sum(slowest), rel=1e-9)


def test_a_run_on_this_machine_as_it_measured_itself(tmp_path):
    dense, sparse = both(tmp_path, sidecar=True)
    done = script(dense, sparse, "--seconds", 0.05, "--name", "here", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "device.json"
    assert invoke("devices", "import", path).exit_code == 0
    rows, summary = simulated(tmp_path, tmp_path / "device.toml")
    measured = [r["seconds"]["p50"] for r in json.loads(path.read_text())["results"]]
    macs, kept = network(0.9).macs()
    assert summary["density"] < kept / macs  # below the only point that a curve could have
    dense, sparse = 2 * macs / measured[0], 2 * kept / measured[1]
    if measured[1] > 0.97 * measured[0]:  # as on x86, where no sparse kernels run
        sparse = 0.0
    check(rows, summary, "here", max(sparse, summary["density"] * dense))


def test_a_run_on_a_core_that_was_only_emulated(tmp_path):
    """A clock is stated; 3 instructions a multiply-add densely, 2 of each kept one sparsely."""
    dense, sparse = both(tmp_path)
    macs, kept = network(0.9).macs()
    counted = {dense: 3 * macs, sparse: 2 * kept}
    ran = {"core": "cortex-a72", "runtime": "litert", "runtime_version": "2.3.0"}
    results = [{"file": str(f), **ran, "instructions": count} for f, count in counted.items()]
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"results": results}))
    found = invoke("devices", "import", path, "--clock", "1.5e6")
    assert found.exit_code == 0, found.output
    rows, summary = simulated(tmp_path, tmp_path / "counts.toml")
    # 2 FLOPs a multiply-add: 1.5e6 / 3 of them a second are 1 MFLOP/s, 1.5e6 / 2 are 1.5.
    assert summary["density"] < kept / macs
    check(rows, summary, "cortex-a72", 1.5e6)
