"""Keys of secure aggregation: agreement (X25519), derivation (HKDF), sealing, and keystreams.

All from the package `cryptography`. A private key is 32 bytes from the operating system, so that it
can be shared as a secret; a key that was derived serves one purpose in one round.
"""

import hashlib
import secrets
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsparse.errors import MissingExtraError, SecureAggregationError

KEY = 32
"""Bytes of a private key, a public key, a seed, and a derived key."""

NONCE, OVERHEAD = 12, 28
"""Bytes of what makes each sealing another, and all that sealing adds."""

BLOCK = 2**16
"""Bytes of a keystream that are made at a time."""

Words = NDArray[Any]
"""Unsigned integers of 32 or 64 bits, which wrap."""


def require() -> None:
    """Raise MissingExtraError where the package that all of this needs is not installed."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise MissingExtraError("secure.aggregation", "deploy") from None


def fresh() -> bytes:
    """Return 32 random bytes of the operating system: a private key, or a seed."""
    return secrets.token_bytes(KEY)


def public_of(private: bytes) -> bytes:
    """Return the public key of a private one."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """Return the key that two parties derive, each from its private and the other's public key.

    `purpose` says what for, in which round; other purposes have unrelated keys. Raises
    SecureAggregationError for a public key that is none.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    try:
        point = X25519PublicKey.from_public_bytes(public)
        shared = X25519PrivateKey.from_private_bytes(private).exchange(point)
    except ValueError:
        raise SecureAggregationError("a public key is none; its sender is not trusted") from None
    return derived(shared, purpose)


def derived(secret: bytes, purpose: bytes) -> bytes:
    """Return a key of 32 bytes for one purpose from a secret (HKDF with SHA-256)."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(hashes.SHA256(), KEY, salt=None, info=b"fedsparse secure " + purpose).derive(secret)


def commitment(seed: bytes) -> bytes:
    """Return what tells whether a seed that was put together is the one that was shared."""
    return hashlib.sha256(b"fedsparse seed " + seed).digest()


def seal(key: bytes, content: bytes, bound: bytes) -> bytes:
    """Encrypt and authenticate (ChaCha20-Poly1305).

    `bound` is not sent, and must be the same where it is opened. The nonce is random: a client
    whose state was lost may seal other shares under a key that it used before.
    """
    nonce = secrets.token_bytes(NONCE)
    sealed: bytes = _cipher(key).encrypt(nonce, content, bound)
    return nonce + sealed


def unseal(key: bytes, sealed: bytes, bound: bytes) -> bytes:
    """Return what was sealed; raises SecureAggregationError where it was changed, or another's."""
    from cryptography.exceptions import InvalidTag

    try:
        opened: bytes = _cipher(key).decrypt(sealed[:NONCE], sealed[NONCE:], bound)
    except (InvalidTag, ValueError):
        raise SecureAggregationError(
            "shares cannot be opened: they were changed, or are of another round"
        ) from None
    return opened


def _cipher(key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(key)


def add_keystream(words: Words, seed: bytes, sign: int) -> None:
    """Add a seed's keystream (ChaCha20) to words in place, or take it away for a sign of -1.

    To who lacks the seed its words are uniform. Blocks of them stay in the processor's cache.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    encryptor = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    zeros, room = bytes(BLOCK), bytearray(BLOCK)
    stream = np.frombuffer(room, words.dtype.newbyteorder("<"))
    for begin in range(0, len(words), len(stream)):
        part = words[begin : begin + len(stream)]
        encryptor.update_into(zeros[: part.nbytes], room)
        if sign > 0:
            part += stream[: len(part)]
        else:
            part -= stream[: len(part)]
