"""What a dispatch does when tables are stale, workers lack experts, hang, fail, speak nonsense or die."""

import contextlib
import socket
import threading

import msgspec
import pytest
import torch

from flexpert_workers.dispatch import TableHolder
from flexpert_workers.dispatch.client import DispatchClient
from flexpert_workers.errors import PassAbandoned
from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.messages import control
from flexpert_workers.messages.dispatch import DispatchReply, DispatchRequest, Status
from flexpert_workers.routing import WorkerAddress
from flexpert_workers.transport.listening import Listener

ONLY_FIRST = ((0, 1.0),)
ONLY_SECOND = ((1, 1.0),)
BOTH = ((0, 0.5), (1, 0.5))


def assert_right(pool, client, harness, rows=5, layer=0):
    routed = harness.routed(rows, 8, 2, seed=rows)
    answer = client.dispatch(layer, *routed)
    torch.testing.assert_close(answer, pool.model.reference(layer, *routed), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------- stale tables


def test_a_stale_table_is_refreshed_and_the_answer_is_right(make_pool, harness):
    pool = make_pool()
    pool.prepare(1, harness.all_experts())
    pool.tables.publish(pool.table(lambda *_: ONLY_FIRST))
    pool.on_refresh = lambda: pool.tables.publish(pool.table(lambda *_: ONLY_SECOND, epoch=(1, 2)))
    assert_right(pool, pool.client, harness)
    assert pool.refreshes == 1


def test_an_expert_that_one_replica_lacks_is_computed_by_the_other(make_pool, harness):
    pool = make_pool()
    pool.prepare(1, harness.all_experts())
    pool.tables.publish(pool.table(lambda *_: BOTH))
    assert_right(pool, pool.client, harness, rows=20)
    assert pool.refreshes >= 1


def test_the_table_may_change_while_a_dispatch_waits(make_pool, harness):
    pool = make_pool()
    pool.tables.publish(pool.table(lambda *_: ONLY_FIRST))
    asked = threading.Event()
    pool.on_refresh = asked.set

    def heal():
        asked.wait(20)
        pool.prepare(1, harness.all_experts())
        pool.tables.publish(pool.table(lambda *_: ONLY_SECOND, epoch=(2, 1)))

    healer = threading.Thread(target=heal)
    healer.start()
    assert_right(pool, pool.client, harness)
    healer.join()


def test_a_dispatch_waits_for_the_first_table(make_pool, harness):
    pool = make_pool(num_workers=1)
    pool.prepare(0, harness.all_experts())
    pool.on_refresh = lambda: pool.tables.publish(pool.table(lambda *_: ONLY_FIRST))
    assert_right(pool, pool.client, harness)


def test_no_table_at_all_abandons_the_pass(harness):
    client = DispatchClient("p", "d", TableHolder(), deadline_s=0.05, hang_timeout_s=1, refresh=lambda: None)
    hidden, index, weights = harness.routed(2, 8, 2)
    with pytest.raises(PassAbandoned):
        client.dispatch(1, hidden, index, weights)
    client.close()


# ---------------------------------------------------------------------- rows that go nowhere


def test_the_number_of_experts_means_no_expert(make_pool, harness):
    pool = make_pool()
    for number in range(2):
        pool.prepare(number, harness.all_experts())
    pool.tables.publish(pool.table(lambda _, index: ((index % 2, 1.0),)))
    hidden, index, weights = harness.routed(6, 8, 2)
    index[0] = 8
    index[3, 1] = 8
    answer = pool.client.dispatch(0, hidden, index, weights)
    torch.testing.assert_close(answer, pool.model.reference(0, hidden, index, weights), atol=1e-5, rtol=1e-5)
    assert not answer[0].any()


def test_no_rows_and_no_experts_at_all(make_pool, harness):
    pool = make_pool(num_workers=1)
    pool.prepare(0, harness.all_experts())
    pool.tables.publish(pool.table(lambda *_: ONLY_FIRST))
    hidden, index, weights = harness.routed(3, 8, 2)
    assert pool.client.dispatch(0, hidden[:0], index[:0], weights[:0]).shape == (0, 64)
    assert not pool.client.dispatch(0, hidden, torch.full_like(index, 8), weights).any()


def test_a_layer_of_bfloat16(make_pool, harness):
    pool = make_pool()
    for number in range(2):
        pool.prepare(number, harness.all_experts())
    pool.tables.publish(pool.table(lambda *_: BOTH))
    hidden, index, weights = harness.routed(6, 8, 2, dtype=torch.bfloat16)
    answer = pool.client.dispatch(0, hidden, index, weights)
    assert answer.dtype == torch.bfloat16
    exact = pool.model.reference(0, hidden.float(), index, weights.float())
    torch.testing.assert_close(answer.float(), exact, atol=1e-2, rtol=1e-2)


# ---------------------------------------------------------------------- workers that die


@contextlib.contextmanager
def processes(harness, model, socket_dir, number):
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(harness.worker_process(harness.make_config(f"p{position}", model.source, socket_dir)))
            for position in range(number)
        ]
        controls = [stack.enter_context(ControlClient(ready()["control_endpoint"])) for _, ready in started]
        for client in controls:
            assert harness.prepare(client, "op", harness.all_experts()).done
        yield [process for process, _ in started], controls


class Interrupted:
    """A refresh that does nothing, and a thread that kills a process in the middle of a run of dispatches."""

    def __init__(self, process):
        self._process = process
        self.dispatched = 0

    def kill_after(self, number):
        self.dispatched += 1
        if self.dispatched == number:
            threading.Thread(target=self._process.kill).start()


def test_a_killed_worker_is_replaced_by_its_replica(harness, models, socket_dir):
    model = models["mixtral"]
    with processes(harness, model, socket_dir, 2) as (running, controls):
        digest = controls[0].request(control.Describe(), 10).digest
        tables = TableHolder()
        addresses = [harness.address_of(client) for client in controls]
        tables.publish(harness.make_table(addresses, lambda *_: BOTH, digest))
        client = DispatchClient(harness.POOL, digest, tables, deadline_s=20, hang_timeout_s=20, refresh=lambda: None)
        interrupted = Interrupted(running[1])
        for number in range(60):
            routed = harness.routed(9, 8, 2, seed=number)
            interrupted.kill_after(10)
            answer = client.dispatch(number % 2, *routed)
            expected = model.reference(number % 2, *routed)
            torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)
        assert running[1].wait(10) != 0
        client.close()


def test_without_a_replica_a_dispatch_waits_for_the_next_table(harness, models, socket_dir):
    model = models["mixtral"]
    with processes(harness, model, socket_dir, 2) as (running, controls):
        digest = controls[0].request(control.Describe(), 10).digest
        tables = TableHolder()
        addresses = [harness.address_of(client) for client in controls]
        tables.publish(harness.make_table(addresses, lambda _, index: ((index % 2, 1.0),), digest))

        def heal():
            if running[1].poll() is not None:
                tables.publish(harness.make_table(addresses[:1], lambda *_: ONLY_FIRST, digest, epoch=(1, 2)))

        client = DispatchClient(harness.POOL, digest, tables, deadline_s=20, hang_timeout_s=20, refresh=heal)
        interrupted = Interrupted(running[1])
        for number in range(60):
            routed = harness.routed(9, 8, 2, seed=number)
            interrupted.kill_after(10)
            answer = client.dispatch(number % 2, *routed)
            expected = model.reference(number % 2, *routed)
            torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)
        client.close()


def test_without_replica_or_table_the_pass_is_abandoned_at_the_deadline(harness, models, socket_dir):
    with processes(harness, models["mixtral"], socket_dir, 1) as (running, controls):
        digest = controls[0].request(control.Describe(), 10).digest
        tables = TableHolder()
        tables.publish(harness.make_table([harness.address_of(controls[0])], lambda *_: ONLY_FIRST, digest))
        asked = []
        client = DispatchClient(
            harness.POOL, digest, tables, deadline_s=0.5, hang_timeout_s=20, refresh=lambda: asked.append(1)
        )
        client.dispatch(0, *harness.routed(3, 8, 2))
        running[0].kill()
        running[0].wait()
        with pytest.raises(PassAbandoned) as abandoned:
            client.dispatch(0, *harness.routed(3, 8, 2))
        assert abandoned.value.experts
        assert 1 <= len(asked) <= 10
        client.close()


# ---------------------------------------------------------------------- workers that misbehave


class Impostor:
    """A worker that answers by a script: called with (request, number of the request), it returns replies."""

    def __init__(self, script):
        self._listener = Listener("127.0.0.1", "")
        self.address = WorkerAddress("impostor", "impostor-1", self._listener.endpoint, "")
        self._script = script
        self.requests = []
        self._ours, self._theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        self._listener.watch(self._theirs.fileno())
        watched = set()
        while not watched:
            readable, watched = self._listener.wait(None)
            for connection in readable:
                try:
                    frames = connection.receive()
                except OSError:
                    self._listener.drop(connection)
                    continue
                if frames is not None:
                    self._answer(connection, frames[0])
        self._listener.close()

    def _answer(self, connection, header):
        request = msgspec.msgpack.decode(header, type=DispatchRequest)
        self.requests.append(request)
        for reply in self._script(request, len(self.requests)):
            self._listener.send(connection, reply)

    def close(self):
        self._ours.close()
        self._thread.join()
        self._theirs.close()


@pytest.fixture
def impostor():
    made = []

    def make(script):
        made.append(Impostor(script))
        return made[-1]

    yield make
    for each in made:
        each.close()


def ok(request, value, attempt=None):
    header = DispatchReply(request.request, request.attempt if attempt is None else attempt, Status.OK)
    return [msgspec.msgpack.encode(header), torch.full((request.rows, 64), float(value)).numpy().tobytes()]


def client_of(harness, addresses, placement, *, deadline_s=20.0, hang_timeout_s=10.0):
    tables = TableHolder()
    tables.publish(harness.make_table(addresses, placement, "d"))
    return DispatchClient(
        harness.POOL, "d", tables, deadline_s=deadline_s, hang_timeout_s=hang_timeout_s, refresh=lambda: None
    )


def test_replies_to_another_attempt_or_dispatch_are_dropped(harness, impostor):
    def script(request, _):
        stale = DispatchReply(request.request - 1, request.attempt, Status.OK)
        earlier = [msgspec.msgpack.encode(stale), torch.full((request.rows, 64), 5.0).numpy().tobytes()]
        return [earlier, ok(request, 6, attempt=request.attempt + 1), ok(request, 7), ok(request, 8)]

    worker = impostor(script)
    client = client_of(harness, [worker.address], lambda *_: ONLY_FIRST)
    for _ in range(3):
        assert (client.dispatch(0, *harness.routed(3, 8, 2)) == 7).all()
    client.close()


def test_a_worker_that_hangs_is_left_for_its_replica(harness, impostor):
    silent, busy = impostor(lambda *_: []), impostor(lambda request, _: [ok(request, 1)])
    busy.address = WorkerAddress("busy", "busy-1", busy.address.endpoint, "")
    client = client_of(harness, [silent.address, busy.address], lambda *_: BOTH, hang_timeout_s=1.0)
    hidden, index, weights = harness.routed(30, 8, 2)
    answer = client.dispatch(0, hidden, index, weights)
    assert set(answer.unique().tolist()) <= {1.0, 2.0}
    assert silent.requests
    assert busy.requests[-1].attempt == 1
    client.close()


def test_a_worker_that_hangs_once_is_asked_again(harness, impostor):
    worker = impostor(lambda request, number: [ok(request, 3)] if number > 1 else [])
    client = client_of(harness, [worker.address], lambda *_: ONLY_FIRST, hang_timeout_s=1.0)
    assert (client.dispatch(0, *harness.routed(3, 8, 2)) == 3).all()
    assert [request.attempt for request in worker.requests] == [0, 1]
    client.close()


@pytest.mark.parametrize("nonsense", [[b"\xc1"], [b""], [msgspec.msgpack.encode(["x"])]])
def test_a_worker_that_answers_nonsense_is_asked_again(harness, impostor, nonsense):
    worker = impostor(lambda request, number: [ok(request, 3)] if number > 1 else [nonsense])
    client = client_of(harness, [worker.address], lambda *_: ONLY_FIRST)
    assert (client.dispatch(0, *harness.routed(3, 8, 2)) == 3).all()
    client.close()


def test_sums_of_the_wrong_size_are_not_taken(harness, impostor):
    def script(request, number):
        return [ok(request, 3)] if number > 1 else [[*ok(request, 9)[:1], b"1234"]]

    client = client_of(harness, [impostor(script).address], lambda *_: ONLY_FIRST)
    assert (client.dispatch(0, *harness.routed(3, 8, 2)) == 3).all()
    client.close()


def test_a_worker_that_fails_to_compute_abandons_the_pass_with_its_words(harness, impostor):
    def script(request, _):
        reply = DispatchReply(request.request, request.attempt, Status.FAILED, reason="RuntimeError: no luck")
        return [[msgspec.msgpack.encode(reply)]]

    client = client_of(harness, [impostor(script).address], lambda *_: ONLY_FIRST)
    with pytest.raises(PassAbandoned, match="no luck"):
        client.dispatch(0, *harness.routed(3, 8, 2))
    client.close()


def test_another_incarnation_at_the_same_address_refuses_and_is_not_believed(make_pool, harness):
    pool = make_pool(num_workers=1)
    pool.prepare(0, harness.all_experts())
    true = harness.address_of(pool.controls[0])
    former = WorkerAddress(true.worker, "former", true.endpoint, true.control_endpoint)
    pool.tables.publish(harness.make_table([former], lambda *_: ONLY_FIRST, pool.digest))
    pool.on_refresh = lambda: pool.tables.publish(pool.table(lambda *_: ONLY_FIRST, epoch=(1, 2)))
    assert_right(pool, pool.client, harness)
    assert pool.refreshes == 1
