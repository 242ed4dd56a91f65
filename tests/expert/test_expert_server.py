"""An expert worker over its sockets: refusals, errors, nonsense, and the control messages of a reconfiguration."""

import contextlib
import socket
import tempfile
import time

import expert_harness as harness
import msgspec
import numpy as np
import pytest
import torch
import zmq

from flexpert_workers.expert import ExpertWorker
from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.messages import control
from flexpert_workers.messages.dispatch import Status
from flexpert_workers.routing import Epoch

ALL = harness.all_experts()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return harness.make_model("mixtral", tmp_path_factory.mktemp("mixtral"))


@pytest.fixture
def start(model):
    """Starts workers; `start(memory_experts=…)` gives one that has room for so many experts."""
    with tempfile.TemporaryDirectory(prefix="fx") as sockets:
        running = []

        def one(memory_experts=100):
            config = harness.make_config(f"w{len(running)}", model.source, sockets, memory_experts * PAGE_BYTES)
            worker = ExpertWorker(config)
            worker.start()
            running.append((worker, ControlClient(worker.control_endpoint)))
            return running[-1]

        yield one
        for worker, client in running:
            client.close()
            worker.stop()


PAGE_BYTES = 4 * 3 * 64 * 96


Engine = harness.Engine


def digest_of(client):
    return client.request(control.Describe(), 30).digest


def test_a_worker_refuses_another_pool_digest_or_incarnation(start):
    worker, client = start()
    with Engine(worker, digest_of(client)) as engine:
        for name in ("pool", "digest", "incarnation"):
            reply, frames = engine.ask(torch.ones(1, 64), [(0, 0)], [1.0], **{name: "another"})
            assert reply.status is Status.REFUSED
            assert name in reply.reason
            assert not frames


def test_not_resident_names_what_is_missing_and_computes_nothing(start):
    worker, client = start()
    harness.prepare(client, "op", [(0, 1), (0, 2)])
    with Engine(worker, digest_of(client)) as engine:
        reply, frames = engine.ask(torch.ones(2, 64), [(0, 1), (0, 5), (1, 2), (1, 6)], [1.0] * 4)
    assert (reply.status, reply.missing, frames) == (Status.NOT_RESIDENT, (5, 6), [])
    assert sum(client.request(control.AskLoads(), 30).tokens) == 0


def test_the_sentinel_is_no_expert_and_tokens_are_counted(start):
    worker, client = start()
    harness.prepare(client, "op", [(1, 1), (1, 2)])
    with Engine(worker, digest_of(client)) as engine:
        reply, frames = engine.ask(torch.ones(3, 64), [(0, 1), (1, 8), (2, 1), (2, 2)], [1.0] * 4, layer=1)
    assert reply.status is Status.OK
    sums = np.frombuffer(frames[0], dtype=np.float32).reshape(3, 64)
    assert not sums[1].any()
    assert sums[0].any()
    loads = client.request(control.AskLoads(), 30).tokens
    assert {index: tokens for index, tokens in enumerate(loads) if tokens} == {9: 2, 10: 1}


def test_errors_are_answered_and_the_worker_lives_on(start):
    worker, client = start()
    harness.prepare(client, "op", ALL)
    bad = [
        {"pairs": [(0, 9)]},
        {"pairs": [(1, 0)]},
        {"pairs": [(0, -1)]},
        {"pairs": [(-1, 0)]},
        {"layer": 2},
        {"layer": -1},
        {"rows": 7},
        {"dtype": "complex64"},
        {"weights": []},
    ]
    with Engine(worker, digest_of(client)) as engine:
        for changes in bad:
            fields = {"pairs": [(0, 0)], "weights": [1.0], **changes}
            reply, _ = engine.ask(torch.ones(1, 64), fields.pop("pairs"), fields.pop("weights"), **fields)
            assert reply.status is Status.FAILED, changes
            assert reply.reason
        assert engine.ask(torch.ones(1, 64), [(0, 0)], [1.0])[0].status is Status.OK


def test_nonsense_on_either_socket_does_no_harm(start):
    worker, client = start()
    harness.prepare(client, "op", ALL)
    noise = np.random.default_rng(1)
    context = zmq.Context()
    sock = context.socket(zmq.DEALER)
    sock.connect(worker.control_endpoint)
    peer = harness.Stranger(worker.endpoint)
    for size in (0, 1, 7, 100, 5000):
        for number in (1, 2, 4):
            sock.send_multipart([noise.bytes(size)] * number)
            peer.send(*[noise.bytes(size)] * number)
    peer.close()
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(worker.endpoint.removeprefix("unix://"))
        raw.sendall(noise.bytes(5000))
        with contextlib.suppress(ConnectionResetError):
            assert raw.recv(1) == b"", "a stranger is hung up on"
    with Engine(worker, digest_of(client)) as engine:
        for frames in ([b""], [b"\x90"], [msgspec.msgpack.encode([1, 2, 3])]):
            engine.send(*frames)
        assert engine.ask(torch.ones(1, 64), [(0, 0)], [1.0])[0].status is Status.OK
    assert client.request(control.Describe(), 30).experts == tuple(ALL)
    context.destroy(linger=0)


def test_what_does_not_fit_is_refused_and_nothing_is_overrun(start):
    _, client = start(memory_experts=3)
    assert harness.prepare(client, "one", ALL[:2]).done
    refused = harness.prepare(client, "two", ALL[2:4])
    assert (type(refused), refused.kind) == (control.Refused, "capacity")
    state = client.request(control.Describe(), 30)
    assert (state.resident_bytes, state.experts) == (2 * PAGE_BYTES, tuple(ALL[:2]))
    assert harness.prepare(client, "three", ALL[:3]).copied_experts == 1


def test_an_expert_the_model_does_not_have_is_refused(start):
    _, client = start()
    for expert in ((0, 8), (2, 0), (-1, 0)):
        assert isinstance(harness.prepare(client, "op", [expert]), control.Refused)
    assert client.request(control.Describe(), 30).resident_bytes == 0


def transfer_endpoint(client):
    return client.request(control.Describe(), 30).transfer_endpoint


def test_experts_are_copied_from_a_peer(start):
    (peer, peer_client), (worker, client) = start(), start()
    harness.prepare(peer_client, "op", ALL[:4])
    status = harness.prepare(client, "op", [(*key, [transfer_endpoint(peer_client)]) for key in ALL[:4]])
    assert (status.copied_experts, status.from_peers, status.copied_bytes) == (4, 4, 4 * PAGE_BYTES)
    for key in ALL[:4]:
        assert harness.mapped_bytes(worker, key) == harness.mapped_bytes(peer, key)


def test_what_the_worker_had_before_is_attached_again(start):
    _, client = start()
    harness.prepare(client, "one", ALL[:4])
    client.request(control.Rollback("one"), 30)
    status = harness.prepare(client, "two", ALL[:5])
    assert (status.copied_experts, status.attached_experts, status.copied_bytes) == (5, 4, PAGE_BYTES)


def test_without_the_expert_or_without_the_peer_it_comes_from_the_file(start):
    (_, peer_client), (_, client) = start(), start()
    peers = ["ipc:///nowhere/at-all", transfer_endpoint(peer_client)]
    status = harness.prepare(client, "op", [(0, 0, peers)])
    assert (status.copied_experts, status.from_peers, status.error) == (1, 0, "")


def test_damaged_bytes_from_a_peer_are_noticed_and_the_file_is_read(start, model):
    worker, client = start()
    peer = harness.Peer(digest_of(client), {(0, 0): bytes(PAGE_BYTES)}, checksum_of=lambda _: 1)
    status = harness.prepare(client, "op", [(0, 0, [peer.endpoint])])
    assert peer.asked
    assert (status.copied_experts, status.from_peers) == (1, 0)
    page = torch.frombuffer(bytearray(harness.mapped_bytes(worker, (0, 0))), dtype=torch.float32)
    expected = model.experts(0)
    assert torch.equal(page[: 2 * 96 * 64].view(192, 64), expected.gate_up_proj[0])
    assert torch.equal(page[2 * 96 * 64 :].view(64, 96), expected.down_proj[0])
    peer.close()


def table_of(client, placement, epoch, operation="op"):
    state = client.request(control.Describe(), 30)
    return harness.make_table([harness.address_of(client)], placement, state.digest, epoch, operation)


def held(client):
    return set(client.request(control.Describe(), 30).experts)


def first_four(_, index):
    return ((0, 1.0),) if index < 4 else ()


def test_tables_are_kept_by_epoch_and_lower_terms_are_refused(start):
    _, client = start()
    newest = table_of(client, first_four, (2, 1))
    assert client.request(control.StoreTable(newest.encode()), 30) == control.Done()
    assert client.request(control.StoreTable(newest.encode()), 30) == control.Done()
    for epoch in ((1, 9), (2, 0)):
        refused = client.request(control.StoreTable(table_of(client, first_four, epoch).encode()), 30)
        assert refused.kind == "stale"
    assert client.request(control.Describe(), 30).table == newest.encode()
    assert isinstance(client.request(control.StoreTable(b"nonsense"), 30), control.Refused)
    foreign = msgspec.structs.replace(newest, pool="another", epoch=Epoch(9, 9))
    assert client.request(control.StoreTable(foreign.encode()), 30).kind == "stale"


def test_retire_frees_what_the_table_does_not_name(start):
    _, client = start()
    harness.prepare(client, "op", ALL)
    client.request(control.StoreTable(table_of(client, first_four, (1, 1)).encode()), 30)
    assert client.request(control.Retire(Epoch(1, 2)), 30).kind == "stale"
    assert client.request(control.Retire(Epoch(1, 1)), 30) == control.Done(freed=8 * PAGE_BYTES)
    assert held(client) == {(layer, index) for layer, index in ALL if index < 4}
    assert client.request(control.Retire(Epoch(1, 1)), 30) == control.Done(freed=0)


def test_retire_leaves_what_a_later_operation_prepares(start):
    _, client = start()
    client.request(control.StoreTable(table_of(client, first_four, (1, 1)).encode()), 30)
    harness.prepare(client, "next", [(0, 7)])
    assert client.request(control.Retire(Epoch(1, 1)), 30) == control.Done(freed=0)
    client.request(control.StoreTable(table_of(client, first_four, (1, 2)).encode()), 30)
    assert client.request(control.Retire(Epoch(1, 2)), 30) == control.Done(freed=PAGE_BYTES)


def test_rollback_frees_what_the_operation_brought_and_the_table_does_not_name(start):
    _, client = start()
    harness.prepare(client, "first", ALL[:4])
    client.request(control.StoreTable(table_of(client, first_four, (1, 1)).encode()), 30)
    harness.prepare(client, "second", ALL[2:7])
    assert client.request(control.Rollback("second"), 30) == control.Done(freed=3 * PAGE_BYTES)
    assert held(client) == set(ALL[:4])
    assert client.request(control.Rollback("second"), 30) == control.Done(freed=0)
    assert isinstance(client.request(control.AskPrepare("second"), 30), control.Refused)


def test_a_prepare_that_is_repeated_changes_nothing(start):
    _, client = start()
    first = harness.prepare(client, "op", ALL[:3])
    assert harness.prepare(client, "op", ALL[:3]) == first


def test_a_worker_asked_to_stop_ends(start):
    worker, client = start()
    assert client.request(control.Stop(), 30) == control.Done()
    assert worker.wait(30)


def test_a_worker_that_is_gone_is_noticed_at_once(start):
    worker, client = start()
    digest_of(client)
    worker.stop()
    started = time.monotonic()
    with pytest.raises(ConnectionError):
        client.request(control.Describe(), 60)
    assert time.monotonic() - started < 50
