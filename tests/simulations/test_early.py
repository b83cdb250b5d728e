"""Starting early: Ray only where nothing is seen to be wrong, and never left behind."""

from typing import Any, ClassVar

import pytest

from fedsparse.errors import ConfigError
from simulations import early, ray_session

ON_RAY = {"engine": {"name": "ray"}}


class Session:
    """Stands for Ray."""

    made: ClassVar[list["Session"]] = []

    def __init__(self, workers: int, address: str | None = None) -> None:
        self.workers, self.closed = workers, False
        self.made.append(self)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def sessions(monkeypatch) -> list[Session]:
    monkeypatch.setattr(Session, "made", [])
    monkeypatch.setattr(ray_session, "RaySession", Session)
    return Session.made


def test_ray_is_started_where_the_configuration_or_a_change_names_it(sessions):
    with early.prepared(ON_RAY, ["engine.workers=2"], None) as session:
        assert (session.workers, session.closed) == (2, False)
    assert session.closed
    with early.prepared({}, ["engine.name=ray", "strategy.density=0.1"], None):
        assert len(sessions) == 2
    for name in ("inline", "auto", "flower"):
        with early.prepared(ON_RAY, [f"engine.name={name}"], None) as session:
            assert session is None
    assert len(sessions) == 2


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "an unknown key": (ON_RAY, ["fleet.cleints=3"]),
    "a value out of range": (ON_RAY, ["run.rounds=-1"]),
    "an unknown section": ({**ON_RAY, "fleeet": {}}, []),
    "a section that is none": ({**ON_RAY, "strategy": 3}, []),
    "no assignment": (ON_RAY, ["rounds"]),
    "an unknown strategy": (ON_RAY, ["strategy.name=fedtini"]),
    "a strategy that is no name": ({**ON_RAY, "strategy": {"name": [1]}}, []),
    "a density out of range": (ON_RAY, ["strategy.density=7"]),
    "an unknown model": (ON_RAY, ["model.name=cnnn"]),
    "an unknown data set": (ON_RAY, ["data.name=digit"]),
    "too many workers": (ON_RAY, ["engine.workers=9999"]),
    "no cluster": (ON_RAY, ["engine.ray_address=nowhere"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_nothing_starts_where_a_mistake_is_seen(sessions, mistake):
    with early.prepared(*MISTAKES[mistake], None) as session:
        assert session is None
    assert not sessions


def test_nothing_starts_for_a_folder_that_is_taken(sessions, tmp_path):
    (tmp_path / "run.json").touch()
    for out in (tmp_path, tmp_path / "run.json"):
        with early.prepared(ON_RAY, [], out) as session:
            assert session is None
    with early.prepared(ON_RAY, [], tmp_path / "new") as session:
        assert session is not None


@pytest.mark.parametrize("error", [ConfigError("a mistake seen later"), KeyboardInterrupt()])
def test_ray_ends_with_whatever_ends_the_run(sessions, error):
    with pytest.raises(type(error)), early.prepared(ON_RAY, [], None):
        raise error
    assert [session.closed for session in sessions] == [True]
