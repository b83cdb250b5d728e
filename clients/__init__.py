"""Client side: the ClientApp and what it does with local data."""
