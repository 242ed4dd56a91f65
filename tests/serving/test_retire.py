"""The preStop hook of expert pods against a pool controller that only knows how to drain."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from flexpert_proto import names
from flexpert_proto import pool_pb2 as pb
from flexpert_proto.pool_pb2_grpc import PoolControlServicer, PoolControlStub, add_PoolControlServicer_to_server
from flexpert_workers.serving import retire


class Drainer(PoolControlServicer):
    """Two workers on pod `a`, one on `b`; drained ones are emptied one a look, unless it is `stuck`."""

    def __init__(self) -> None:
        self.stuck = False
        self.silent = 0
        self.workers = [
            pb.Worker(id=f"w{number}", pod=pod, state=pb.Worker.READY, resident_bytes=100)
            for number, pod in enumerate("aab")
        ]
        self.server = grpc.server(ThreadPoolExecutor(1))
        add_PoolControlServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def GetPool(self, request: pb.GetPoolRequest, context: Any) -> pb.Pool:  # noqa: N802
        if self.silent > 0:
            self.silent -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "it starts anew")
        held = [one for one in self.workers if one.state == pb.Worker.DRAINING and one.resident_bytes]
        if held and not self.stuck:
            held[0].resident_bytes = 0
        return pb.Pool(workers=self.workers)

    def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:  # noqa: N802
        for one in self.workers:
            if one.id in request.workers:
                one.state = pb.Worker.DRAINING
        return pb.DrainResponse()


@pytest.fixture
def drainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Drainer]:
    found = Drainer()
    monkeypatch.setenv(names.ENV_POOL_CONTROL, f"127.0.0.1:{found.port}")
    monkeypatch.setenv(names.ENV_POD, "a")
    monkeypatch.delenv(names.ENV_SERVICES, raising=False)
    monkeypatch.setattr(retire, "PAUSE_S", 0.01)
    yield found
    found.server.stop(None)


def states(drainer: Drainer) -> list[tuple[bool, int]]:
    return [(one.state == pb.Worker.DRAINING, one.resident_bytes) for one in drainer.workers]


def test_the_pods_workers_are_emptied_and_no_others(drainer: Drainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert retire.main(["--deadline-seconds", "60"]) == 0
    assert states(drainer) == [(True, 0), (True, 0), (False, 100)]
    assert "hold nothing" in capsys.readouterr().out


def test_a_controller_that_is_away_is_asked_again(drainer: Drainer) -> None:
    drainer.silent = 3
    assert retire.main(["--deadline-seconds", "60"]) == 0
    assert states(drainer)[0] == (True, 0)


def test_the_pod_ends_when_its_time_is_up(drainer: Drainer, capsys: pytest.CaptureFixture[str]) -> None:
    drainer.stuck = True
    assert retire.main(["--deadline-seconds", "0.2"]) == 0
    assert "not emptied in time" in capsys.readouterr().out


def test_a_controller_that_has_gone_is_given_up(drainer: Drainer) -> None:
    """Its clock goes on by five seconds whenever it is looked at; of more than an hour it takes what `GONE_S` says."""
    drainer.server.stop(None).wait()
    time_left = iter(range(4000, 0, -5))
    pauses: list[float] = []
    with grpc.insecure_channel(f"127.0.0.1:{drainer.port}") as channel:
        assert not retire.retire(PoolControlStub(channel), "a", lambda: next(time_left), pauses.append)
    assert len(pauses) <= retire.GONE_S / 5


def test_a_controller_that_restarts_is_waited_for(drainer: Drainer) -> None:
    """Each answer lets the time begin anew in which nobody answers."""
    drainer.stuck = True
    time_left = iter(range(4 * int(retire.GONE_S) * 2, -1, -2))
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        drainer.silent = len(pauses) % 2

    with grpc.insecure_channel(f"127.0.0.1:{drainer.port}") as channel:
        assert not retire.retire(PoolControlStub(channel), "a", lambda: next(time_left, 0), pause)
    assert len(pauses) > retire.GONE_S
