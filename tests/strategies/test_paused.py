"""A run over real nodes with too few of them: it pauses, and says where and how it goes on."""

from types import SimpleNamespace

import pytest

from fedsparse.errors import TooFewRepliesError
from fedsparse.runs import RunFolder
from strategies import server_app
from tests.tiny_runs import BASE


def test_a_run_with_too_few_replies_says_after_which_round_it_paused(tmp_path, monkeypatch):
    def stopped(task, strategy, grid, folder, progress):
        for number in (0, 1):
            folder.save_checkpoint(number, {})
        raise TooFewRepliesError("1 of 3 clients replied")

    monkeypatch.setattr(server_app, "execute", stopped)
    monkeypatch.setenv("FEDSPARSE_OUT", str(tmp_path / "run"))
    flat = {
        f"{section}.{key}": value
        for section, values in BASE.items()
        for key, value in values.items()
        if section != "engine"
    }
    with pytest.raises(TooFewRepliesError, match="paused after round 1: 1 of 3 clients"):
        server_app.main(None, SimpleNamespace(run_config=flat, run_id=1))
    with RunFolder.open(tmp_path / "run").lock():  # free for whoever goes on
        pass
