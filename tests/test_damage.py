"""A run folder that lost something goes on to the same bits, or is refused in one line."""

import json
import shutil

import pytest

from fedsparse.runs import RunFolder
from simulations.experiment import resume_experiment
from strategies import server_app
from tests.command_line import error_line, invoke
from tests.strategies.stage import QUICK
from tests.tiny_runs import model_bytes, rows, run

SETTING = (*QUICK, "strategy.name=static", "strategy.density=0.5", "run.rounds=3")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of three rounds."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out, *SETTING)
    return out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was interrupted after round 2."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    plain = RunFolder.save_checkpoint

    def interrupt(self, number, tree):
        if number == 3:
            raise KeyboardInterrupt
        plain(self, number, tree)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(out, *SETTING)
    return out


@pytest.fixture
def half(stopped, tmp_path):
    """A copy of the interrupted run."""
    return shutil.copytree(stopped, tmp_path / "half")


@pytest.fixture
def done(whole, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(whole, tmp_path / "done")


def contents(out):
    """Return the files of a run but for its lock, which holds the last process."""
    return {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}


def refused(out):
    """Return the error line of `fedsparse resume`, after checking that it changed nothing."""
    before = contents(out)
    line = error_line(invoke("resume", out, "--quiet"))
    assert contents(out) == before
    assert "another --out" in line
    return line


def lines_of(path):
    return path.read_text().splitlines(keepends=True)


# -- rows ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: None, "lacks the row of round 0"),
        (lambda lines: [], "lacks the row of round 0"),
        (lambda lines: ["\x00\x01"], "lacks the row of round 0"),
        (lambda lines: lines[:1], "lacks the row of round 1"),
        (lambda lines: lines[:1] + lines[2:], "lacks the row of round 1"),
        (lambda lines: [*lines, lines[-1]], "more than one row of a round"),
        (lambda lines: ['{"round": 0}\n', *lines[1:]], "lacks accuracy of round 0"),
        (lambda lines: [lines[0], "{}\n", *lines[2:]], "lacks the row of round 1"),
        (lambda lines: [t.replace("train_flops", "x") for t in lines], "lacks train_flops"),
        (lambda lines: [lines[0], "3\n", *lines[2:]], "line 2 is not a JSON object"),
    ],
)
def test_a_run_does_not_go_on_without_the_rows_of_its_rounds(half, damage, said):
    path = half / "metrics.jsonl"
    left = damage(lines_of(path))
    path.unlink() if left is None else path.write_text("".join(left))
    line = refused(half)
    assert f"'{path}' " in line
    assert said in line


def test_the_row_of_a_round_whose_test_was_cut_off_is_made_again(half, whole):
    path = half / "metrics.jsonl"
    path.write_text("".join(lines_of(path)[:2]) + '{"round": 2, "accur')
    resume_experiment(half)
    assert rows(half) == rows(whole)
    assert model_bytes(half) == model_bytes(whole)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: [], "rows of clients in round 1, 0 of 4 are there"),
        (lambda lines: lines[:6] + lines[8:], "rows of clients in round 2, 2 of 4 are there"),
        (lambda lines: [t.replace("bytes_up", "x") for t in lines], "lacks bytes_up of a client"),
        (lambda lines: [t.replace("kind", "x") for t in lines], "lacks kind of a client"),
    ],
)
def test_a_run_does_not_go_on_without_the_rows_of_its_clients(half, damage, said):
    path = half / "clients.jsonl"
    path.write_text("".join(damage(lines_of(path))))
    line = refused(half)
    assert f"'{path}' " in line
    assert said in line


# -- the configuration -----------------------------------------------------------------------


def test_a_run_does_not_go_on_with_another_configuration(half):
    path = half / "config.toml"
    path.write_text(path.read_text().replace("seed = 0", "seed = 7"))
    assert "run.seed is 7, but the run began with 0" in refused(half)


def test_a_run_goes_on_with_another_engine(half, whole):
    path = half / "config.toml"
    path.write_text(path.read_text().replace("timeout = 3600.0", "timeout = 60.0\nworkers = 1"))
    resume_experiment(half)
    assert model_bytes(half) == model_bytes(whole)


# -- checkpoints -----------------------------------------------------------------------------


def damage_checkpoints(out, *names):
    for name in names:
        (out / "checkpoints" / name).write_text("{}")


def test_a_damaged_checkpoint_is_one_plain_line_and_none_when_quiet(half, whole, tmp_path):
    damage_checkpoints(half, "000002.json")
    quiet = shutil.copytree(half, tmp_path / "quiet")
    result = invoke("resume", half, "--json", "--no-report")
    told = [line for line in result.stderr.splitlines() if "000002.json" in line]
    assert len(told) == 1
    assert told[0].rstrip().endswith("going back to the one before")
    assert "Warning" not in result.stderr
    assert model_bytes(half) == model_bytes(whole)
    assert rows(half) == rows(whole)
    assert invoke("resume", quiet, "--json", "--no-report", "--quiet").stderr == ""


def test_when_all_checkpoints_are_damaged_that_is_all_that_is_said(half):
    damage_checkpoints(half, "000000.json", "000001.json", "000002.json")
    assert "every checkpoint" in refused(half)


# -- what a finished run lost ------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.safetensors", "mask.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"\x00" * 100])
def test_a_finished_run_gets_a_lost_model_or_mask_back(done, whole, file, content):
    path = done / file
    path.unlink() if content is None else path.write_bytes(content)
    result = invoke("resume", done, "--json", "--no-report")
    assert f"{file}: missing or damaged, made again" in result.stderr
    for name in ("model.safetensors", "mask.safetensors", "metrics.jsonl", "clients.parquet"):
        assert (done / name).read_bytes() == (whole / name).read_bytes()
    assert RunFolder.open(done).lost() == []


@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_a_lost_summary_is_made_again(done, whole, content):
    path = done / "summary.json"
    path.unlink() if content is None else path.write_bytes(content)
    made = resume_experiment(done)
    assert made["accuracy"] == RunFolder.open(whole).summary()["accuracy"]
    assert {**RunFolder.open(done).summary(), "run": str(whole)} == RunFolder.open(whole).summary()


@pytest.mark.parametrize("file", ["metrics.jsonl", "clients.parquet"])
def test_what_a_finished_run_cannot_make_again_is_named(done, file):
    path = done / file
    path.write_bytes(path.read_bytes()[:-10])
    assert f"'{path}' of a finished run is missing or damaged" in refused(done)


def test_a_lost_model_without_its_last_checkpoint_is_named(done):
    (done / "model.safetensors").unlink()
    (done / "checkpoints" / "000003.json").unlink()
    assert "cannot be made again" in refused(done)


def test_simulated_clients_make_nothing_again_for_flowers_nodes(done):
    (done / "model.safetensors").unlink()
    mark = json.loads((done / "run.json").read_text())
    (done / "run.json").write_text(json.dumps({**mark, "command": server_app.COMMAND}))
    assert "model.safetensors' of a finished run is missing" in refused(done)


# -- defaults ------------------------------------------------------------------------------


def test_a_configuration_that_says_nothing_can_run(tmp_path):
    (tmp_path / "empty.toml").write_text("")
    sets = ["run.rounds=1", "strategy.pretrain_epochs=1", "data.samples=300", "model.width=0.25"]
    words = [word for s in sets for word in ("--set", s)]
    out = tmp_path / "run"
    result = invoke("run", tmp_path / "empty.toml", *words, "--out", out, "--quiet", "--no-report")
    assert result.exit_code == 0, result.stderr
    assert RunFolder.open(out).finished
