"""Strategies of other makers: their errors are told in one line, ours stay what they are."""

import pytest
from flwr.serverapp.strategy import FedAvg

from fedsparse.errors import ConfigError, GridError, ModelError
from strategies import foreign
from strategies.fedavg import FedAvg as OurFedAvg
from strategies.task import Task
from tests.strategies.stage import QUICK
from tests.tiny_runs import tiny


@pytest.mark.parametrize("error", [ValueError("many\nlines\n"), OSError("lines")])
def test_what_a_foreign_strategy_raises_names_it_and_its_round(error):
    said = f"^strategy FedAvg failed in round 3: {type(error).__name__}: lines$"
    with pytest.raises(GridError, match=said), foreign.guarded(FedAvg(), 3):
        raise error


@pytest.mark.parametrize("error", [ModelError("ours"), MemoryError(), KeyboardInterrupt()])
def test_what_has_a_line_of_its_own_goes_through(error):
    with pytest.raises(type(error)) as caught, foreign.guarded(FedAvg(), 3):
        raise error
    assert caught.value is error


def test_a_defect_of_ours_keeps_its_traceback():
    ours = OurFedAvg(Task.of(tiny(*QUICK, "strategy.name=fedavg")))
    with pytest.raises(ValueError, match="a defect"), foreign.guarded(ours, 3):
        raise ValueError("a defect")


class Patient(FedAvg):
    """Wants nine nodes, whatever it is told."""

    def __init__(self) -> None:
        super().__init__(min_available_nodes=9)


def test_a_strategy_that_waits_for_more_nodes_by_itself_is_refused():
    config = tiny(*QUICK, f"strategy.name={__name__}:Patient")
    with pytest.raises(ConfigError, match=r"min_available_nodes = 9 .*fleet\.clients = 4"):
        foreign.make(Task.of(config))
