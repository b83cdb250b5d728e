"""Edge export: from a trained sparse model to files that mobile runtimes run, and their cost."""
