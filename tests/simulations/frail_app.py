"""fedsparse's own clients, one of which comes to grief once in training, as a plan says.

The plan is JSON in the folder that FRAIL_FOLDER names: what happens, in which round, to which
client. A file `done` says that it has happened.
"""

import json
import os
import resource
import signal
import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.client_app import app as sound
from fedsparse import messages


class Frail(ClientApp):
    """Answers as fedsparse's clients do, unless the plan strikes first."""

    def __call__(self, message: Message, context: Context) -> Message:
        folder = Path(os.environ["FRAIL_FOLDER"])
        plan = json.loads((folder / "plan.json").read_text())
        here = message.metadata.message_type.startswith("train")
        if here and self.is_struck(plan, message, context):
            always = plan.get("always", False)
            if always or not (folder / "done").exists():
                strike(plan["kind"], folder)
        return sound(message, context)

    def is_struck(self, plan: dict[str, object], message: Message, context: Context) -> bool:
        _, job = messages.read_config(message.content.config_records[messages.CONFIG])
        client = context.node_config["partition-id"]
        return job.round == plan["round"] and client in plan["clients"]  # type: ignore[operator]


def strike(kind: str, folder: Path) -> None:
    """Do what the plan says: kill this worker, run out of memory, or wait for the node's end."""
    if kind == "memory":
        (folder / "done").touch()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (1, most))  # what it has stays; it gets no more
        bytearray(2**30)
    if kind == "wait":
        import ray

        (folder / "node").write_text(ray.get_runtime_context().get_node_id())
        (folder / "done").touch()
        time.sleep(600)
    (folder / "done").touch()
    os.kill(os.getpid(), signal.SIGKILL)


app = Frail()
