"""FedBN (Li et al., ICLR 2021; arXiv 2102.07623): BatchNorm stays with the client.

Its scale, shift and statistics follow each client's own features; all else is averaged.
"""

from strategies.personal import PersonalStrategy


class FedBn(PersonalStrategy):
    """FedAvg over all but BatchNorm."""

    program = "split"
    part = "unnormalised"
    global_model = False
