"""Local training alone: what a client reaches with nobody's help.

No model travels; the server only says when a round begins.
"""

from strategies.personal import PersonalStrategy


class LocalOnly(PersonalStrategy):
    """Each client trains a model of its own from the common initial one."""

    program = "split"
    part = "none"
    global_model = False
