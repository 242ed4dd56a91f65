"""Malformed frames for every port: valid ones with bytes changed, noise, and messages whose fields hold extremes.

`FLEXPERT_FRAMES=10000` sends that many at each port instead of a few. hypothesis chooses seeds, and each seed makes a
batch of frames: drawing every byte by itself costs more than the ports do.
"""

import contextlib
import json
import math
import os
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import psutil
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NUM_FRAMES = int(os.environ.get("FLEXPERT_FRAMES", "40"))
GROWTH_BYTES = 32 * 2**20
"""By which the memory of who is sent frames may grow, behind the first half of them."""

_BATCH = 20
_WHOLE = (0, 1, 2, 3, 7, 64, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1)
_REAL = (0.0, -1.0, 1e-300, 1e300, math.inf, -math.inf, math.nan)
_TEXT = ("", "a", "tiny", "w0", "file:///model", "\0", "🙂" * 50, "../" * 20, "x" * 3000)
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (0, 2**31 - 1),
}

HTTP = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 14\r\n\r\n" + b'{"prompt":"a"}'
)

Make = Callable[[random.Random], bytes]


def send_and_leave(port: int, data: bytes) -> None:
    """Send, say that nothing more comes, and wait until the other side hangs up too."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


def send_over_tls(port: int, data: bytes, context: ssl.SSLContext) -> None:
    """Send over TLS, and hang up."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as connection,
        context.wrap_socket(connection, server_hostname="127.0.0.1") as secured,
    ):
        secured.sendall(data)


def send_all(make: Make, check: Callable[[bytes], None], number: int = NUM_FRAMES) -> None:
    """Have `check` send `number` frames that `make` makes, and judge what comes of each."""

    @settings(
        max_examples=max(1, number // _BATCH),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**64))
    def send_batch(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(_BATCH):
            frame = make(rng)
            try:
                check(frame)
            except BaseException as error:
                error.add_note(f"the frame: {frame.hex()}")
                raise

    send_batch()


def own_memory() -> int:
    """Bytes of this process that are in memory."""
    return int(psutil.Process().memory_info().rss)


def flat(attack: Callable[[int], None], memory: Callable[[], int] = own_memory, number: int = NUM_FRAMES) -> None:
    """Send one half of the frames, then the other: the second one adds next to nothing to the memory; says how much."""
    attack(number // 2)
    before = memory()
    attack(number - number // 2)
    grown = memory() - before
    print(f"{number} frames; memory grew by {grown / 2**20:.1f} MiB in the second half")
    assert grown < GROWTH_BYTES


def broken(*valid: bytes) -> Make:
    """Noise, or a valid frame with bytes changed, taken out, put in or cut off."""

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.2:
            return rng.randbytes(rng.randrange(300))
        data = bytearray(rng.choice(valid))
        for _ in range(rng.randint(1, 4)):
            position = rng.randint(0, len(data))
            data[position : position + rng.randrange(4)] = rng.randbytes(rng.randrange(5))
        return bytes(data[: rng.randint(0, len(data))] if rng.random() < 0.3 else data)

    return make


def either(*makes: Make) -> Make:
    """One of them."""
    return lambda rng: rng.choice(makes)(rng)


def messages(kind: type[Message], *valid: Message) -> Make:
    """Messages that can be read, whose fields hold anything, or that are valid but for a field."""

    def make(rng: random.Random) -> bytes:
        message = kind()
        if valid and rng.random() < 0.6:
            message.CopyFrom(rng.choice(valid))
        fill(message, rng, part=0.2 if message.ByteSize() else 0.6)
        return message.SerializeToString()

    return make


def fill(message: Message, rng: random.Random, part: float, depth: int = 4) -> None:
    """Put anything into a part of the fields."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() >= part or depth == 0:
            continue
        if field.is_repeated:
            _fill_repeated(message, field, rng, part, depth)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            fill(getattr(message, field.name), rng, part, depth - 1)
            getattr(message, field.name).SetInParent()
        else:
            setattr(message, field.name, _value(field, rng))


def _fill_repeated(message: Message, field: FieldDescriptor, rng: random.Random, part: float, depth: int) -> None:
    held = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        if value.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            fill(held[_value(key, rng)], rng, part, depth - 1)
        else:
            held[_value(key, rng)] = _value(value, rng)
        return
    for _ in range(rng.choice((0, 1, 2, 5))):
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            fill(held.add(), rng, part, depth - 1)
        else:
            held.append(_value(field, rng))


def _value(field: FieldDescriptor, rng: random.Random) -> Any:
    kind = field.cpp_type
    if kind in _RANGES:
        lowest, highest = _RANGES[kind]
        return min(max(rng.choice(_WHOLE) * rng.choice((1, 1, 1, -1)), lowest), highest)
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return rng.choice(_REAL)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    text = rng.choice(_TEXT)
    return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text


def bodies(valid: dict[str, Any], *others: str) -> Make:
    """JSON of a valid body in which some fields, these others among them, are of any value."""

    def make(rng: random.Random) -> bytes:
        fields = rng.sample([*valid, *others], rng.randint(1, 3))
        return json.dumps({**valid, **{field: anything(rng) for field in fields}}, default=repr).encode()

    return make


def structures(*valid: Any) -> Make:
    """MessagePack of valid messages in which some values are other ones, of any type."""
    plain = [msgspec.msgpack.decode(msgspec.msgpack.encode(message)) for message in valid]

    def make(rng: random.Random) -> bytes:
        return msgspec.msgpack.encode(_changed(rng.choice(plain), rng))

    return make


def _changed(value: Any, rng: random.Random) -> Any:
    if rng.random() < 0.1:
        return anything(rng)
    if isinstance(value, dict):
        return {key: _changed(inner, rng) for key, inner in value.items() if rng.random() > 0.03}
    if isinstance(value, list):
        return [_changed(inner, rng) for inner in value if rng.random() > 0.03]
    return value


def anything(rng: random.Random) -> Any:
    """A value of any type."""
    choices: Sequence[Any] = (
        None,
        True,
        rng.choice(_WHOLE),
        -rng.choice(_WHOLE[:-2]),
        rng.choice(_REAL),
        rng.choice(_TEXT),
        rng.randbytes(rng.randrange(40)),
        [rng.choice(_WHOLE)] * rng.randrange(4),
        {"type": rng.choice(_TEXT)},
    )
    return rng.choice(choices)
