"""Training shared by server and clients: local steps, evaluation, BatchNorm statistics."""
