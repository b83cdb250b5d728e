"""Merkle trees: RFC 6962's own values, and proofs that hold for members alone."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from fedsparse.runs import merkle

KEY = bytes(range(32))

RFC_LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]
RFC_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
]
"""Of the trees over none, one, two, ... of the leaves: test data of certificate transparency."""


def ids(*numbers):
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("count", range(8))
def test_roots_are_those_of_rfc_6962(count):
    hashes = [hashlib.sha256(b"\0" + bytes.fromhex(text)).digest() for text in RFC_LEAVES[:count]]
    assert merkle.root(hashes).hex() == RFC_ROOTS[count]


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 8, 13])
def test_each_member_has_a_proof_and_it_proves_nothing_else(count):
    own = np.arange(100, 100 + count, dtype=np.int64)
    root = merkle.root(merkle.leaves(KEY, 4, own))
    for sample in own.tolist():
        shown = merkle.proof(KEY, 4, own, sample)
        assert merkle.verify(root, shown)
        assert shown.leaf in merkle.leaves(KEY, 4, own)
        assert not merkle.verify(root, replace(shown, sample=sample + 1))
        assert not merkle.verify(root, replace(shown, nonce=bytes(16)))
        assert not merkle.verify(merkle.root(merkle.leaves(KEY, 4, own + 1)), shown)
        if shown.path:
            assert not merkle.verify(root, replace(shown, path=shown.path[:-1]))


def test_no_proof_is_made_for_a_sample_that_is_not_there():
    with pytest.raises(ValueError, match="client 4 does not train on sample 9"):
        merkle.proof(KEY, 4, ids(1, 2, 3), 9)


def test_a_node_is_no_leaf():
    left, right = merkle.leaves(KEY, 0, ids(1, 2))
    root = merkle.root([left, right])
    assert root != hashlib.sha256(b"\0" + left + right).digest()
    assert merkle.root([root]) == root


def test_hashes_cannot_be_compared_between_keys_or_clients():
    found = [merkle.leaves(key, client, ids(7, 8)) for key in (KEY, bytes(32)) for client in (0, 1)]
    assert len({leaf for leaves in found for leaf in leaves}) == 8
    assert merkle.leaves(KEY, 0, ids(7, 8)) == found[0]
