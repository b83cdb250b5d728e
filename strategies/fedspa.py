"""FedSpa (2022): clients train sparsely from the start, and masked updates make a dense model.

A client gets the global weights that its mask keeps, trains those, and moves its mask by a
cosine; the server adds the mean update, to which a client that prunes a weight brings nothing:
w <- w + sum_k p_k m_k (w_k - w), as we read it. Clients count by their samples here.

With alpha = 0 masks stay as they were drawn. A client's personal model is its mask on the global
weights.
"""

from collections.abc import Sequence

from strategies.own_masks import weighted
from strategies.replies import Reply
from strategies.sparse_to_sparse import SparseToSparse
from strategies.sums import own_mask_mean


class FedSpa(SparseToSparse):
    """A dense global model from clients that train and send only what their masks keep."""

    def aggregate(self, round_number: int, replies: Sequence[Reply]) -> None:
        """Add the mean of the masked updates; remember each client's next mask."""
        self.state = own_mask_mean(weighted(replies), self.state, absent_stay=True)
        self.note_masks(replies)
