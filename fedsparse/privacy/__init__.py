"""Privacy that a device gives itself: how much noise a promise takes, and what gets that noise.

Server and clients share it: who adds noise and who makes sense of it must mean the same.
"""
