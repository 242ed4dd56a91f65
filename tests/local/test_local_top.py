"""`flexpert top`: what it works out of looks at a pool, how that fits a terminal, and one whose controller restarts."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from played_kubelet import PlayedApi, played_api, pod

from flexpert_operator.cli.main import main
from flexpert_operator.cli.top_screen import lines_of, text_of
from flexpert_operator.cli.top_view import Look, kept, view_of
from flexpert_proto import pool_pb2 as pb
from flexpert_proto.pool_pb2_grpc import PoolControlServicer, add_PoolControlServicer_to_server

CONDITION = {"type": "Ready", "status": "True", "reason": "Serving", "message": ""}
MOED = {"metadata": {"name": "tiny", "namespace": "team"}, "spec": {}, "status": {"conditions": [CONDITION]}}
POLICY = {
    "metadata": {"name": "by-load"},
    "spec": {"targetRef": {"name": "tiny"}},
    "status": {"desired": {"experts": 3}, "lastDecision": {"message": "3 workers: TTFT of 800 ms is over 500 ms"}},
}
LAYERS, EXPERTS = 2, 4


def a_pool(hot: int = 300, generated: int = 100, **more: Any) -> pb.Pool:
    """Two workers with half of the experts each; expert 0 of layer 1 is hot."""
    loads = [100] * (LAYERS * EXPERTS)
    loads[EXPERTS] = hot
    replicas = [
        pb.Replica(expert=pb.Expert(layer=layer, index=index), worker=f"w{index // 2}", share=1.0)
        for layer in range(LAYERS)
        for index in range(EXPERTS)
    ]
    workers = [
        pb.Worker(id=f"w{number}", pod=f"pod-{number}", node="node-1", state=pb.Worker.READY, memory_bytes=2**30)
        for number in range(2)
    ]
    workers[0].resident_bytes = 2**29
    workers.append(pb.Worker(id="w2", pod="pod-2", state=pb.Worker.STANDBY, memory_bytes=2**30))
    engine = pb.Engine(id="e0", pod="pod-e", state=pb.Engine.READY, running=3, waiting=1, kv_use=0.5)
    engine.generated_tokens = generated
    return pb.Pool(
        incarnation="one",
        epoch=pb.Epoch(term=3, sequence=7),
        workers=workers,
        engines=[engine],
        placement=replicas,
        model=pb.ModelInfo(architecture="MixtralForCausalLM", layers=LAYERS, experts=EXPERTS, experts_per_token=2),
        loads=loads,
        loads_since=1.0,
        **more,
    )


def test_loads_and_rates_are_of_lately() -> None:
    looks = [Look(a_pool(), 100.0), Look(a_pool(hot=1300, generated=150), 105.0)]
    view = view_of(looks, MOED)
    assert view.tokens_per_second == 10.0
    assert [(row.id, row.load_percent) for row in view.workers] == [("w0", 100.0), ("w1", 0.0), ("w2", None)]
    assert view.layer_imbalance == (1.0, 2.0)
    assert (view.ready, view.epoch, view.engines[0].kv_percent) == ("True", "3.7", 50.0)


def test_one_look_tells_the_loads_of_all_time_and_no_rate() -> None:
    view = view_of([Look(a_pool(), 100.0)], MOED)
    assert view.tokens_per_second is None
    assert [row.load_percent for row in view.workers] == [60.0, 40.0, None]


def test_looks_at_another_controller_do_not_count() -> None:
    later = a_pool(generated=7)
    later.incarnation = "two"
    looks = kept([Look(a_pool(), 100.0), Look(later, 101.0)], 101.0)
    assert [look.at for look in looks] == [101.0]
    assert [look.at for look in kept([Look(a_pool(), 100.0)], 1000.0)] == [100.0]


def test_latencies_are_of_lately_and_of_what_clients_saw() -> None:
    def told(at: float, first_tokens: Sequence[int], steps: float, busy: float) -> Look:
        ttft = pb.Histogram(bounds=[0.1, 0.2, 0.4], counts=first_tokens, total=1.0)
        sizes = pb.Histogram(bounds=[4.0, 16.0], counts=[int(steps), 0, 0], total=3 * steps)
        by_name = {"ingress_ttft_seconds": ttft, "engine_step_tokens": sizes}
        pool = a_pool(figures=pb.Figures(incarnation="one", since=1.0, at=at, histograms=by_name))
        pool.workers[0].busy_seconds, pool.workers[0].up_seconds = busy, at
        return Look(pool, at)

    view = view_of([told(100.0, [50, 0, 0, 0], 10, 50.0), told(110.0, [50, 9, 1, 0], 20, 53.0)], MOED)
    first = view.times[0]
    assert (first.name, first.count) == ("TTFT", 10)
    assert 150 < (first.p50_milliseconds or 0) < 160
    assert 200 < (first.p99_milliseconds or 0) < 400
    assert view.times[1].p50_milliseconds is None
    assert view.batch_tokens == 3.0
    assert view.workers[0].busy_percent == 30.0
    text = text_of(lines_of(view, 100))
    assert "3.0 tokens a step" in text
    assert any(line.startswith("TTFT") and line.endswith(" 10") for line in text.splitlines())


def test_a_reconfiguration_shows_how_far_it_is() -> None:
    operation = pb.Operation(
        id="grow-1",
        cause=pb.SCALE,
        phase=pb.PREPARE,
        moved_bytes=30 * 2**20,
        started_at=90.0,
        wave=1,
        predicted=pb.PlanPrediction(moved_bytes=120 * 2**20, seconds=20, waves=2),
    )
    view = view_of([Look(a_pool(operation=operation), 100.0)], MOED, POLICY)
    text = text_of(lines_of(view, 200))
    assert "reconfiguration Scale grow-1: Prepare wave 1/2" in text
    assert "25% of 120.0 MiB, 10.0 of about 20.0 s" in text
    assert "autoscaling by by-load: 3 workers: TTFT of 800 ms is over 500 ms" in text
    operation.phase, operation.finished_at, operation.message = pb.ROLLED_BACK, 95.0, "a worker did not answer"
    ended = text_of(lines_of(view_of([Look(a_pool(operation=operation), 100.0)], MOED), 200))
    assert "last reconfiguration Scale grow-1: Rolled back" in ended
    assert "in 5.0 s (a worker did not answer)" in ended


@pytest.mark.parametrize("width", [20, 40, 60, 80, 132])
@pytest.mark.parametrize("height", [10, 24, 60])
def test_it_fits_every_terminal(width: int, height: int) -> None:
    pool = a_pool(message="a message that is longer than any terminal in this test is wide " * 4)
    pool.workers.extend(pb.Worker(id=f"more-{number}", state=pb.Worker.READY) for number in range(100))
    lines = text_of(lines_of(view_of([Look(pool, 100.0)], MOED, POLICY), width, height)).split("\n")
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    if width >= 40 and height >= 24:
        assert any(line.startswith("WORKER") for line in lines)
        assert any(line.startswith("ENGINE") for line in lines)
        assert any(line.startswith("… ") and line.endswith(" more") for line in lines)


def test_columns_are_left_out_by_rank() -> None:
    view = view_of([Look(a_pool(), 100.0)], MOED)
    wide, narrow = (text_of(lines_of(view, width)) for width in (200, 30))
    assert "pod-0" in wide
    assert "node-1" in wide
    assert "pod-0" not in narrow
    assert "60%" in narrow


class Controller(PoolControlServicer):
    def __init__(self) -> None:
        self.pool = a_pool()

    def GetPool(self, request: pb.GetPoolRequest, context: Any) -> pb.Pool:  # noqa: N802
        self.pool.engines[0].generated_tokens += 10
        return self.pool


@pytest.fixture
def api(tmp_path: Path) -> Iterator[PlayedApi]:
    with played_api(tmp_path) as api:
        api.play_pool(pod("head"), moed=MOED)
        api.objects["/apis/flexpert.io/v1alpha1/namespaces/team/moeautoscalingpolicies"] = {"items": [POLICY]}
        yield api


def start(api: PlayedApi) -> tuple[grpc.Server, Controller]:
    server, controller = grpc.server(ThreadPoolExecutor(2)), Controller()
    add_PoolControlServicer_to_server(controller, server)
    api.dialled["head"] = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, controller


def test_once_prints_and_ends(api: PlayedApi, capsys: pytest.CaptureFixture[str]) -> None:
    server, _ = start(api)
    assert main(["top", "tiny", "-n", "team", "--once", "--interval", "0.1", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["workers"][0]["loadPercent"] == 60.0
    assert found["tokensPerSecond"] > 0
    assert found["autoscaling"]["message"].startswith("3 workers")
    assert main(["top", "tiny", "-n", "team", "--once", "--interval", "0.1"]) == 0
    assert "3 running  1 waiting" in capsys.readouterr().out
    server.stop(None).wait()
    assert main(["top", "tiny", "-n", "team", "--once"]) == 1
    assert "the pool controller does not answer" in capsys.readouterr().err


class Terminal:
    """`flexpert top` in a terminal of its own."""

    def __init__(self) -> None:
        self.here, there = pty.openpty()
        command = [sys.executable, "-m", "flexpert_operator.cli.main", "top", "tiny", "-n", "team", "--interval", "0.1"]
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        self.process = subprocess.Popen(command, stdin=there, stdout=there, stderr=there, env=environment)
        os.close(there)
        self.seen = ""

    def until(self, text: str, times: int = 1) -> None:
        """Read what is drawn until a text has come so many times from now on."""
        self.seen = ""
        for _ in range(1200):
            if self.seen.count(text) >= times:
                return
            if select.select([self.here], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.here, 2**16).decode(errors="replace")
                except OSError:
                    break
        pytest.fail(f"never drawn: {text}\n{self.seen[-3000:]}")


def test_on_a_terminal_it_survives_a_controller_and_ends_cleanly(api: PlayedApi) -> None:
    server, controller = start(api)
    terminal = Terminal()
    try:
        terminal.until("epoch 3.7", times=3)
        assert "\x1b[2J" not in terminal.seen.partition("epoch 3.7")[2]
        server.stop(None).wait()
        terminal.until("does not answer")
        assert "tiny (team)" in terminal.seen
        server, controller = start(api)
        controller.pool.epoch.sequence = 8
        terminal.until("epoch 3.8")
        terminal.process.send_signal(signal.SIGINT)
        drain = threading.Thread(target=lambda: terminal.until("\x1b[?1049l"))
        drain.start()
        assert terminal.process.wait(60) == 130
        drain.join()
        assert "Traceback" not in terminal.seen
        assert "\x1b[?25h" in terminal.seen
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.here)
        server.stop(None)
