"""A client that is told what the model is trains natively, and needs torch for nothing else."""

import json
import subprocess
import sys

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fedsparse import messages, wire
from fedsparse.messages import Plan
from fedsparse.sparsity import Mask
from simulations import flower_internals as internals
from strategies.task import Task, masked
from tests.clients import without_torch
from tests.command_line import ROOT
from tests.kernels.passes import needs_kernels
from tests.tiny_runs import tiny

CNN = ("model.name=cnn", "model.width=0.5", "data.samples=240", "client.backend=auto")
NATIVE = ("client.sparse_linear_below=0.5", "client.sparse_conv_below=0.5")
MISSING = "which this node lacks: pip install torch at the node"


def answers(asked, tmp_path, torch="without"):
    """Return what a client in a process of its own answers, and whether it imported torch."""
    file = tmp_path / "messages.json"
    file.write_text(without_torch.written(asked))
    done = subprocess.run(
        [sys.executable, "-m", "tests.clients.without_torch", str(file), torch],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return told["replies"], told["torch"]


class World:
    """A tiny run at the server, and the messages that it sends."""

    def __init__(self, *assignments, described=True):
        self.task = Task.of(tiny(*CNN, *NATIVE, *assignments), settle=False)
        rng = np.random.default_rng(0)
        shapes = self.task.shapes
        bits = {name: rng.random(shape) < 0.3 for name, shape in shapes.items()}
        self.mask = Mask.from_arrays(bits)
        self.model = masked(self.task.pretrain(0, 0.0), self.mask)
        self.described = described
        internals.become_server(1)

    def ask(self, kind, plan, **records):
        config = messages.write_config(self.task.config, plan)
        content = {messages.CONFIG: config, **records}
        if self.described:
            config[messages.MODEL_KEY] = self.task.described
        return Message(RecordDict(content), 1, kind)

    def sent(self, kind, plan=None):
        payload = wire.pack(wire.encode(self.model, mask=self.mask))
        return self.ask(kind, plan or Plan(round=1), arrays=payload)

    def fedtiny(self):
        """The messages of FedTiny: both exchanges, a round that grows, a test."""
        layer = self.task.prunable[1]
        candidates = wire.pack_many({"0": wire.encode(self.model, mask=self.mask)})
        return [
            Message(RecordDict(), 1, messages.IDENTIFY),
            self.ask(messages.STATISTICS, Plan(samples=40), candidates=candidates),
            self.ask(messages.LOSSES, Plan(samples=40)),
            self.sent(messages.TRAIN, Plan(round=1, grow={layer: 7}, samples=16)),
            self.sent(messages.EVALUATE),
        ]


@needs_kernels
def test_fedtiny_is_answered_with_the_same_bytes_and_torch_is_not_imported(tmp_path):
    kept = ("client.optimizer=adam", "client.keep_optimizer=true")
    world, whole = World(*kept), World(*kept, described=False)
    asked = world.fedtiny() + world.fedtiny()[3:]  # the second round has what the first one kept
    without, imported = answers(asked, tmp_path)
    assert not imported
    assert all(isinstance(reply, dict) for reply in without), without
    assert without[0]["metrics"]["metrics"] == {"partition-id": 0, "reads-model": 1}
    assert answers(asked, tmp_path, "with") == (without, False)
    undescribed = whole.fedtiny() + whole.fedtiny()[3:]
    assert answers(undescribed, tmp_path, "with") == (without, True)


@needs_kernels
def test_what_needs_torch_says_so_in_one_line_and_the_next_message_is_answered(tmp_path):
    """The process lives on."""
    world = World()
    torch = World("client.backend=torch", described=False)
    bf16 = World("client.precision=bf16", described=False)
    odd = World(described=False)
    replies, imported = answers(
        [
            world.sent(messages.TRAIN, Plan(round=1, program="fedem")),
            world.sent(messages.TRAIN, Plan(round=1, program="fjord")),
            world.sent(messages.SCORE, Plan(round=1, criterion="snip", samples=20)),
            torch.sent(messages.TRAIN),
            bf16.sent(messages.TRAIN),
            odd.sent(messages.TRAIN),
            world.sent(messages.TRAIN),
        ],
        tmp_path,
    )
    assert not imported
    *failed, trained = replies
    assert isinstance(trained, dict)
    named = [
        "'train' by the program 'fedem'",
        "'train' by the program 'fjord'",
        "'query.score'",
        "'train' with client.backend = 'torch'",
        "'train' with client.precision = 'bf16'",
        "'train' with model.name = 'cnn'",
    ]
    for reply, what in zip(failed, named, strict=True):
        assert reply.startswith(f"MissingTorchError: {what}"), reply
        assert MISSING in reply
        assert "\n" not in reply


@needs_kernels
def test_a_description_of_another_model_is_refused(tmp_path):
    world, other = World(), World("model.name=mlp")
    asked = world.sent(messages.TRAIN)
    sent = []
    for told in (other.task.described, b"\x78\x9c nothing"):
        record = {**asked.content[messages.CONFIG], messages.MODEL_KEY: told}
        content = {**asked.content, messages.CONFIG: ConfigRecord(record)}
        sent.append(Message(RecordDict(content), 1, messages.TRAIN))
    (unlike, broken), _ = answers(sent, tmp_path)
    assert unlike.startswith("WireError: ")
    assert broken == "ModelError: the model's description cannot be unpacked"
