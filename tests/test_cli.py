"""The command line as its users meet it: help, runs, interruption, reports, exit codes."""

import errno
import json
import logging
import subprocess
import sys

import click
import pytest
from flwr.common.logger import FLOWER_LOGGER

import fedsparse.registry
from fedsparse import cli
from fedsparse.errors import FedSparseError, MissingExtraError
from fedsparse.runs import RunFolder
from simulations import commands, progress
from tests.command_line import ROOT, error_line, invoke, spawn, tiny_toml
from tests.tiny_runs import model_bytes, rows, tiny

SUMMARY_KEYS = {
    *("strategy", "model", "dataset", "clients", "rounds", "seed", "accuracy", "loss", "density"),
    *("bytes_up", "bytes_down", "train_flops", "peak_client_memory_bytes", "wall_seconds"),
    *("simulated_seconds", "energy_joules", "clients_refused", "target_accuracy"),
    *("epsilon", "delta"),
    *("accuracy_personal_mean", "accuracy_personal_p10"),
    *(f"{what}_to_target" for what in ("rounds", "seconds", "bytes", "joules")),
    "run",
}

# -- help ---------------------------------------------------------------------------------


def test_version():
    assert invoke("--version").stdout == f"fedsparse, version {fedsparse.__version__}\n"


def test_help_without_arguments():
    bare = invoke()
    assert bare.exit_code == 0
    assert bare.stdout == invoke("--help").stdout == invoke("-h").stdout
    for name in cli.COMMANDS:
        assert f"\n  {name} " in bare.stdout
    assert "..." not in bare.stdout.partition("Commands:")[2].partition("Examples:")[0]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_every_command_has_examples(name):
    text = invoke(name, "--help").stdout
    assert "Example" in text
    assert f"  fedsparse {name}" in text


def test_help_imports_nothing_heavy():
    script = """
import sys
from click.testing import CliRunner
from fedsparse.cli import COMMANDS, main
for arguments in [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]:
    assert CliRunner().invoke(main, arguments).exit_code == 0
heavy = {"torch", "flwr", "ray", "pydantic", "numpy", "sklearn", "pyarrow", "rich", "plotly"}
print(*sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


# -- what is not known ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "unknown command 'rnu'; did you mean 'run'?"),
        (["zzz"], f"unknown command 'zzz'; choose one of: {', '.join(cli.COMMANDS)}"),
        (["--versoin"], "--version"),
        (["list", "modles"], "unknown kind 'modles'; did you mean 'models'?"),
        (["list", "strategy"], "unknown kind 'strategy'; did you mean 'strategies'?"),
        (["resume", "x", "--jsn"], "--json"),
    ],
)
def test_unknown_names_get_the_nearest(arguments, said):
    assert said in error_line(invoke(*arguments))


# -- exit codes -----------------------------------------------------------------------------


class Unverified(FedSparseError):
    exit_code = 3


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Unverified("two\nlines"), 3, "two lines"),
        (click.UsageError("wrong"), 2, "wrong"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "out of memory; lower"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "memory"),
        (OSError(errno.ENOSPC, "full", "runs/a"), 2, "no space left for 'runs/a'"),
        (OSError(errno.EROFS, "read-only", "runs/a"), 2, "'runs/a' cannot be written"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a"), 2, "'a' cannot be used: File na"),
        (OSError(errno.ELOOP, "Too many links", "a"), 2, "'a' cannot be used: Too many links"),
    ],
)
def test_errors_are_one_line_and_a_code(capsys, error, code, said):
    def work():
        raise error

    assert cli.exit_code(work) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fedsparse: error: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_of_a_long_message_the_beginning_and_the_end_are_shown(capsys):
    def work():
        raise FedSparseError(f"value = {'x' * 50_000}: give another")

    assert cli.exit_code(work) == 2
    line = capsys.readouterr().err.removeprefix("fedsparse: error: ")
    assert len(line) < cli.LONGEST + 10
    assert line.startswith("value = xxx")
    assert " ... " in line
    assert line.endswith("xxx: give another\n")


@pytest.mark.parametrize("error", [RuntimeError("a defect"), OSError(errno.EIO, "broken disk")])
def test_defects_are_not_hidden(error):
    def work():
        raise error

    with pytest.raises(type(error)):
        cli.exit_code(work)


def test_a_reader_that_goes_away_is_met_with_silence():
    process = spawn("list")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1
    process.stderr.close()


@pytest.mark.parametrize("shadow", ["clients/__init__.py", "strategies.py"])
def test_a_folder_that_shadows_a_package_is_named(tmp_path, shadow):
    (tmp_path / shadow).parent.mkdir(exist_ok=True)
    (tmp_path / shadow).write_text("")
    with spawn("list", "presets", PYTHONPATH=f"{tmp_path}:{ROOT}") as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert f"'{tmp_path / shadow.removesuffix('/__init__.py')}' shadows" in err
    assert err.count("\n") == 1


# -- run, resume, report --------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run through the command line with --json, in the folder that it chose itself."""
    place = tmp_path_factory.mktemp("place")
    toml = tiny_toml(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        result = invoke("run", toml.name, "--json", "--set", "strategy.density=0.2", "--seed", 3)
    return place, result


def test_json_is_one_object_with_the_summary(ran):
    place, result = ran
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert set(summary) == SUMMARY_KEYS
    assert (summary["seed"], summary["rounds"]) == (3, 2)
    assert summary["run"] == "runs/tiny-fedtiny-s3"
    assert json.loads((place / summary["run"] / "summary.json").read_text()) == summary


def test_progress_is_a_line_a_round_where_there_is_no_terminal(ran):
    _, result = ran
    lines = result.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith("round ")] == [
        f"round {n}/2" for n in range(3)
    ]
    assert "\x1b" not in result.stderr


def test_the_folder_holds_the_report_and_the_command_that_repeats_it(ran):
    place, _ = ran
    folder = RunFolder.open(place / "runs/tiny-fedtiny-s3")
    assert (folder.path / "report.html").is_file()
    assert any((folder.path / "events").iterdir())
    assert folder.command == "fedsparse run tiny.toml --set strategy.density=0.2 --seed 3"
    assert folder.config.strategy["density"] == 0.2


def test_a_taken_folder_gets_a_number(ran, monkeypatch):
    place, _ = ran
    monkeypatch.chdir(place)
    config = tiny("run.seed=3")
    assert str(commands.free_folder("tiny", config)) == "runs/tiny-fedtiny-s3-2"
    (place / "runs/tiny-fedtiny-s3-2").mkdir()
    assert str(commands.free_folder("tiny", config)) == "runs/tiny-fedtiny-s3-3"
    (place / "runs/tiny-fedtiny-s3-2").rmdir()
    foreign = tiny("strategy.name=flwr.serverapp.strategy:FedAdam")
    assert str(commands.free_folder("tiny", foreign)) == "runs/tiny-fedadam-s0"


def test_resuming_a_finished_run_shows_its_summary(ran):
    place, result = ran
    folder = place / "runs/tiny-fedtiny-s3"
    again = invoke("resume", folder, "--json", "--no-report")
    assert again.exit_code == 0
    assert json.loads(again.stdout) == json.loads(result.stdout)
    assert "is finished; there is nothing to resume" in again.stderr


def test_reports_on_several_runs(ran, tmp_path):
    place, _ = ran
    folder = place / "runs/tiny-fedtiny-s3"
    page = tmp_path / "both.html"
    result = invoke("report", folder, folder, "--out", page)
    assert (result.exit_code, result.stdout) == (0, f"{page}\n")
    assert page.read_text().count("tiny-fedtiny-s3") >= 2


def test_by_default_the_demo_and_a_table_for_people(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ("run.rounds=1", "fleet.clients=3", "data.samples=300", "strategy.pretrain_epochs=1")
    sets = [word for size in sizes for word in ("--set", size)]
    result = invoke("run", *sets, "--no-report", "--engine", "inline")
    assert result.exit_code == 0
    assert "this is the preset 'demo'" in result.stderr
    for words in ("accuracy", "density        0.1\n", "sent up", "runs/demo-fedtiny-s0"):
        assert words in "".join(line.rstrip() + "\n" for line in result.stdout.splitlines())
    assert "fedsparse report runs/demo-fedtiny-s0" in result.stdout
    folder = tmp_path / "runs/demo-fedtiny-s0"
    assert not (folder / "report.html").exists()
    repeated = RunFolder.open(folder).command
    assert repeated == "fedsparse run --preset demo " + " ".join(sets) + " --engine inline"


def test_the_table_for_people_says_what_privacy_was_promised(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ("run.rounds=1", "fleet.clients=2", "data.samples=200", "strategy.epsilon=2.5")
    sets = [word for size in sizes for word in ("--set", size)]
    result = invoke("run", "--preset", "ldp-regression", *sets, "--no-report", "--engine", "inline")
    assert result.exit_code == 0, result.output
    assert "epsilon 2.5 at delta 1e-05" in result.stdout


@pytest.mark.parametrize("strategy", ["fedtiny", "flwr.serverapp.strategy:FedAvg"])
def test_quiet_says_nothing(tmp_path, caplog, monkeypatch, strategy):
    monkeypatch.setattr(FLOWER_LOGGER, "handlers", [caplog.handler])
    out, name = tmp_path / "it's here", f"strategy.name={strategy}"
    options = ("--set", name, "--out", out, "--quiet", "--no-report")
    result = invoke("run", tiny_toml(tmp_path), *options)
    assert (result.exit_code, result.stderr, caplog.messages) == (0, "", [])
    quoted = str(out).replace("'", "'\"'\"'")
    assert RunFolder.open(out).command.endswith(f" --out '{quoted}'")


@pytest.mark.parametrize(("quiet", "shown"), [(False, [logging.WARNING]), (True, [])])
def test_of_flowers_words_warnings_are_shown_unless_quiet(tmp_path, monkeypatch, quiet, shown):
    levels = []

    def work(*args, **kwargs):
        found = (logging.INFO, logging.WARNING)
        levels.extend(level for level in found if FLOWER_LOGGER.isEnabledFor(level))
        raise FedSparseError("the end")

    before = FLOWER_LOGGER.level
    monkeypatch.setattr("simulations.experiment.run_experiment", work)
    invoke("run", tiny_toml(tmp_path), "--out", tmp_path / "out", *["--quiet"] * quiet)
    assert levels == shown
    assert FLOWER_LOGGER.level == before


def test_without_the_report_extra_a_line_says_so(tmp_path, monkeypatch):
    def missing(runs, out=None):
        raise MissingExtraError("report.html", "report")

    monkeypatch.setattr("simulations.report.write_report", missing)
    result = invoke("run", tiny_toml(tmp_path), "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["run"] == str(tmp_path / "out")
    note = "no report: report.html needs extra packages: pip install 'fedsparse[report]'\n"
    assert result.stderr.endswith(note)


def test_interrupted_says_how_to_go_on_and_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    toml = tiny_toml(tmp_path)
    whole, out = tmp_path / "whole", tmp_path / "it's here"
    assert invoke("run", toml, "--out", whole, "--quiet", "--no-report").exit_code == 0

    def interrupt(self, row):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(progress.Lines, "round_done", interrupt)
        stopped = invoke("run", toml, "--out", out, "--json")
    assert stopped.exit_code == 130
    assert stopped.stdout == ""
    quoted = str(out).replace("'", "'\"'\"'")
    assert stopped.stderr.splitlines()[-1] == (
        f"fedsparse: interrupted; to go on: fedsparse resume '{quoted}'"
    )
    assert not RunFolder.open(out).finished
    assert invoke("resume", out, "--json", "--no-report").exit_code == 0
    assert model_bytes(out) == model_bytes(whole)
    assert rows(out) == rows(whole)


def test_interrupted_before_there_is_a_folder(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.experiment.run_experiment", interrupt)
    result = invoke("run", tiny_toml(tmp_path), "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "fedsparse: interrupted\n"


def test_bars_on_a_terminal_show_rounds_clients_and_figures(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bars = progress.watcher("the heading")
    assert isinstance(bars, progress.Bars)
    bars.start(total_rounds=4, first_round=1)
    bars.clients(2, 5)
    row = {"round": 2, "accuracy": 0.5, "density": 0.1, "clients_failed": 1, "clients_asked": 5}
    rounds, cohort = bars.bars.tasks
    assert (cohort.completed, cohort.total) == (2, 5)
    bars.round_done(row)
    bars.note("[not markup]")
    bars.stop()
    assert (rounds.completed, rounds.total) == (2, 4)
    assert rounds.fields["figures"] == "accuracy 0.500, density 0.1, 1 of 5 clients failed"


# -- list -----------------------------------------------------------------------------------


def test_list_shows_every_name_with_a_line():
    from fedsparse.sparsity.allocation import ALLOCATIONS
    from fedsparse.sparsity.criteria import CRITERIA

    found = json.loads(invoke("list", "--json").stdout)
    assert set(found["criteria"]) == set(CRITERIA)
    assert set(found["allocations"]) == {*ALLOCATIONS, "global"}
    assert {"demo", "fashion", "fedtiny-paper"} <= set(found["presets"])
    for kind in ("strategies", "models", "datasets"):
        assert set(found[kind]) >= set(fedsparse.registry.BUILTIN[kind])
    assert set(found.pop("devices")) == {"profiles", "fleets"}  # tests/devices/test_table.py
    for kind, lines in found.items():
        assert all(lines.values()), kind
        assert json.loads(invoke("list", kind, "--json").stdout) == lines
        shown = invoke("list", kind).stdout
        assert all(f"{name} " in shown and line in shown for name, line in lines.items())


def test_list_names_a_package_that_is_gone(monkeypatch):
    from fedsparse import listing

    monkeypatch.setattr(listing.registry, "names", lambda kind: {"own": "no_such_package.x:Y"})
    assert listing.describe("strategies") == {"own": "not installed (no_such_package.x)"}
