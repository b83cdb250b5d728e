"""Mistakes at the command line: one line that says what to do, exit 2, nothing on the disk."""

import errno
import os
import socket

import pytest

from fedsparse.runs import folder as folders
from tests.command_line import error_line, invoke, tiny_toml
from tests.tiny_runs import run


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder to work in; what a test puts there is all that may be there."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def refused(place, *arguments):
    """Return the error line of a command, after checking that it left the disk as it was."""
    before = {p: p.read_bytes() if p.is_file() else None for p in place.rglob("*")}
    line = error_line(invoke(*arguments))
    assert {p: p.read_bytes() if p.is_file() else None for p in place.rglob("*")} == before
    return line


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("strategy.density=0", ["strategy.density = 0", "greater than 0"]),
        ("strategy.density=1.5", ["strategy.density = 1.5", "less than or equal to 1"]),
        ("strategy.density=-0.1", ["strategy.density = -0.1", "greater than 0"]),
        ("strategy.density=abc", ["strategy.density = 'abc'", "must be a valid number"]),
        ("strategy.density=nan", ["strategy.density = nan", "must be a finite number"]),
        ("strategy.density=inf", ["strategy.density = inf"]),
        ("strategy.density=true", ["strategy.density = True", "must be a valid number"]),
        ("strategy.density=", ["strategy.density = ''"]),
        ("data.alpha=-1", ["data.alpha = -1", "greater than 0"]),
        ("data.alpha=nan", ["data.alpha = nan"]),
        ("client.lr=-0.1", ["client.lr = -0.1", "greater than 0"]),
        ("client.momentum=1", ["client.momentum = 1", "less than 1"]),
        ("run.rounds=-3", ["run.rounds = -3", "greater than or equal to 1"]),
        ("run.rounds=0", ["run.rounds = 0"]),
        ("run.rounds=2.5", ["run.rounds = 2.5", "must be a valid integer"]),
        ("run.rounds='5'", ["run.rounds = '5'", "must be a valid integer"]),
        ("run.seed=-1", ["run.seed = -1"]),
        ("fleet.clients=0", ["fleet.clients = 0"]),
        ("fleet.clients_per_round=11", ["clients_per_round = 11", "fleet.clients = 10"]),
        ("strategy.densty=0.1", ["strategy.densty", "did you mean 'strategy.density'?"]),
        ("client.density=0.1", ["client.density", "did you mean 'strategy.density'?"]),
        ("stratgy.density=0.1", ["[stratgy]", "did you mean 'strategy'?"]),
        ("strategy.name=fedtinny", ["strategy 'fedtinny'", "did you mean 'fedtiny'?"]),
        ("strategy.name=3", ["strategy.name = 3", "must be a string"]),
        ("strategy.name=nowhere:Thing", ["nowhere:Thing", "installed?"]),
        ("data.name=digit", ["dataset 'digit'", "did you mean 'digits'?"]),
        ("model.name=cn", ["model 'cn'", "did you mean 'cnn'?"]),
        ("engine.name=rey", ["engine.name = 'rey'", "'ray'"]),
        ("data.partition=dirichle", ["data.partition = 'dirichle'", "'dirichlet'"]),
        ("density=0.1", ["--set 'density=0.1'", "SECTION.KEY=VALUE"]),
        ("strategy.density", ["--set 'strategy.density'", "SECTION.KEY=VALUE"]),
        ("=", ["--set '='"]),
        ("", ["--set ''"]),
        ("run.seed=1\nrun.rounds=2", ["run.seed", "must be a valid integer"]),
    ],
)
def test_values_and_keys(place, assignment, said):
    line = refused(place, "run", "--set", assignment)
    for words in said:
        assert words in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preset", "dem"], ["preset 'dem'", "did you mean 'demo'?"]),
        (["--preset", ""], ["preset ''", "demo"]),
        (["--engine", "rey"], ["--engine", "'rey'", "inline"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--seed", "x"], ["--seed", "'x'"]),
        (["--sed", "1"], ["'--sed'", "--seed"]),
        (["demo"], ["'demo'", "--preset demo"]),
        (["a.toml", "b.toml"], ["b.toml"]),
        (["a.toml", "--preset", "demo"], ["CONFIG.toml and --preset"]),
    ],
)
def test_options_of_run(place, options, said):
    line = refused(place, "run", *options)
    for words in said:
        assert words in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[run\nrounds = 3", "not valid TOML"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "not a text file"),
        (b"run.rounds = 99999999999999999999999999" + b"9" * 5000, "not valid TOML"),
        (b"a = " + b"[" * 5000, "not valid TOML"),
        (b"run = 3", "run = 3: [run] is a section"),
        (b"[[run]]\nrounds = 3", "[run] is a section"),
        (b"density = 0.1", "key 'density' is outside a section; put it below [strategy]"),
        (b"[strateg]\ndensity = 0.1", "did you mean 'strategy'?"),
        (b"[run.rounds]\nx = 1", "run.rounds"),
        (b"[client]\nlr = 1979-05-27", "client.lr"),
    ],
)
def test_files(place, content, said):
    (place / "mine.toml").write_bytes(content)
    assert said in refused(place, "run", "mine.toml")
    assert said in refused(place, "run", "mine.toml", "--set", "run.seed=1")


def test_missing_file_and_folder(place):
    assert "no configuration file 'gone.toml'" in refused(place, "run", "gone.toml")
    (place / "folder.toml").mkdir()
    assert "'folder.toml' is a folder" in refused(place, "run", "folder.toml")
    long = "x" * 5000
    assert "cannot be read" in refused(place, "run", long)


@pytest.mark.parametrize("command", ["resume", "report"])
def test_folders_that_are_no_run(place, command):
    assert "no run folder 'gone'" in refused(place, command, "gone")
    (place / "other").mkdir()
    (place / "other" / "file.txt").write_text("mine")
    assert "'other' is not a run folder" in refused(place, command, "other")
    assert "not a run folder" in refused(place, command, "other/file.txt")
    assert "Missing argument" in refused(place, command)


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["fleet.clients=5000"], ["fleet.clients = 5000", "lower fleet.clients"]),
        (["data.public_samples=0"], ["data.public_samples"]),
        (["data.name=npz"], ["data.path"]),
        (["data.name=idx", "data.path=nowhere"], ["data.path = 'nowhere'"]),
        (["strategy.name=fedavg", "strategy.density=0.1"], ["fedavg is dense"]),
        (["strategy.name=json:JSONDecoder"], ["json:JSONDecoder", "no Flower Strategy"]),
        (["data.name=json:dumps"], ["dataset 'json:dumps'", "no function f(config, seed)"]),
        (["data.name=builtins:max"], ["dataset 'builtins:max'", "no function f(config, seed)"]),
        (["data.name=math:pi"], ["dataset 'math:pi'", "not a callable"]),
        (["data.name=types:SimpleNamespace"], ["dataset 'types:SimpleNamespace'"]),
        (["data.name=" + "x" * 50_000], ["unknown dataset 'xxx", "choose one of"]),
        (["model.name=json:dumps"], ["model 'json:dumps'", "f(input_shape, classes, width)"]),
        (["model.name=os:getcwd"], ["model 'os:getcwd'", "f(input_shape, classes, width)"]),
        (["engine.name=ray", "engine.workers=4096"], ["engine.workers = 4096", "or fewer"]),
        (["engine.name=flower", "engine.workers=4096"], ["engine.workers = 4096", "or fewer"]),
    ],
)
def test_what_does_not_go_together(place, assignments, said):
    sets = [word for assignment in assignments for word in ("--set", assignment)]
    line = refused(place, "run", *sets)
    for words in said:
        assert words in line


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_a_cluster_that_does_not_answer(place, form):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: whoever connects is refused
        address = form.format(f"127.0.0.1:{taken.getsockname()[1]}")
        line = refused(place, "run", "--set", f"engine.ray_address={address}")
    assert f"engine.ray_address = '{address}'" in line
    assert "`ray start --head`" in line


@pytest.mark.parametrize(
    ("strategy", "assignment", "said"),
    [
        ("FedAvg", "min_train_nodes=50", "= 50 asks for more nodes than fleet.clients = 10"),
        ("FedAvg", "min_evaluate_nodes=50", "= 50 asks for more nodes than fleet.clients = 10"),
        ("FedAvg", "min_available_nodes=50", "= 50 asks for more nodes than fleet.clients = 10"),
        ("FedAvg", "fraction_train=2.0", "= 2.0 asks for more nodes than fleet.clients = 10"),
        ("FedAvg", "min_train_nodes=2.5", "= 2.5: must be a whole number"),
        ("FedTrimmedAvg", "beta=0.9", "refused its settings: `beta` must be in the range"),
        ("FedAdam", "eta=abc", "= 'abc': must be a number"),
        ("FedAdam", "eta=true", "= True: must be a number"),
        ("FedAdam", "etaa=0.1", "refused its settings: FedAdam.__init__() got an unexpected"),
        ("FedAdam", "density=0.5", "= 0.5: strategy 'flwr.serverapp.strategy:FedAdam' sends dense"),
        ("FedAdam", "values=int8", "leave it at 'f32'"),
    ],
)
def test_settings_of_flowers_strategies(place, strategy, assignment, said):
    name = f"strategy.name=flwr.serverapp.strategy:{strategy}"
    assert said in refused(place, "run", "--set", name, "--set", f"strategy.{assignment}")


def test_output_folder_with_something_in_its_way(place):
    tiny_toml(place)
    (place / "loop").symlink_to("loop")
    for out, said in {
        "": "'--out': it is empty",
        "tiny.toml/deep/x": "'tiny.toml' is a file, not a folder",
        "loop/x": "'loop' is a link that leads nowhere",
        "x" * 300: "File name too long",
    }.items():
        assert said in refused(place, "run", "tiny.toml", "--out", out)


def test_output_folder_that_holds_something(place):
    run(place / "old", "run.rounds=1")
    line = refused(place, "run", tiny_toml(place), "--out", "old")
    assert "'old' holds another run" in line
    assert "--out" in line
    (place / "mine").mkdir()
    (place / "mine" / "notes.txt").write_text("keep")
    assert "'mine' is not empty" in refused(place, "run", "tiny.toml", "--out", "mine")
    assert "'mine/notes.txt' is a file" in refused(
        place, "run", "tiny.toml", "--out", "mine/notes.txt"
    )


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.ENOSPC, "is full"), (errno.EROFS, "cannot be written"), (errno.EACCES, "permissions")],
)
def test_output_folder_that_cannot_be_written(place, monkeypatch, code, said):
    def refuse(path, content):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(folders, "write_file", refuse)
    tiny_toml(place)
    line = refused(place, "run", "tiny.toml", "--out", "deep/er/out")
    assert "'deep/er/out'" in line
    assert said in line
