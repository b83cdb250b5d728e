"""FedPer (Arivazhagan et al. 2019; arXiv 1912.00818): a shared body, personal heads.

Both are trained together; the head, the last layer, stays with its client.
"""

from strategies.personal import PersonalStrategy


class FedPer(PersonalStrategy):
    """FedAvg over the body; each client keeps its head."""

    program = "split"
    part = "body"
    global_model = False
