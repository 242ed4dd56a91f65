"""ZeroMQ's CURVE with keys that follow from the pool's: encrypted, and for members of the pool alone.

Of each of the pool's keys all servers have one key pair, and all clients another. The servers' public key is told to
nobody: who knows it has the pool's key, so a client that can say its first word is a member. A server says by its
endpoint which of the keys it has, so that a pool can be given another while it runs. `endpoints` calls both functions.
"""

import hashlib
import hmac
from typing import Any

import zmq
from zmq.utils import z85

from flexpert_proto.credentials import pool_keys

_SERVERS = b"flexpert curve servers 1"
_CLIENTS = b"flexpert curve clients 1"
_NAME = b"flexpert curve name 1"
_NAME_DIGITS = 16
_NAMED = "?key="


def serve(sock: "zmq.Socket[Any]") -> str:
    """Let only members in, where the pool has a key; before the socket is bound.

    Returns:
        What the endpoint ends with, by which members know the key.
    """
    keys = pool_keys()
    if not keys:
        return ""
    sock.curve_secretkey = _secret(keys[0], _SERVERS)
    sock.curve_server = True
    return f"{_NAMED}{_name(keys[0])}"


def dial(sock: "zmq.Socket[Any]", endpoint: str) -> str:
    """Come in as a member, where the pool has a key; before the socket is connected.

    A key that is not known here, or not yet, is another's: the server does not let in whoever shows one of theirs.

    Returns:
        The endpoint as ZeroMQ takes it.
    """
    plain, _, name = endpoint.partition(_NAMED)
    keys = pool_keys()
    if not keys:
        return plain
    key = next((key for key in keys if _name(key) == name), keys[0])
    secret = _secret(key, _CLIENTS)
    sock.curve_secretkey = secret
    sock.curve_publickey = zmq.curve_public(secret)
    sock.curve_serverkey = zmq.curve_public(_secret(key, _SERVERS))
    return plain


def _secret(key: bytes, purpose: bytes) -> bytes:
    return z85.encode(hmac.digest(key, purpose, hashlib.sha256))


def _name(key: bytes) -> str:
    """Tells keys apart, and nothing else of them."""
    return hmac.digest(key, _NAME, hashlib.sha256).hex()[:_NAME_DIGITS]
