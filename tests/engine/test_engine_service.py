"""An engine as a service: real sockets, real expert workers, a gRPC server in the place of the pool controller."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent import futures

import grpc
import msgspec
import pytest
import zmq

from flexpert_proto import pool_pb2, pool_pb2_grpc
from flexpert_workers import threads
from flexpert_workers.engine import EngineConfig, EngineService
from flexpert_workers.expert import ExpertWorker, WorkerConfig
from flexpert_workers.expert.control_client import ControlClient
from flexpert_workers.messages import control
from flexpert_workers.messages.generation import (
    Cancel,
    Finish,
    GenerationReply,
    Ping,
    Pong,
    Rejected,
    Sampling,
    Submit,
    TokenOutput,
)
from flexpert_workers.routing import Epoch, Replica, RoutingTable, WorkerAddress

POOL = "pool-uid"
WAIT_S = 60


class Ingress:
    """The other end of an engine's socket."""

    def __init__(self, endpoint):
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.connect(endpoint)
        self._replies = []

    def send(self, *messages):
        self._socket.send(msgspec.msgpack.encode(list(messages)))

    def receive(self):
        """The next reply."""
        while not self._replies:
            assert self._socket.poll(WAIT_S * 1000), "no reply"
            self._replies = msgspec.msgpack.decode(self._socket.recv(), type=list[GenerationReply])
        return self._replies.pop(0)

    def answer(self, request):
        """All tokens of a request, and how it ended."""
        tokens = []
        while True:
            reply = self.receive()
            if isinstance(reply, Rejected):
                return tokens, reply
            if isinstance(reply, TokenOutput) and reply.request == request:
                assert reply.position == len(tokens)
                tokens += reply.token_ids
                if reply.finish is not None:
                    return tokens, reply.finish

    def close(self):
        self._socket.close(linger=0)
        self._context.term()


class Controller(pool_pb2_grpc.PoolMembershipServicer):
    """Stands for the pool controller: gives leases, sends what the test puts, keeps what engines report."""

    def __init__(self, port=0):
        self.reports = queue.Queue()
        self.directives = queue.Queue()
        self.chunks = queue.Queue()
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        pool_pb2_grpc.add_PoolMembershipServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def Attach(self, request_iterator, context):  # noqa: N802
        threading.Thread(target=self._read, args=(request_iterator,), daemon=True).start()
        yield pool_pb2.EngineDirective(lease_seconds=10)
        while context.is_active():
            try:
                yield self.directives.get(timeout=0.1)
            except queue.Empty:
                continue

    def SendTrace(self, request_iterator, context):  # noqa: N802
        for chunk in request_iterator:
            self.chunks.put(chunk)
        return pool_pb2.SendTraceResponse()

    def _read(self, reports):
        try:
            for report in reports:
                self.reports.put(report)
        except grpc.RpcError:
            return  # the engine, or this server, went away

    def wait_for(self, wanted):
        """The first report that satisfies `wanted`."""
        while True:
            report = self.reports.get(timeout=WAIT_S)
            if wanted(report):
                return report

    def stop(self):
        self._server.stop(grace=None).wait()


def start_workers(family, num_workers, socket_dir):
    """Workers as threads, each with every expert, and the table that says so."""
    checkpoint = family.checkpoint
    wanted = tuple(
        (layer, index, ()) for layer in range(checkpoint.num_layers) for index in range(checkpoint.num_experts)
    )
    workers = [
        ExpertWorker(
            WorkerConfig(
                f"w{number}", POOL, family.source, "Float32", 1 << 28, 1, "127.0.0.1", "pod", "node", socket_dir
            )
        )
        for number in range(num_workers)
    ]
    addresses = []
    for worker in workers:
        worker.start()
        client = ControlClient(worker.control_endpoint)
        client.request(control.Prepare("op", wanted), WAIT_S)
        while not client.request(control.AskPrepare("op"), WAIT_S).done:
            pass
        state = client.request(control.Describe(), WAIT_S)
        addresses.append(WorkerAddress(state.worker, state.incarnation, state.endpoint, state.control_endpoint))
        client.close()
    shares = tuple(Replica(position, 1 / num_workers) for position in range(num_workers))
    replicas = ((shares,) * checkpoint.num_experts,) * checkpoint.num_layers
    return workers, RoutingTable(POOL, checkpoint.digest, Epoch(1, 1), "op", tuple(addresses), replicas)


@pytest.fixture
def socket_dir():
    with tempfile.TemporaryDirectory(prefix="fx") as folder:
        yield folder


@pytest.fixture
def mixtral(families):
    return families["mixtral"]


@pytest.fixture
def pool(mixtral, socket_dir):
    workers, table = start_workers(mixtral, 2, socket_dir)
    yield table
    for worker in workers:
        worker.stop()


@pytest.fixture
def config(mixtral, socket_dir):
    return EngineConfig(
        "engine-0", POOL, mixtral.source, "Float32", kv_cache_bytes=8 << 20, socket_dir=socket_dir, pod="pod-0"
    )


@pytest.fixture
def serve(config):
    """Starts engines, and stops them at the end."""
    services = []

    def start(**changes):
        services.append(EngineService(msgspec.structs.replace(config, **changes)))
        services[-1].start()
        return services[-1]

    yield start
    for service in services:
        service.stop()


@pytest.fixture
def connect():
    """Connects ingresses, and closes them at the end."""
    ingresses = []

    def to(service):
        ingresses.append(Ingress(getattr(service, "endpoint", service)))
        return ingresses[-1]

    yield to
    for ingress in ingresses:
        ingress.close()


def greedy(number, prompt, max_tokens):
    return Submit(number, tuple(prompt), (), Sampling(max_tokens, temperature=0.0))


def test_streams_equal_generate_through_two_workers(serve, connect, pool, mixtral, make_prompt):
    service = serve()
    service.tables.publish(pool)
    ingress, other = connect(service), connect(service)
    ingress.send(greedy(1, make_prompt(20), 12), Ping())
    other.send(greedy(1, make_prompt(9), 12))
    assert other.answer(1) == (mixtral.greedy(make_prompt(9), 12), Finish.LENGTH)
    assert ingress.answer(1) == (mixtral.greedy(make_prompt(20), 12), Finish.LENGTH)
    ingress.send(Ping())
    assert isinstance(ingress.receive(), Pong)
    assert service.statistics().expert_bytes == 0
    assert len(service.dispatch_statistics()) == mixtral.checkpoint.num_layers


def test_bad_requests_are_rejected_by_field(serve, connect, make_prompt):
    ingress = connect(serve())
    ingress.send(greedy(1, make_prompt(20), 0), greedy(2, [9999], 4))
    first, second = ingress.receive(), ingress.receive()
    assert (first.request, first.kind, first.field) == (1, "invalid", "max_tokens")
    assert (second.request, second.kind, second.field) == (2, "invalid", "prompt")


def test_cancel_and_disconnect_free_the_pages(serve, connect, pool, make_prompt):
    service = serve()
    service.tables.publish(pool)
    leaving, staying = connect(service), connect(service)
    leaving.send(greedy(1, make_prompt(20), 480))
    leaving.receive()
    staying.send(greedy(7, make_prompt(9), 480))
    staying.receive()
    leaving.close()
    staying.send(Cancel(7))
    staying.send(greedy(8, make_prompt(5), 1))
    while not (isinstance(reply := staying.receive(), TokenOutput) and reply.request == 8):
        pass
    # Both long requests would run for hundreds of steps more; nothing of them is left once the loop is idle.
    assert reply.finish is Finish.LENGTH
    eventually(lambda: service.statistics().kv_use == 0)
    assert service.statistics().running == 0
    assert service.statistics().generated_tokens < 480


def test_requests_wait_for_the_first_table(serve, connect, pool, mixtral, make_prompt):
    service = serve(dispatch_deadline_s=0.05)
    ingress = connect(service)
    ingress.send(greedy(1, make_prompt(20), 4))
    eventually(lambda: service._engine.statistics().abandoned_passes > 1)
    service.tables.publish(pool)
    assert ingress.answer(1) == (mixtral.greedy(make_prompt(20), 4), Finish.LENGTH)


def test_lease_reports_and_takes_tables_and_survives_the_controller(serve, connect, pool, mixtral, make_prompt):
    controller = Controller()
    service = serve(pool_control=f"127.0.0.1:{controller.port}")
    first = controller.reports.get(timeout=WAIT_S)
    assert (first.pool, first.digest, first.engine.id) == (POOL, mixtral.checkpoint.digest, "engine-0")
    assert first.engine.state == pool_pb2.Engine.STARTING
    assert (first.engine.endpoint, first.engine.pod, first.engine.expert_bytes) == (service.endpoint, "pod-0", 0)

    controller.directives.put(pool_pb2.EngineDirective(routing_table=pool.encode()))
    report = controller.wait_for(lambda report: report.engine.epoch.term == 1)
    assert (report.engine.epoch.sequence, report.engine.state) == (1, pool_pb2.Engine.READY)

    controller.stop()  # it serves on without a controller
    ingress = connect(service)
    ingress.send(greedy(1, make_prompt(9), 4))
    assert ingress.answer(1) == (mixtral.greedy(make_prompt(9), 4), Finish.LENGTH)

    successor = Controller(controller.port)  # and attaches to the next one
    assert successor.reports.get(timeout=WAIT_S).engine.epoch.term == 1
    successor.directives.put(pool_pb2.EngineDirective(drain=True))
    assert successor.wait_for(lambda report: report.engine.state == pool_pb2.Engine.DRAINING)
    ingress.send(greedy(2, make_prompt(9), 4))
    assert ingress.receive() == Rejected(2, "draining", "this engine lets no further request in")
    assert service.drained
    successor.stop()


def test_what_the_router_chooses_is_sent_when_it_is_ordered(serve, connect, pool, mixtral, make_prompt):
    controller = Controller()
    service = serve(pool_control=f"127.0.0.1:{controller.port}")
    order = pool_pb2.RecordOrder(id="r", tokens=23, seconds=WAIT_S)
    controller.directives.put(pool_pb2.EngineDirective(routing_table=pool.encode(), record=order))
    first = controller.chunks.get(timeout=WAIT_S)
    assert (first.recording, first.engine, list(first.lengths)) == ("r", "engine-0", [])
    eventually(lambda: service._engine.recorder is not None)
    ingress = connect(service)
    ingress.send(greedy(1, make_prompt(20), 12))
    answered = ingress.answer(1)
    assert answered == (mixtral.greedy(make_prompt(20), 12), Finish.LENGTH)
    chunks = [controller.chunks.get(timeout=WAIT_S) for _ in range(4)]
    assert [list(chunk.lengths) for chunk in chunks] == [[20], [1], [1], [1]]
    assert {(chunk.layers, chunk.top_k, *chunk.sequences) for chunk in chunks} == {(3, 2, 0)}
    assert all(len(chunk.experts) == sum(chunk.lengths) * 3 * 2 * 2 for chunk in chunks)
    assert service._engine.recorder is None
    controller.stop()


def test_process_serves_and_drains_on_sigterm(config, connect, mixtral):
    command = [sys.executable, "-m", "flexpert_workers.engine", "--config", msgspec.json.encode(config).decode()]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **threads.environment(1)}
    )
    try:
        ready = json.loads(process.stdout.readline())
        ingress = connect(ready["endpoint"])
        ingress.send(Ping())
        assert ingress.receive() == Pong(0, 0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_process_says_what_is_wrong_with_the_checkpoint(config, tmp_path):
    changed = msgspec.structs.replace(config, source=f"file://{tmp_path}/absent")
    command = [sys.executable, "-m", "flexpert_workers.engine", "--config", msgspec.json.encode(changed).decode()]
    result = subprocess.run(command, capture_output=True, env={**os.environ, **threads.environment(1)}, timeout=WAIT_S)
    assert result.returncode == 3
    assert json.loads(result.stdout)["error"] == "CheckpointNotFound"


def eventually(condition):
    """Wait for other threads to make it so."""
    ticking = threading.Event()
    for _ in range(WAIT_S * 100):
        if condition():
            return
        ticking.wait(0.01)
    raise AssertionError("it did not come true")
