"""Page owners as processes: attaching from other processes, leases that end with the borrower, owners that die."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import memory_pages
import msgspec
import pytest
from memory_checkpoint import TinyCheckpoint
from memory_pages import until, wants

from flexpert_workers.errors import CapacityError, CheckpointError
from flexpert_workers.memory.client import OwnerClient
from flexpert_workers.memory.host import HostBackend
from flexpert_workers.memory.loans import Origin
from flexpert_workers.memory.owner import OwnerConfig

PADDED = 20_480
"""Of a page: 3 matrices of 32 x 48 float32."""


@pytest.fixture
def files(tmp_path):
    return TinyCheckpoint(tmp_path)


@pytest.fixture
def socket_folder():
    with tempfile.TemporaryDirectory(prefix="fx") as folder:
        yield folder


@pytest.fixture
def config(files, socket_folder):
    return OwnerConfig(
        domain="node-a",
        pool="pool",
        source=files.source,
        dtype="Auto",
        budget_bytes=16 * PADDED,
        socket=f"{socket_folder}/owner.sock",
        bind_host="127.0.0.1",
        socket_dir=socket_folder,
        ahead=0,
    )


@pytest.fixture
def owner(config):
    with memory_pages.owner_process(config) as (process, _):
        yield process


@pytest.fixture
def connect(config, files):
    with contextlib.ExitStack() as open_clients:

        def one(borrower, **changes):
            hello = msgspec.structs.replace(files.hello(borrower), **changes)
            client = OwnerClient(config.socket, hello, HostBackend())
            open_clients.callback(client.close)
            client.connect(30)
            return client

        yield one


@contextlib.contextmanager
def borrower_process(config, files, name, keys):
    """Another process that has borrowed and mapped pages; yields (process, what it saw)."""
    script = Path(__file__).parent / "memory_borrower.py"
    arguments = [config.socket, msgspec.json.encode(files.hello(name)).decode(), json.dumps(keys)]
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_an_owner_needs_neither_torch_nor_transformers_to_start():
    code = (
        "import sys, flexpert_workers.memory.owner.process, flexpert_workers.memory.client;"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_page_is_read_once_and_attached_by_other_processes(owner, config, files, connect):
    client = connect("a")
    loans = list(client.acquire(wants(*files.keys[:4])))
    assert {loan.origin for loan in loans} == {Origin.FILE}
    for loan in loans:
        assert bytes(loan.page.view()) == files.pages[loan.key]
        assert fcntl.fcntl(loan.page.descriptor(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    files.weights.unlink()
    with borrower_process(config, files, "b", files.keys[:4]) as (_, seen):
        expected = [[*key, zlib.crc32(files.pages[key]), "attached"] for key in files.keys[:4]]
        assert sorted(seen) == expected
        assert client.owner_state().used_bytes == 4 * PADDED


def test_the_lease_of_a_killed_borrower_ends_and_its_pages_stay_for_the_next(owner, config, files, connect):
    client = connect("a")
    with borrower_process(config, files, "b", files.keys) as (process, _):
        assert client.owner_state().lent == 16
        process.send_signal(signal.SIGKILL)
        until(lambda: client.owner_state().lent == 0)
    assert client.owner_state().idle == 16
    with borrower_process(config, files, "b2", files.keys) as (_, seen):
        assert {origin for *_, origin in seen} == {"attached"}


def test_what_does_not_fit_in_the_budget_is_refused(owner, files, connect, config):
    first = connect("a")
    held = list(first.acquire(wants(*files.keys)))
    other = connect("b", num_pages=17)
    with pytest.raises(CapacityError, match="do not fit"):
        list(other.acquire(wants((2, 0))))
    first.release([held[0].key])
    until(lambda: first.owner_state().idle == 1)
    assert first.owner_state().used_bytes <= config.budget_bytes
    assert first.drop_idle() == PADDED


def test_an_owner_is_of_one_pool_and_one_checkpoint(owner, files, connect):
    connect("a")
    for changes in ({"pool": "another"}, {"digest": "another"}, {"page_bytes": 1}):
        with pytest.raises(CheckpointError):
            connect("b", **changes)


def test_a_new_owner_has_the_pages_of_the_old_one_without_reading_them(config, files, connect):
    with memory_pages.owner_process(config) as (old, _):
        client = connect("a")
        loans = {loan.key: loan for loan in client.acquire(wants(*files.keys))}
        old.send_signal(signal.SIGKILL)
        old.wait()
        for loan in loans.values():
            assert bytes(loan.page.view()) == files.pages[loan.key]
        with pytest.raises(ConnectionError):
            list(client.acquire(wants((0, 0))))
    client.release([files.keys[0]])
    with memory_pages.owner_process(config) as (new, ready):
        until(lambda: client.owner_pid == ready["pid"] == new.pid)
        files.weights.write_bytes(b"")
        with borrower_process(config, files, "b", files.keys[1:]) as (_, seen):
            assert {origin for *_, origin in seen} == {"attached"}
            assert [crc for _, _, crc, _ in sorted(seen)] == [zlib.crc32(files.pages[key]) for key in files.keys[1:]]
        state = client.owner_state()
        assert (state.experts, state.lent) == (tuple(files.keys[1:]), 15)
        with pytest.raises(CheckpointError):
            list(client.acquire(wants(files.keys[0])))


def test_pages_are_released_while_others_are_acquired(owner, files, connect):
    client = connect("a")
    list(client.acquire(wants(*files.keys[:4])))
    loans = client.acquire(wants(*files.keys[4:]))
    next(loans)
    client.release(files.keys[:4])
    assert len(list(loans)) == 11
    until(lambda: client.owner_state().idle == 4)


def test_who_stops_early_keeps_what_it_took(owner, files, connect):
    client = connect("a")
    loans = client.acquire(wants(*files.keys))
    taken = next(loans)
    loans.close()
    until(lambda: client.owner_state().lent == 1)
    assert bytes(taken.page.view()) == files.pages[taken.key]
    client.release([taken.key])
    until(lambda: client.owner_state().lent == 0)
    assert len(list(client.acquire(wants(*files.keys)))) == 16


def test_more_pages_than_one_message_can_carry(tmp_path, socket_folder):
    files = TinyCheckpoint(tmp_path, num_experts=200)
    path = f"{socket_folder}/s"
    config = OwnerConfig("d", "pool", files.source, "Auto", 400 * PADDED, path, "127.0.0.1", "", 1, 0)
    with memory_pages.owner_process(config) as (process, _):
        client = OwnerClient(config.socket, files.hello("a"), HostBackend())
        client.connect(30)
        assert {loan.key for loan in client.acquire(wants(*files.keys))} == set(files.keys)
        client.release(files.keys)
        loans = {loan.key: loan for loan in client.acquire(wants(*files.keys))}
        assert all(bytes(loan.page.view()) == files.pages[key] for key, loan in loans.items())
        assert {loan.origin for loan in loans.values()} == {Origin.ATTACHED}
        process.kill()
        process.wait()
        with memory_pages.owner_process(config) as (_, ready):
            until(lambda: client.owner_pid == ready["pid"])
            assert client.owner_state().lent == 400
        client.close()


def test_nonsense_ends_only_the_connection_that_said_it(owner, config, files, connect):
    client = connect("a")
    for noise in (b"\xff\xff\xff\xff", b"\x05\x00\x00\x00abcde", os.urandom(100)):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(config.socket)
            sock.sendall(noise)
    assert client.owner_state().lent == 0


def test_a_second_owner_does_not_take_the_place_of_one_that_lives(owner, config):
    command = [sys.executable, "-m", "flexpert_workers.memory.owner", "--config", msgspec.json.encode(config).decode()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3
    assert "already" in json.loads(done.stdout)["message"]


def test_an_owner_that_hangs_is_left_within_bounded_time(owner, config, files):
    client = OwnerClient(config.socket, files.hello("a"), HostBackend(), greeting_s=0.2)
    owner.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(ConnectionError, match="does not answer"):
            client.connect(0.5)
    finally:
        owner.send_signal(signal.SIGCONT)
    client.connect(30)
    assert len(list(client.acquire(wants(*files.keys)))) == 16
    client.close()


def test_a_borrower_goes_on_from_a_silent_socket_to_the_owner_that_follows_it(config, files):
    """A predecessor that hangs has accepted the borrower; its successor takes the path."""
    client = OwnerClient(config.socket, files.hello("a"), HostBackend(), greeting_s=0.5)
    with socket.socket(socket.AF_UNIX) as listening, ThreadPoolExecutor(1) as pool:
        listening.bind(config.socket)
        listening.listen()
        connecting = pool.submit(client.connect, 60)
        silent, _ = listening.accept()
        listening.close()
        with silent, memory_pages.owner_process(config) as (process, _):
            connecting.result()
            assert client.owner_pid == process.pid
            client.close()


def test_a_borrower_waits_for_an_owner_behind_which_many_others_wait(config, files):
    client = OwnerClient(config.socket, files.hello("a"), HostBackend(), greeting_s=0.5)
    with contextlib.ExitStack() as crowd, ThreadPoolExecutor(1) as pool:
        listening = crowd.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(config.socket)
        listening.listen(0)
        crowd.enter_context(socket.socket(socket.AF_UNIX)).connect(config.socket)
        connecting = pool.submit(client.connect, 60)
        crowd.close()
        with memory_pages.owner_process(config) as (process, _):
            connecting.result()
            assert client.owner_pid == process.pid
            client.close()


def test_two_hundred_cycles_leave_nothing_behind_in_either_process(owner, files, connect):
    client = connect("a")

    def cycle(number):
        for loan in client.acquire(wants(*(files.keys[(number + step) % 16] for step in range(5)))):
            client.release([loan.key])
        if number % 5 == 0:
            client.drop_idle()

    def left():
        client.drop_idle()
        return [
            count(pid)
            for pid in (os.getpid(), owner.pid)
            for count in (memory_pages.num_descriptors, memory_pages.num_page_mappings)
        ]

    cycle(0)
    before = left()
    for number in range(200):
        cycle(number)
    until(lambda: client.owner_state().lent == 0)
    assert left() == before
