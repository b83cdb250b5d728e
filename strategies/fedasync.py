"""FedAsync (Xie, Koyejo, Gupta 2019; arXiv 1903.03934): mix each update in as it arrives.

x_t = (1 - alpha_t) x_{t-1} + alpha_t x_new with alpha_t = alpha s(t - tau) (Algorithm 1 and
section 5.2): the older the model that a client started with, the less its update counts.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from fedsparse.config import Finite
from fedsparse.messages import Plan
from strategies.addressing import round_size
from strategies.asynchronous import AsyncSettings, AsyncStrategy, Flight, mapped
from strategies.replies import Reply


class FedAsyncSettings(AsyncSettings):
    """Keys of `[strategy]` for fedasync."""

    mixing: Finite = Field(default=0.6, gt=0, le=1, description="alpha: weight of a fresh update")
    staleness: Literal["constant", "polynomial", "hinge"] = "polynomial"
    exponent: Finite = Field(default=0.5, ge=0, description="a of polynomial and hinge")
    grace: int = Field(default=4, ge=0, description="b of hinge: staleness without a penalty")
    proximal_mu: Finite = Field(default=0.0, ge=0, description="rho of the local objective")
    updates: int | None = Field(
        default=None, ge=1, description="updates that make a round; clients_per_round if unset"
    )


class FedAsync(AsyncStrategy):
    """Asynchronous averaging: each update is mixed in when it arrives."""

    Settings = FedAsyncSettings
    keeps_starts = False

    @property
    def updates_per_round(self) -> int:
        """Return how many updates make a row of figures; each is applied at once."""
        return int(self.settings.updates or round_size(self.task.config.fleet))

    def plan(self, round_number: int) -> Plan:
        """Ask for training with the proximal term, if set (Algorithm 1, worker)."""
        return Plan(round_number, self.settings.values, self.settings.proximal_mu)

    def weight(self, staleness: int) -> float:
        """alpha_t = alpha s(t - tau), s constant, polynomial or hinge (section 5.2)."""
        s = self.settings
        if s.staleness == "polynomial":
            return float(s.mixing * (1.0 + staleness) ** -s.exponent)
        if s.staleness == "hinge" and staleness > s.grace:
            return float(s.mixing / (s.exponent * (staleness - s.grace) + 1.0))
        return float(s.mixing)

    def absorb(self, update: Reply, flight: Flight, staleness: int) -> None:
        """x_t = (1 - alpha_t) x_{t-1} + alpha_t x_new, where both masks keep."""
        alpha = self.weight(staleness)
        theirs, where = mapped(update, self.state, self.mask)
        mixed = {
            name: ((1 - alpha) * old.astype(np.float64) + alpha * theirs[name]).astype(np.float32)
            for name, old in self.state.items()
        }
        self.state = {n: np.where(where[n], mixed[n], old) for n, old in self.state.items()}
        self.version += 1
