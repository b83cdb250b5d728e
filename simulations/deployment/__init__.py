"""Runs on real Flower nodes: certificates, processes, a node that answers fast, a local fleet.

Flower's own SuperLink and SuperNode carry the messages; here they are started, told apart by
keys, watched and ended.
"""
