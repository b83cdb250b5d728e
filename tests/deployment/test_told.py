"""What a node is told by `--node-config`: mistakes are named before anything starts."""

import subprocess
import sys

import pytest

from clients import kept_state
from fedsparse import messages
from fedsparse.data import node
from fedsparse.errors import ConfigError
from fedsparse.privacy import promised
from simulations.deployment import local
from simulations.deployment.told import KNOWN, check_told
from tests.command_line import error_line, invoke

OURS = (node.PATH, node.TEST, node.LABEL, node.CACHE, kept_state.PATH)
PROMISED = (promised.EPSILON_KEY, promised.DELTA_KEY)


def test_the_known_keys_are_those_that_somebody_reads():
    assert set(KNOWN) == {*OURS, *PROMISED, messages.CLIENT_KEY, "num-partitions"}


def test_what_a_node_is_told_is_read_as_flower_reads_it(tmp_path):
    text = "partition-id=0 data-path=\"/my data/a=b\" label='y' mine=true "
    text += "max-epsilon=1.5 state-path='/s'"
    said = {"partition-id": 0, "data-path": "/my data/a=b", "label": "y"} | {
        "max-epsilon": 1.5,
        "state-path": "/s",
    }
    assert check_told(text) == {**said, "mine": True}
    file = tmp_path / "node.toml"
    file.write_text('data-path = "/srv"\n')
    assert check_told(str(file)) == {"data-path": "/srv"}


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ('data-pth="/srv"', "did you mean 'data-path'?"),
        ('data_path="/srv"', "did you mean 'data-path'?"),
        ("max-epsiln=1.0", "did you mean 'max-epsilon'?"),
        ('labels="y"', "did you mean 'label'?"),
        ("data-path=/srv", 'data-path="/srv"'),
        ('data-path = "/srv"', "is no KEY=VALUE"),
        ('data-path="/srv",label="y"', "is neither a number nor"),
        ("/srv", "is no KEY=VALUE"),
        ("no-such.toml", "cannot be read"),
        ("data-path=3", 'data-path=3 is no text; write data-path="..."'),
        ('state-path=""', 'is no text; write state-path="..."'),
        ("partition-id=-1", "partition-id=-1 is no whole number from 0 on; write"),
        ("partition-id=true", "partition-id=True is no whole number from 0 on; write"),
        ("max-epsilon=1.0", 'add state-path="FOLDER"'),
        ("max-delta=0.00001", "max-delta alone promises nothing; add max-epsilon="),
        ("max-epsilon=nan", "'max-epsilon' is nan; start it with a finite number above 0"),
        ("max-epsilon=inf", "'max-epsilon' is inf; start it with a finite number above 0"),
        ("max-epsilon=-1", "'max-epsilon' is -1; start it with a finite number above 0"),
        ("max-epsilon=1.0 max-delta=1", "'max-delta' is 1; start it with a number between 0 and 1"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(text, remedy):
    with pytest.raises(ConfigError) as caught:
        check_told(text)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_ends_the_command_and_a_node_before_they_start(tmp_path):
    wrong = ("--node-config", 'data-pth="x"')
    done = invoke("deploy", "local", "--nodes", 1, *wrong, "--out", tmp_path / "run")
    assert "did you mean 'data-path'?" in error_line(done)
    assert not (tmp_path / "run").exists()
    command = [sys.executable, "-m", "simulations.deployment.node", *wrong]
    node_done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (node_done.returncode, node_done.stdout) == (1, "")
    assert node_done.stderr.strip() == (
        "fedsparse: error: --node-config: unknown key 'data-pth'; did you mean 'data-path'?"
    )


def test_a_finished_run_is_told_before_any_node_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "started", None)
    (tmp_path / "summary.json").write_text("{}")
    line = error_line(invoke("deploy", "local", "--nodes", 1, "--out", tmp_path))
    assert "is finished; choose another folder with --out" in line


def test_the_partition_is_the_commands_own(tmp_path):
    asked = ("--nodes", 1, "--node-config", "partition-id=3", "--out", tmp_path / "run")
    assert "leave it out" in error_line(invoke("deploy", "local", *asked))
