"""Unlearning on finished runs: what is to be forgotten, how, and the folder that comes of it."""
