"""What clients keep between messages, as the grid holds it: on the disk, not in memory.

A run's states lie in `clients.sqlite` of its folder (`state_file.py`), from which a checkpoint's
can be restored exactly; without a folder they lie in memory. Equal bytes are held once, and
come back as one object while they are in use.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedsparse import state_codec
from fedsparse.errors import RunFolderError
from fedsparse.state_codec import State
from simulations.state_file import NAME, StateFile

__all__ = ["ClientStates", "State"]


class ClientStates:
    """The state of every client that has one. The file is made when the first state comes."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._file: StateFile | None = None

    def get(self, client: int) -> State | None:
        """Return a client's state; None when it has none."""
        body = None if self._file is None else self._file.body(client)
        if body is None or self._file is None:
            return None
        return state_codec.decode(body, self._file.part)

    def keep(self, client: int, state: State) -> None:
        """Replace a client's state; an empty one isn't held."""
        if state:
            self._opened().replace(client, *state_codec.encode(state))
        elif self._file is not None:
            self._file.replace(client, None)

    def forget(self, client: int) -> None:
        """Remove a client's state for good: from the next `commit` no checkpoint brings it back."""
        if self._file is not None:
            self._file.forget(client)

    def all(self) -> dict[int, State]:
        """Return the state of every client that has one, in the order of clients."""
        clients = [] if self._file is None else self._file.clients()
        return {client: state for client in clients if (state := self.get(client)) is not None}

    def load(self, states: Mapping[int, State]) -> None:
        """Replace every client's state."""
        for client in [] if self._file is None else self._file.clients():
            if client not in states:
                self.keep(client, {})
        for client, state in states.items():
            self.keep(client, state)

    def commit(self, round_number: int, kept: Iterable[int]) -> dict[str, Any]:
        """Put what changed on the disk as the states after a round.

        Versions that neither this round nor one of `kept` needs are removed. Returns what the
        round's checkpoint must hold to find them again; it is empty when no client has a state.
        """
        if self._file is None:
            return {}
        self._file.commit(round_number, kept)
        clients, mark = self._file.mark
        return {"clients": clients, "mark": mark} if clients else {}

    def restore(self, round_number: int, saved: Mapping[str, Any]) -> None:
        """Go back to the states of a round for which `commit` returned `saved`.

        Changes nothing on the disk. Raises RunFolderError when the file is missing or damaged,
        or holds other states.
        """
        self.close()
        if not saved:
            self._file = self._emptied(round_number)
            return
        if "mark" not in saved:  # of a run that began when checkpoints held the states
            self.load({int(client): state for client, state in saved.items()})
            return
        path = (self._folder or Path()) / NAME
        if self._folder is None or not path.is_file():
            raise RunFolderError(
                f"'{path}' is missing, which holds the states of {saved['clients']} clients; "
                "put it back, or start again with another --out"
            )
        file = StateFile(self._folder, new=False)
        try:
            file.restore(round_number)
            if file.mark != (saved["clients"], saved["mark"]):
                raise RunFolderError(
                    f"'{path}' does not hold the states that checkpoint {round_number} was "
                    "written with; put it back as it was, or start again with another --out"
                )
        except RunFolderError:
            file.close()
            raise
        self._file = file

    def close(self) -> None:
        """Let the file go; what came after the last `commit` is lost."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _emptied(self, round_number: int) -> StateFile | None:
        """Return the file of a round at which no client had a state any more, if it is there.

        Older checkpoints may need what it holds; a file without that round is none of theirs.
        """
        if self._folder is None or not (self._folder / NAME).is_file():
            return None
        file = None
        try:
            file = StateFile(self._folder, new=False)
            file.restore(round_number)
            if not file.mark[0]:
                return file
        except RunFolderError:
            pass
        if file is not None:
            file.close()
        return None

    def _opened(self) -> StateFile:
        if self._file is None:
            self._file = StateFile(self._folder, new=True)
        return self._file
