"""Evidence that a model has forgotten: an audit, and a verdict in plain words."""
