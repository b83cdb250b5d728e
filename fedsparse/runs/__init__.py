"""The run folder: what a run is told, what it measures, and where it goes on from."""

from fedsparse.runs.folder import RunFolder

__all__ = ["RunFolder"]
