"""LG-FedAvg (Liang et al. 2020; arXiv 2001.01523): personal representations, a shared head.

Both are trained together; all but the last layer stays with its client.
"""

from strategies.personal import PersonalStrategy


class LgFedAvg(PersonalStrategy):
    """FedAvg over the head; each client keeps its body."""

    program = "split"
    part = "head"
    global_model = False
