"""ZeroMQ's CURVE with keys that follow from the pool's key: encrypted, and for members of the pool alone.

All servers of a pool have one key pair, and all clients another. The servers' public key is told to nobody: who knows
it has the pool's key, so a client that can say its first word is a member. `endpoints` calls both functions.
"""

import hashlib
import hmac
from typing import Any

import zmq
from zmq.utils import z85

from flexpert_proto.credentials import pool_key

_SERVERS = b"flexpert curve servers 1"
_CLIENTS = b"flexpert curve clients 1"


def serve(sock: "zmq.Socket[Any]") -> None:
    """Let only members in, where the pool has a key; before the socket is bound."""
    key = pool_key()
    if key is None:
        return
    sock.curve_secretkey = _secret(key, _SERVERS)
    sock.curve_server = True


def dial(sock: "zmq.Socket[Any]") -> None:
    """Come in as a member, where the pool has a key; before the socket is connected."""
    key = pool_key()
    if key is None:
        return
    secret = _secret(key, _CLIENTS)
    sock.curve_secretkey = secret
    sock.curve_publickey = zmq.curve_public(secret)
    sock.curve_serverkey = zmq.curve_public(_secret(key, _SERVERS))


def _secret(key: bytes, purpose: bytes) -> bytes:
    return z85.encode(hmac.digest(key, purpose, hashlib.sha256))
