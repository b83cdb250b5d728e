"""A run of `flwr run .`: its folder goes on with Flower's nodes, and with nothing else."""

import pytest
from flwr.common.config import flatten_dict

from fedsparse.errors import ConfigError, RunFolderError, TooFewRepliesError
from fedsparse.runs import RunFolder
from simulations.experiment import CLIENT_APP, resume_experiment
from simulations.flower_internals import RAISED, error_reply, new_context
from simulations.grid import CohortGrid
from strategies import server_app
from tests.command_line import error_line, invoke
from tests.strategies.stage import QUICK
from tests.tiny_runs import model_bytes, run, tiny

SETTING = (*QUICK, "strategy.name=fedavg", "run.rounds=2", "fleet.min_replies=0.75")


class Failing(CohortGrid):
    """A grid on which half of the clients' training ends in an error."""

    def push_messages(self, messages):
        """Note what was sent under which number."""
        sent = list(messages)
        numbers = list(super().push_messages(sent))
        self.sent = dict(zip(numbers, sent, strict=True))
        return numbers

    def pull_messages(self, message_ids):
        """Replace some replies."""
        replies = []
        for reply in super().pull_messages(message_ids):
            asked = self.sent[reply.metadata.reply_to_message_id]
            if (
                asked.metadata.message_type == "train"
                and self.client_of(asked.metadata.dst_node_id) > 1
            ):
                reply = error_reply(asked, RAISED, "out of memory")
            replies.append(reply)
        return replies


def start(out, monkeypatch, *assignments, grid=CohortGrid):
    """Start the ServerApp as Flower does, its folder named by FEDSPARSE_OUT."""
    tree = tiny(*SETTING, *assignments).model_dump(exclude_none=True)
    tree["strategy"] = {key: v for key, v in tree["strategy"].items() if v is not None}
    monkeypatch.setenv("FEDSPARSE_OUT", str(out))
    context = new_context(7, 1, 0, 1, flatten_dict(tree), {})
    with grid(CLIENT_APP, clients=4) as clients:
        server_app.main(clients, context)
    return RunFolder.open(out)


def stopped(out, monkeypatch, *assignments):
    """Start a run that stops in round 1."""
    with pytest.raises(TooFewRepliesError):
        start(out, monkeypatch, *assignments, grid=Failing)


def test_what_is_to_be_known_of_a_run_is_in_the_log_of_its_app(tmp_path, monkeypatch, caplog):
    def noting(task, strategy, grid, folder, progress):
        progress.note("the node of client 3 is left out: its samples are 1x7x7")

    monkeypatch.setattr(server_app, "execute", noting)
    start(tmp_path / "run", monkeypatch)
    assert "the node of client 3 is left out: its samples are 1x7x7" in caplog.messages


def test_an_unfinished_run_goes_on_to_the_bits_of_a_whole_one(tmp_path, monkeypatch):
    stopped(tmp_path / "run", monkeypatch)
    folder = start(tmp_path / "run", monkeypatch)
    assert folder.finished
    assert folder.command == "flwr run ."
    run(tmp_path / "whole", *SETTING)
    assert model_bytes(folder.path) == model_bytes(tmp_path / "whole")
    assert [row["round"] for row in folder.metrics()] == [0, 1, 2]


def test_resume_does_not_put_simulated_clients_in_the_place_of_nodes(tmp_path, monkeypatch):
    out = tmp_path / "run"
    stopped(out, monkeypatch)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    line = error_line(invoke("resume", str(out)))
    assert "a run of `flwr run .`" in line
    assert f"set FEDSPARSE_OUT to '{out}'" in line
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    start(out, monkeypatch)
    assert resume_experiment(out)["rounds"] == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("client.lr=0.01", r"another client\.lr;"),
        ("strategy.server_lr=0.5", r"strategy\.server_lr"),
    ],
)
def test_a_run_of_another_configuration_is_refused_by_the_key(tmp_path, monkeypatch, change, named):
    stopped(tmp_path / "run", monkeypatch)
    with pytest.raises(ConfigError, match=named):
        start(tmp_path / "run", monkeypatch, change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("fleet.profile=phones", r"fleet\.profile = 'phones': `flwr run \.` runs on nodes"),
        ("fleet.deadline=5.0", r"fleet\.deadline = 5\.0 does nothing without devices"),
        ("strategy.name=fedbuff", r"'fedbuff' needs a simulated clock"),
    ],
)
def test_nodes_run_in_real_time_and_know_no_simulated_clock(tmp_path, monkeypatch, change, named):
    with pytest.raises(ConfigError, match=named):
        start(tmp_path / "run", monkeypatch, change)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_and_one_of_the_simulator_are_refused(tmp_path, monkeypatch):
    start(tmp_path / "run", monkeypatch)
    with pytest.raises(RunFolderError, match=r"is finished; set FEDSPARSE_OUT to a new folder"):
        start(tmp_path / "run", monkeypatch)
    RunFolder.create(tmp_path / "mine", tiny(*SETTING), command="fedsparse run mine.toml")
    with pytest.raises(RunFolderError, match=r"a run of 'fedsparse run mine\.toml'; go on with"):
        start(tmp_path / "mine", monkeypatch)


def test_a_run_whose_clients_keep_state_can_be_started_but_not_resumed(tmp_path, monkeypatch):
    kept = "client.keep_optimizer=true"
    assert start(tmp_path / "whole", monkeypatch, kept).finished
    stopped(tmp_path / "run", monkeypatch, kept)
    with pytest.raises(ConfigError, match=r"client\.keep_optimizer = true.*cannot be resumed"):
        start(tmp_path / "run", monkeypatch, kept)
