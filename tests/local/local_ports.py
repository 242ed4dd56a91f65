"""Which ports the processes of a laptop cluster listen on, and the table of docs/security.md that has to name them."""

import http.client
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import grpc
import psutil

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
LOOPBACK, EVERYWHERE = "loopback", "every interface"
RAY_TOKEN = "Ray's token"
PASSING = ("ray::IDLE", "ray::NodeFetch")
"""Processes that are not always there."""

RAY_METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.serve.ASGIService/HandleRequest",
)
"""One of each service of Ray; the last one would unpickle what it is sent."""


class Row(NamedTuple):
    process: str
    port: str
    laptop: str
    cluster: str
    speaks: str
    whom: str
    protection: str


class Listener(NamedTuple):
    process: str
    pid: int
    host: str
    port: int


def table() -> list[Row]:
    """The rows of the section Ports."""
    section = DOCUMENT.read_text().partition("\n## Ports\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    rows = [Row(*(cell.strip().strip("`") for cell in line.strip("|").split("|"))) for line in lines]
    assert all(row.protection for row in rows)
    return rows


def listeners(pids: Iterable[int]) -> list[Listener]:
    """Listening TCP sockets of processes; that there is none over UDP."""
    found = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            name, sockets = name_of(process), process.net_connections("inet")
        except psutil.NoSuchProcess:  # it has ended meanwhile
            continue
        assert not [one for one in sockets if one.type.name == "SOCK_DGRAM"], name
        found += [
            Listener(name, pid, one.laddr.ip.removeprefix("::ffff:"), one.laddr.port)
            for one in sockets
            if one.status == psutil.CONN_LISTEN
        ]
    return found


def name_of(process: psutil.Process) -> str:
    """A Python module by its name, one of Ray's by its title without the method that it runs, another by its own."""
    command = process.cmdline()
    if command and command[0].startswith("ray::"):
        return re.split(r"[. ]", command[0])[0]
    return command[command.index("-m") + 1] if "-m" in command else process.name()


def unlisted(found: Iterable[Listener]) -> list[str]:
    """How open ports differ from those that the table names: as many of each process, and where it says."""
    rows = table()
    named = Counter((row.process, row.laptop) for row in rows)
    open_ports = Counter((one.process, one.pid, LOOPBACK if one.host == "127.0.0.1" else EVERYWHERE) for one in found)
    wrong = [
        f"{process} has {count} ports on {where}, named are {named[process, where]}"
        for (process, _, where), count in open_ports.items()
        if count != named[process, where]
    ]
    seen = {(process, where) for process, _, where in open_ports}
    wanted = {key for key in named if key[1] in (LOOPBACK, EVERYWHERE) and key[0] not in PASSING}
    return wrong + [f"{process} has no port on {where}" for process, where in sorted(wanted - seen)]


def unguarded(found: Iterable[Listener]) -> list[str]:
    """Ports of Ray that answer who has no token, or a wrong one."""
    guarded = Counter(row.process for row in table() if row.protection == RAY_TOKEN)
    by_pid: dict[tuple[int, str], list[int]] = {}
    for one in found:
        if guarded[one.process]:
            by_pid.setdefault((one.pid, one.process), []).append(one.port)
    wrong = []
    for (_, process), ports in by_pid.items():
        refused = sum(refuses(port) for port in ports)
        if refused != guarded[process]:
            wrong.append(f"{process}: {refused} of {guarded[process]} ports want Ray's token")
    return wrong


def refuses(port: int) -> bool:
    """Whether a port wants Ray's token: over gRPC for the service that it has, else over HTTP."""
    codes = set()
    for metadata in ((), (("authorization", "Bearer wrong"),)):
        codes |= {code_of(port, method, metadata) for method in RAY_METHODS}
    assert grpc.StatusCode.OK not in codes, port
    if grpc.StatusCode.UNAUTHENTICATED in codes:
        return True
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/get_or_create_runtime_env", b"")
        return connection.getresponse().status == http.HTTPStatus.UNAUTHORIZED
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def code_of(port: int, method: str, metadata: tuple[tuple[str, str], ...]) -> grpc.StatusCode:
    """The status of an empty call."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        try:
            call(b"", timeout=60, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK
