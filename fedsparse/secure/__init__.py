"""Secure aggregation: what clients and server share of it (Bonawitz et al. 2017, Bell et al. 2020).

Fixed point, Shamir's shares, keys and masks, and the bytes of its messages. The client's side is
`clients/secure.py`, the server's `strategies/secure.py`.
"""
