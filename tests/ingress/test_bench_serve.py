"""`flexpert bench serve` against an ingress of its own process and engines that say one token after the other."""

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingress_fake_pool import FakePool

from flexpert_operator.bench import prompts
from flexpert_operator.bench.clients import Answer
from flexpert_operator.bench.drive import Run
from flexpert_operator.bench.prompts import Ask, InvalidDataset
from flexpert_operator.bench.report import Wanted, details_of, lines_of, result_of
from flexpert_operator.bench.schedule import arrivals
from flexpert_operator.cli.main import main

Start = Callable[..., Any]
VLLM_LINES = """\
============ Serving Benchmark Result ============
Successful requests:                     2
Failed requests:                         1
Maximum request concurrency:             4
Request rate configured (RPS):           2.00
Benchmark duration (s):                  10.00
Total input tokens:                      30
Total generated tokens:                  5
Request throughput (req/s):              0.20
Request goodput (req/s):                 0.10
Output token throughput (tok/s):         0.50
Peak output token throughput (tok/s):    5.00
Peak concurrent requests:                2.00
Total token throughput (tok/s):          3.50
---------------Time to First Token----------------
Mean TTFT (ms):                          300.00
Median TTFT (ms):                        300.00
P99 TTFT (ms):                           398.00
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          150.00
Median TPOT (ms):                        150.00
P99 TPOT (ms):                           199.00
---------------Inter-token Latency----------------
Mean ITL (ms):                           133.33
Median ITL (ms):                         100.00
P99 ITL (ms):                            198.00
----------------End-to-end Latency----------------
Mean E2EL (ms):                          500.00
Median E2EL (ms):                        500.00
P99 E2EL (ms):                           598.00
---------------Client-side Queueing---------------
Mean Client Queue Time (ms):             50.00
Median Client Queue Time (ms):           50.00
P99 Client Queue Time (ms):              99.00
=================================================="""


def stream(*pieces: float, sent: float = 0.0, queued: float = 0.0, error: str = "") -> Answer:
    at = [sent + piece for piece in pieces]
    ended = at[-1] if at else sent
    return Answer(sent, queued, at, ["x"] * len(at), len(at) * 10 and 15, len(at), ended, error)


def test_the_lines_are_those_of_vllm() -> None:
    answers = [stream(0.2, 0.3, 0.4), stream(0.4, 0.6, sent=0.1, queued=0.1), stream(error="gone")]
    run = Run([Ask("a", 3, 12)] * 3, answers, 10.0, 0.0)
    wanted = Wanted(("ttft", "tpot", "itl", "e2el"), (99.0,), {"ttft": 300.0, "tpot": 150.0}, 2.0, 4)
    result = result_of(run, wanted)
    assert "\n".join(line.rstrip() for line in lines_of(result, wanted)) == VLLM_LINES
    details = details_of(run)
    assert details["errors"] == ["", "", "gone"]
    assert details["ttfts"] == pytest.approx([0.2, 0.4, 0.0])
    assert details["itls"][0] == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0, math.inf])
def test_gaps_have_the_mean_and_the_spread_that_are_asked_for(burstiness: float) -> None:
    at = arrivals(20_000, 50.0, burstiness, np.random.default_rng(1))
    gaps = np.diff(at, prepend=0.0)
    assert at[-1] == pytest.approx(400.0)
    assert gaps.mean() == pytest.approx(1 / 50)
    assert gaps.std() == pytest.approx(
        0.0 if math.isinf(burstiness) else (1 / 50) / burstiness**0.5, rel=0.05, abs=1e-9
    )


def test_at_an_infinite_rate_all_come_at_once() -> None:
    assert not arrivals(10, math.inf, 1.0, np.random.default_rng(0)).any()


def test_lengths_are_like_those_of_sharegpt() -> None:
    asks = prompts.sharegpt_like(4000, 1.0, np.random.default_rng(2))
    prompt, answer = ([getattr(ask, name) for ask in asks] for name in ("prompt_tokens", "max_tokens"))
    assert 110 < np.mean(prompt) < 180
    assert 280 < np.mean(answer) < 360
    assert min(prompt) >= 4
    assert max(np.array(prompt) + np.array(answer)) <= 2048
    assert all(len(ask.prompt.split()) == ask.prompt_tokens for ask in asks)


def test_files_of_both_kinds_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    talks = [{"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "one two three"}]}, {}]
    (tmp_path / "sharegpt.json").write_text(json.dumps(talks))
    assert prompts.read(tmp_path / "sharegpt.json", 3, None, rng) == [Ask("hello", 4)] * 3
    (tmp_path / "custom.jsonl").write_text('{"prompt": "a", "output_tokens": 7}\n\n{"prompt": "b"}\n')
    read = prompts.read(tmp_path / "custom.jsonl", 2, None, rng)
    assert sorted(read, key=lambda ask: ask.prompt) == [Ask("a", 7), Ask("b", 256)]
    (tmp_path / "wrong.jsonl").write_text("{\n")
    with pytest.raises(InvalidDataset, match="JSON lines"):
        prompts.read(tmp_path / "wrong.jsonl", 2, None, rng)
    (tmp_path / "empty.jsonl").write_text('{"text": "a"}\n[]\n')
    with pytest.raises(InvalidDataset, match="no request in it"):
        prompts.read(tmp_path / "empty.jsonl", 2, None, rng)


@pytest.mark.parametrize("backend", ["openai", "openai-chat", "grpc"])
async def test_a_load_on_an_ingress(
    backend: str,
    pool: FakePool,
    start_engine: Start,
    start_ingress: Start,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pool.set_engines({"a": start_engine(delay_s=0.002).endpoint, "b": start_engine(delay_s=0.002).endpoint})
    asks = tmp_path / "asks.jsonl"
    asks.write_text("".join(f'{{"prompt": "import {word}", "output_tokens": 9}}\n' for word in ("os", "main", "class")))
    async with start_ingress() as ingress:
        where = ["--grpc-endpoint", f"127.0.0.1:{ingress.grpc_port}"]
        if backend != "grpc":
            where = ["--base-url", f"http://127.0.0.1:{ingress.http_port}"]
        load = ["--dataset-name", "custom", "--dataset-path", str(asks), "--num-prompts", "24", "--ignore-eos"]
        pace = ["--request-rate", "100", "--burstiness", "0.5", "--max-concurrency", "6"]
        told = ["--goodput", "ttft:60000", "tpot:60000", "--save-detailed", "--result-dir", str(tmp_path)]
        command = ["bench", "serve", "--backend", backend, *where, *load, *pace, *told, "--result-filename", "r.json"]
        assert await asyncio.to_thread(main, command) == 0
    said = capsys.readouterr()
    assert said.err == ""
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["completed"], result["failed"], result["total_output_tokens"]) == (24, 0, 24 * 9)
    assert result["output_lens"] == [9] * 24
    assert result["max_concurrent_requests"] <= 6
    assert result["request_goodput"] == pytest.approx(result["request_throughput"])
    assert result["total_input_tokens"] >= 24
    assert all(text for text in result["generated_texts"])
    assert 0 < result["median_ttft_ms"] <= result["p99_ttft_ms"] <= result["p99_e2el_ms"]
    assert "P99 Client Queue Time (ms):" in said.out


async def test_requests_that_fail_are_told_and_counted(
    pool: FakePool, start_engine: Start, start_ingress: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    asks = tmp_path / "asks.jsonl"
    asks.write_text('{"prompt": "import os", "output_tokens": 4}\n{"prompt": "os", "output_tokens": 1000000}\n')
    async with start_ingress() as ingress:
        where = ["--base-url", f"http://127.0.0.1:{ingress.http_port}"]
        load = ["--dataset-name", "custom", "--dataset-path", str(asks), "--num-prompts", "2"]
        assert await asyncio.to_thread(main, ["bench", "serve", *where, *load]) == 0
        said = capsys.readouterr()
        assert "Failed requests:                         1" in said.out
        assert "status 400" in said.err
        wrong = [*where, "--model", "another", *load]
        assert await asyncio.to_thread(main, ["bench", "serve", *wrong]) == 1
        assert "a first request failed: status 404" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--goodput", "ttft"], "take numbers"),
        (["--goodput", "speed:5"], "there are ttft, tpot, e2el"),
        (["--percentile-metrics", "ttft,x"], "there are ttft"),
        (["--metric-percentiles", "101"], "from 0 to 100"),
        (["--dataset-name", "custom"], "needs --dataset-path"),
        (["--backend", "grpc", "--base-url", "http://x"], "--grpc-endpoint"),
        (["--result-dir", "/absent-folder"], "no such folder"),
    ],
)
def test_wrong_options_are_refused_by_name(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", *options]) == 1
    assert says in capsys.readouterr().err
