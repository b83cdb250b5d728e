"""FedRolex (Alam et al., NeurIPS 2022; arXiv 2212.01548): slices that roll over the channels.

As HeteroFL, but the slices of round t begin at channel t mod C of a layer of C channels, and
wrap around: within C rounds every channel is trained, and no client needs to hold the whole
model for the whole of it to be trained.
"""

from strategies.heterofl import HeteroFl


class FedRolex(HeteroFl):
    """Averaging over slices whose first channel moves on by one each round."""

    def first_channel(self, round_number: int) -> int:
        """Return t, which each layer takes modulo its channels."""
        return round_number
