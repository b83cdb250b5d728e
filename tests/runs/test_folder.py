"""The run folder: made whole, used by one, rewound, finished; each mistake is one line."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from fedsparse.config import resolve
from fedsparse.errors import RunFolderError
from fedsparse.runs import RunFolder, tables
from fedsparse.sparsity.mask import Mask

CONFIG = resolve({"run": {"seed": 7}, "strategy": {"name": "flwr.serverapp.strategy:FedAvg"}})
COMMAND = "fedsparse run --preset demo --seed 7"


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run", CONFIG, command=COMMAND)


def client_row(round_number, client, **more):
    return {"round": round_number, "client": client, "kind": "train", "status": "ok", **more}


def message(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# -- creating and opening ------------------------------------------------------------------


def test_a_new_run_is_found_again_with_its_configuration_and_command(tmp_path):
    RunFolder.create(tmp_path / "deep" / "er" / "run", CONFIG, command=COMMAND)
    found = RunFolder.open(tmp_path / "deep" / "er" / "run")
    assert found.command == COMMAND
    assert found.config == CONFIG
    assert found.metrics() == found.clients() == found.checkpoints() == []
    assert not found.finished


def test_an_empty_folder_may_become_a_run(tmp_path):
    RunFolder.create(tmp_path, CONFIG, command=COMMAND)
    assert names(tmp_path) == ["config.toml", "run.json"]


def test_a_folder_with_another_run_is_refused_with_both_remedies(run):
    before = names(run.path)
    with pytest.raises(RunFolderError) as error:
        RunFolder.create(run.path, CONFIG, command=COMMAND)
    assert f"fedsparse resume {run.path}" in message(error)
    assert "another --out" in message(error)
    assert names(run.path) == before


def test_a_file_or_a_used_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder.create(tmp_path / "file", CONFIG, command=COMMAND)
    with pytest.raises(RunFolderError, match="not empty"):
        RunFolder.create(tmp_path, CONFIG, command=COMMAND)
    with pytest.raises(RunFolderError):
        RunFolder.create(tmp_path / "file" / "below", CONFIG, command=COMMAND)
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == ["file"]


def test_what_is_no_run_is_not_opened(tmp_path):
    (tmp_path / "file").write_text("")
    for path, named in [("none", "no run folder"), ("file", "not a run"), (".", "not a run")]:
        with pytest.raises(RunFolderError, match=named) as error:
            RunFolder.open(tmp_path / path)
        assert str(tmp_path) in message(error)


BROKEN = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b'{"command": 3}',
    b'{"command": "c"}',
    b'{"command": "c", "config": {}, "files": 3}',
    b"[" * 10**5,
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_mark_is_named(run, content):
    (run.path / "run.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"run\.json.*start again with another --out"):
        RunFolder.open(run.path)


@pytest.mark.parametrize("content", [b"", b"[run", b"\xff", b"[run]\nrounds = 0", b"[nope]", None])
def test_a_broken_configuration_is_named(run, content):
    path = run.path / "config.toml"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(
        RunFolderError, match=r"'.*config\.toml'.*again with another --out"
    ) as error:
        _ = RunFolder.open(run.path).config
    message(error)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed = 7", "seed = 8", "run.seed is 8, but the run began with 7"),
        ("clients = 10\n", "clients = 10\nclients_per_round = 2\n", "with unset"),
        ("density = 1.0", "eta = 1.0", "strategy.eta is 1.0, but the run began with unset"),
    ],
)
def test_a_configuration_that_was_edited_is_named_by_the_key(run, old, new, said):
    path = run.path / "config.toml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(RunFolderError) as error:
        _ = RunFolder.open(run.path).config
    assert said in message(error)
    assert "put it back" in message(error)


def test_a_run_from_before_a_key_was_there_has_its_default(run):
    path = run.path / "config.toml"
    path.write_text(path.read_text().replace("keep_norms = false\n", ""))
    mark = json.loads((run.path / "run.json").read_text())
    del mark["config"]["run"]["keep_norms"]
    (run.path / "run.json").write_text(json.dumps(mark))
    assert RunFolder.open(run.path).config == run.config


def test_a_key_of_another_makers_strategy_may_not_vanish(tmp_path):
    section = {"name": "flwr.serverapp.strategy:FedAdam", "eta": 0.5}
    run = RunFolder.create(tmp_path / "run", resolve({"strategy": section}), command=COMMAND)
    path = run.path / "config.toml"
    path.write_text(path.read_text().replace("eta = 0.5\n", ""))
    with pytest.raises(
        RunFolderError, match=r"strategy\.eta is unset, but the run began with 0\.5"
    ):
        _ = RunFolder.open(run.path).config


def test_the_engine_may_change_for_no_result_depends_on_it(run):
    path = run.path / "config.toml"
    text = path.read_text().replace('name = "auto"\ndevice', 'name = "inline"\nworkers = 3\ndevice')
    path.write_text(text)
    assert RunFolder.open(run.path).config.engine.workers == 3


CAUSES = [
    (errno.ENOSPC, "full"),
    (errno.EDQUOT, "full"),
    (errno.EROFS, "permissions"),
    (errno.EACCES, "permissions"),
    (errno.EIO, "Input/output error"),
]


def failing(monkeypatch, module, name, code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, name, fail)


@pytest.mark.parametrize(("code", "named"), CAUSES)
@pytest.mark.parametrize("call", ["mkdir", "fsync", "replace", "rename"])
def test_a_failed_creation_leaves_nothing(tmp_path, monkeypatch, call, code, named):
    with monkeypatch.context() as patch:
        failing(patch, os, call, code)
        with pytest.raises(RunFolderError, match=named) as error:
            RunFolder.create(tmp_path / "a" / "run", CONFIG, command=COMMAND)
        assert str(tmp_path / "a" / "run") in message(error)
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_creation_leaves_an_empty_folder_empty(tmp_path, monkeypatch, call):
    with monkeypatch.context() as patch:
        failing(patch, os, call, errno.ENOSPC)
        with pytest.raises(RunFolderError, match="full"):
            RunFolder.create(tmp_path, CONFIG, command=COMMAND)
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_place_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="permissions"):
        RunFolder.create(tmp_path / "run", CONFIG, command=COMMAND)


def test_what_a_killed_creation_left_is_removed_by_the_next(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leftover = tmp_path / f".run.tmp-{dead.pid}"
    (leftover / "checkpoints").mkdir(parents=True)
    living = tmp_path / f".run.tmp-{os.getppid()}"
    living.mkdir()
    RunFolder.create(tmp_path / "run", CONFIG, command=COMMAND)
    assert names(tmp_path) == [living.name, "run"]


# -- rows ----------------------------------------------------------------------------------


def test_rows_come_back_in_order_with_numpy_unwrapped_and_nan_as_null(run):
    run.append_metrics({"round": 0, "accuracy": np.float32(0.5), "loss": float("nan")})
    run.append_metrics({"round": np.int64(1), "layer_density": {"fc": np.array(0.25)}})
    assert run.metrics() == [
        {"round": 0, "accuracy": 0.5, "loss": None},
        {"round": 1, "layer_density": {"fc": 0.25}},
    ]


def test_a_torn_last_line_is_ignored_and_then_removed(run):
    run.append_metrics({"round": 0})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 1, "accu')
    assert run.metrics() == [{"round": 0}]
    run.append_metrics({"round": 1})
    assert run.metrics() == [{"round": 0}, {"round": 1}]


def test_a_broken_line_before_the_last_is_named(run):
    (run.path / "metrics.jsonl").write_text('{"round": 0}\n{"rou\n{"round": 2}\n')
    with pytest.raises(RunFolderError, match="line 2"):
        run.metrics()


def test_a_full_disk_keeps_the_rows_that_were_whole(run, monkeypatch):
    run.append_clients([client_row(1, 0)])
    with monkeypatch.context() as patch:
        failing(patch, os, "fsync", errno.ENOSPC)
        with pytest.raises(RunFolderError, match="full") as error:
            run.append_clients([client_row(1, 1)])
    assert str(run.path) in message(error)
    assert run.clients() == [client_row(1, 0)]


def test_a_value_that_json_lacks_is_refused_and_nothing_is_written(run):
    with pytest.raises(RunFolderError, match="JSON"):
        run.append_metrics({"round": 0, "x": object()})
    assert run.metrics() == []


METRICS = {
    "accuracy": None,
    "loss": None,
    "density": 1.0,
    "bytes_up": 1,
    "bytes_down": 2,
    "train_flops": 3.0,
    "peak_client_memory_bytes": 4,
    "clients_asked": 2,
    "seconds": 0.5,
}


def test_rewinding_drops_later_rounds_and_what_says_finished(run):
    for number in range(4):
        run.append_metrics({"round": number, **METRICS})
        run.append_clients([client_row(number, c, bytes_up=0, bytes_down=1) for c in range(2)])
        run.save_checkpoint(number, {"n": number})
    run.finish({"w": np.ones(2, np.float32)}, None, {"accuracy": 1.0})
    run.rewind(2)
    assert [row["round"] for row in run.metrics()] == [0, 1, 2]
    assert [row["round"] for row in run.clients()] == [0, 0, 1, 1, 2, 2]
    assert run.checkpoints() == [1, 2]
    assert not run.finished


def test_json_files_are_whole_or_as_before(run, monkeypatch):
    run.write_json("partition.json", {"classes": 2, "counts": np.eye(2, dtype=int)})
    with monkeypatch.context() as patch:
        failing(patch, os, "replace", errno.ENOSPC)
        with pytest.raises(RunFolderError, match="full"):
            run.write_json("partition.json", {})
    assert run.read_json("partition.json") == {"classes": 2, "counts": [[1, 0], [0, 1]]}
    assert names(run.path) == ["config.toml", "partition.json", "run.json"]
    with pytest.raises(RunFolderError, match=r"has no timings\.json"):
        run.read_json("timings.json")
    (run.path / "partition.json").write_text("{")
    with pytest.raises(RunFolderError, match="not valid JSON"):
        run.read_json("partition.json")


# -- the lock ------------------------------------------------------------------------------


def test_a_second_holder_is_refused_and_the_first_is_named(run):
    with (
        run.lock(),
        pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"),
        RunFolder.open(run.path).lock(),
    ):
        pass
    with run.lock():
        pass


def test_the_lock_of_a_killed_process_is_taken_over_and_its_leftovers_removed(run):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with run.lock():
            (run.path / ".model.safetensors.tmp-1").write_bytes(b"half")
            os.write(write, b"x")
            signal.pause()
    os.read(read, 1)
    try:
        with pytest.raises(RunFolderError, match=f"process {child}"), run.lock():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
    with run.lock():
        assert names(run.path) == [".lock", "config.toml", "run.json"]


# -- the end -------------------------------------------------------------------------------


def finished(path):
    run = RunFolder.create(path, CONFIG, command=COMMAND)
    run.append_clients([client_row(1, 0, loss=0.5, device="phone"), client_row(1, 1, device=3)])
    state = {"b": np.ones(3, np.float32), "a": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    mask = Mask.from_arrays({"a": np.eye(3, 2, dtype=bool)})
    run.finish(state, mask, {"accuracy": np.float64(0.75), "loss": float("inf")})
    return run, state, mask


def test_a_finished_run_holds_its_model_mask_clients_and_summary(tmp_path):
    run, state, mask = finished(tmp_path / "run")
    assert run.finished
    assert run.summary() == {"accuracy": 0.75, "loss": None}
    model = safetensors.numpy.load_file(run.path / "model.safetensors")
    assert {name: value.tolist() for name, value in model.items()} == {
        name: value.tolist() for name, value in state.items()
    }
    assert Mask.load(run.path / "mask.safetensors") == mask
    table = pq.read_table(run.path / "clients.parquet")
    assert table.column_names == [*tables.CLIENT_COLUMNS, "device"]
    assert table["loss"].to_pylist() == [0.5, None]
    assert [row["client"] for row in run.clients()] == [0, 1]
    assert names(run.path) == [
        "clients.parquet",
        "config.toml",
        "mask.safetensors",
        "model.safetensors",
        "run.json",
        "summary.json",
    ]


def test_equal_models_give_equal_bytes(tmp_path):
    a, b = (finished(tmp_path / name)[0].path / "model.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_all_of_the_result_is_on_the_disk_before_the_summary_says_so(tmp_path, monkeypatch):
    """A power cut leaves no run that is finished but torn."""
    synced, named = set(), []
    fsync, replace = os.fsync, os.replace

    def syncing(descriptor):
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def naming(source, target):
        named.append((Path(target).name, os.stat(source).st_ino in synced))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", naming)
    finished(tmp_path / "run")
    assert named[-5:] == [
        ("model.safetensors", True),
        ("mask.safetensors", True),
        ("clients.parquet", True),
        ("run.json", True),
        ("summary.json", True),
    ]


def test_a_finished_run_knows_what_it_lost(tmp_path):
    run, _, mask = finished(tmp_path / "run")
    run = RunFolder.open(run.path)
    assert run.lost() == []
    (run.path / "model.safetensors").unlink()
    (run.path / "mask.safetensors").write_bytes(mask.to_bytes()[:-1])
    assert run.lost() == ["model.safetensors", "mask.safetensors"]


def test_without_clients_the_table_is_empty_and_typed(run):
    run.finish({}, None, {})
    table = pq.read_table(run.path / "clients.parquet")
    assert table.num_rows == 0
    assert table.column_names == list(tables.CLIENT_COLUMNS)
    assert run.clients() == []


def test_a_failed_end_is_not_finished_and_can_be_repeated(run, monkeypatch):
    run.append_clients([client_row(1, 0)])
    replace = os.replace
    for last in ("model.safetensors", "clients.parquet", "summary.json"):

        def fail(source, target, last=last):
            if Path(target).name == last:
                raise OSError(errno.ENOSPC, "full")
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(RunFolderError, match="full"):
                run.finish({"w": np.zeros(1, np.float32)}, None, {"accuracy": 1.0})
        assert not run.finished
        with pytest.raises(RunFolderError, match="fedsparse resume"):
            run.summary()
        assert len(run.clients()) == 1
    run.finish({"w": np.zeros(1, np.float32)}, None, {"accuracy": 1.0})
    assert run.finished


def test_a_damaged_table_is_named(run):
    run.finish({}, None, {})
    (run.path / "clients.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(RunFolderError, match=r"clients\.parquet' is damaged"):
        run.clients()


def test_every_json_file_is_strict(tmp_path):
    run, _, _ = finished(tmp_path / "run")

    def refuse(constant):
        raise AssertionError(constant)

    with (run.path / "summary.json").open() as file:
        json.load(file, parse_constant=refuse)
