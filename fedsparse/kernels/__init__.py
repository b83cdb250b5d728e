"""Sparse and dense training kernels for edge-sized models: C++ with a Python face."""
