"""`flexpert bench serve`: an open-loop load on an ingress, or on any server that speaks OpenAI's interface.

Options, figures, lines and result files have the names that `vllm bench serve` has.
"""

import argparse
import asyncio
import json
import math
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flexpert_operator.bench import prompts
from flexpert_operator.bench.clients import Answer, Client, Sampling, grpc_client, openai_client
from flexpert_operator.bench.drive import Run, drive
from flexpert_operator.bench.prompts import Ask
from flexpert_operator.bench.report import OBJECTIVES, TITLES, Wanted, details_of, lines_of, result_of
from flexpert_operator.bench.schedule import arrivals
from flexpert_operator.cli import access, ingress
from flexpert_operator.cli.errors import CliError
from flexpert_operator.cli.ingress import Ingress

PATHS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
_PROBE_WORDS = 16
_SHOWN_ERRORS = 10


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = commands.add_parser("bench", help="load a server, and tell how long its answers take")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    serve = actions.add_parser("serve", help="send requests at their times, whatever comes of those before")
    _add_server(serve)
    _add_load(serve)
    _add_output(serve)
    ingress.add_options(serve)
    access.add_options(serve)
    serve.set_defaults(run=run)


def _add_server(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("whom to ask")
    group.add_argument("name", nargs="?", help="MoEDeployment (default: the only one)")
    group.add_argument("--backend", choices=["grpc", *PATHS], default="openai", help="(default: openai)")
    group.add_argument("--base-url", metavar="URL", help="of any server with OpenAI's interface, instead of a pool")
    group.add_argument("--endpoint", metavar="PATH", help="on it (default: /v1/completions, /v1/chat/completions)")
    group.add_argument("--grpc-endpoint", metavar="HOST:PORT", help="of an ingress, instead of a MoEDeployment's")
    group.add_argument("--model", default="", help="name of the model (default: whatever is served)")
    group.add_argument(
        "--header", action="append", default=[], metavar="NAME=VALUE", help="with every request; also gRPC's metadata"
    )


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to ask, and when")
    group.add_argument("--num-prompts", type=_count, default=1000)
    group.add_argument("--request-rate", type=_above_zero, default=math.inf, help="a second (default: all at once)")
    group.add_argument(
        "--burstiness", type=_above_zero, default=1.0, help="1: Poisson; less: bursts; inf: a fixed rate (default: 1)"
    )
    group.add_argument("--max-concurrency", type=_count, help="requests open at once")
    names = ["sharegpt-like", "random", "sharegpt", "custom"]
    group.add_argument("--dataset-name", choices=names, default="sharegpt-like")
    group.add_argument("--dataset-path", type=Path, metavar="FILE", help="ShareGPT's JSON, or JSON lines (custom)")
    group.add_argument("--random-input-len", type=_count, default=1024, help="tokens of a prompt")
    group.add_argument("--random-output-len", type=_count, default=128, help="tokens to generate")
    group.add_argument("--random-range-ratio", type=float, default=0.0, help="by which both vary, below 1")
    group.add_argument("--output-len", type=_count, help="tokens to generate for each request of a file")
    group.add_argument("--temperature", type=float, default=0.0)
    group.add_argument("--ignore-eos", action="store_true", help="generate as many tokens as asked for")
    group.add_argument("--extra-body", type=json.loads, default={}, metavar="JSON", help="with every HTTP request")
    group.add_argument("--seed", type=int, default=0)


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to tell")
    group.add_argument("--goodput", nargs="+", default=[], metavar="NAME:MS", help="such as ttft:500 tpot:50 e2el:9000")
    group.add_argument("--percentile-metrics", default="ttft,tpot,itl,e2el", help="(default: all)")
    group.add_argument("--metric-percentiles", default="50,90,95,99", help="(default: 50,90,95,99)")
    group.add_argument("--save-result", action="store_true", help="write a JSON file")
    group.add_argument("--save-detailed", action="store_true", help="with every request in it")
    group.add_argument("--result-dir", type=Path, default=Path(), metavar="FOLDER")
    group.add_argument("--result-filename", metavar="FILE")
    group.add_argument("--metadata", nargs="*", default=[], metavar="KEY=VALUE", help="for the JSON file")
    group.add_argument("--disable-tqdm", action="store_true", help="do not tell how far it is")


def run(options: argparse.Namespace) -> int:
    """Load the server, print what it did, and write it down."""
    wanted = wanted_of(options)
    _check(options)
    with server_of(options) as server:
        done = asyncio.run(_load(options, server))
    result = result_of(done, wanted)
    for error in [answer.error for answer in done.answers if answer.error][:_SHOWN_ERRORS]:
        print(f"flexpert: {error}", file=sys.stderr)
    print("\n".join(lines_of(result, wanted)))
    if options.save_result or options.save_detailed:
        print(_saved(options, result | (details_of(done) if options.save_detailed else {})))
    return 0 if result["completed"] else 1


def wanted_of(options: argparse.Namespace) -> Wanted:
    """What is to be told.

    Raises:
        CliError: An option names what there is not.
    """
    metrics = options.percentile_metrics.split(",")
    if unknown := sorted({*metrics} - {*TITLES}):
        raise CliError(f"--percentile-metrics {','.join(unknown)}: there are {', '.join(TITLES)}")
    try:
        percentiles = [float(one) for one in options.metric_percentiles.split(",")]
        goodput = {name: float(most) for name, _, most in (one.partition(":") for one in options.goodput)}
    except ValueError as error:
        raise CliError(f"--metric-percentiles and --goodput take numbers: {error}") from error
    if any(not 0 <= one <= 100 for one in percentiles):
        raise CliError(f"--metric-percentiles {options.metric_percentiles}: from 0 to 100")
    if unknown := sorted({*goodput} - {*OBJECTIVES}):
        raise CliError(f"--goodput {','.join(unknown)}: there are {', '.join(OBJECTIVES)}, such as ttft:500")
    return Wanted(metrics, percentiles, goodput, options.request_rate, options.max_concurrency)


def _check(options: argparse.Namespace) -> None:
    if options.dataset_name in ("sharegpt", "custom") and options.dataset_path is None:
        raise CliError(f"--dataset-name {options.dataset_name} needs --dataset-path FILE")
    if not 0 <= options.random_range_ratio < 1:
        raise CliError(f"--random-range-ratio {options.random_range_ratio}: from 0 to below 1")
    if options.backend == "grpc" and options.base_url:
        raise CliError("--backend grpc asks an ingress: name it with --grpc-endpoint HOST:PORT, not by --base-url")
    if options.backend != "grpc" and options.grpc_endpoint:
        raise CliError("--grpc-endpoint needs --backend grpc")
    if not options.result_dir.is_dir():
        raise CliError(f"--result-dir {options.result_dir}: there is no such folder")


@contextmanager
def server_of(options: argparse.Namespace) -> Iterator[Ingress]:
    """Where the server is: of gRPC `host:port`, of HTTP a URL; either may be `unix:PATH`.

    Raises:
        CliError: There is no such MoEDeployment, or it cannot be reached.
    """
    given = options.grpc_endpoint if options.backend == "grpc" else options.base_url
    if given:
        yield Ingress(lambda: str(given).rstrip("/"), ingress.tls_of(options))
        return
    with ingress.ingress_of(options, "grpc" if options.backend == "grpc" else "http") as found:
        yield found if options.backend == "grpc" else replace(found, lookup=lambda: _url(found))


def _url(server: Ingress) -> str:
    target = server.lookup()
    if not target.startswith("unix:"):
        return f"{'https' if server.tls else 'http'}://{target}"
    if server.tls:
        raise CliError(
            "HTTPS is not spoken over a forwarded port: use --backend grpc, or kubectl port-forward, "
            "--base-url https://localhost:PORT and --server-name"
        )
    return target


async def _load(options: argparse.Namespace, server: Ingress) -> Run:
    rng = np.random.default_rng(options.seed)
    async with _client(options, server) as client:
        asks = await _asks(options, client, rng)
        at = arrivals(len(asks), options.request_rate, options.burstiness, rng)
        done = Progress(len(asks), not options.disable_tqdm and sys.stderr.isatty())
        found = await drive(client, asks, at, options.max_concurrency, done.note)
    done.end()
    return found


@asynccontextmanager
async def _client(options: argparse.Namespace, server: Ingress) -> AsyncIterator[Client]:
    sampling = Sampling(options.model, options.temperature, options.ignore_eos, options.extra_body)
    headers, tls = headers_of(options), server.tls
    name = tls.server_name if tls else ""
    if options.backend == "grpc":
        credentials = tls.channel_credentials() if tls else None
        async with grpc_client(server.lookup, sampling, headers, credentials, name) as found:
            yield found
        return
    path = options.endpoint or PATHS[options.backend]
    async with openai_client(server.lookup(), path, sampling, headers, tls.context() if tls else None, name) as client:
        yield client


def headers_of(options: argparse.Namespace) -> Mapping[str, str]:
    """What goes with every request: `--header`, and the token, else the key in $OPENAI_API_KEY.

    Raises:
        CliError: One is written wrongly.
    """
    found = {}
    for given in options.header:
        name, separator, value = given.partition("=")
        if not separator:
            raise CliError(f"--header {given}: write NAME=VALUE")
        found[name] = value
    key = ingress.token_of(options) or os.environ.get("OPENAI_API_KEY")
    return ({"Authorization": f"Bearer {key}"} if key else {}) | found


async def _asks(options: argparse.Namespace, client: Client, rng: np.random.Generator) -> Sequence[Ask]:
    """The requests. The first one, which does not count, tells whether the server answers and how it counts words.

    Raises:
        CliError: The server does not answer, or the file has no requests.
    """
    probe = await client.ask(prompts.drawn(_PROBE_WORDS, 1, 1.0, rng))
    if probe.error:
        raise CliError(f"a first request failed: {probe.error}")
    ratio = _PROBE_WORDS / probe.prompt_tokens if probe.prompt_tokens else 1.0
    number = options.num_prompts
    try:
        if options.dataset_path is not None:
            return prompts.read(options.dataset_path, number, options.output_len, rng)
    except prompts.InvalidDataset as error:
        raise CliError(str(error)) from error
    if options.dataset_name == "random":
        lengths = options.random_input_len, options.random_output_len, options.random_range_ratio
        return prompts.of_length(number, *lengths, ratio, rng)
    return prompts.sharegpt_like(number, ratio, rng)


class Progress:
    """Tells on the terminal how far it is."""

    def __init__(self, number: int, shown: bool) -> None:
        self._number = number
        self._shown = shown
        self._done = self._failed = 0

    def note(self, answer: Answer) -> None:
        """One more has ended."""
        self._done += 1
        self._failed += bool(answer.error)
        if self._shown:
            failed = f", {self._failed} failed" if self._failed else ""
            print(f"\r{self._done}/{self._number} requests{failed}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The terminal's line is free again."""
        if self._shown:
            print(file=sys.stderr)


def _saved(options: argparse.Namespace, result: Mapping[str, Any]) -> Path:
    """Write the JSON file; returns its path."""
    date = time.strftime("%Y%m%d-%H%M%S")
    about = {
        "date": date,
        "endpoint_type": options.backend,
        "backend": options.backend,
        "model_id": options.model,
        "num_prompts": options.num_prompts,
        "request_rate": "inf" if math.isinf(options.request_rate) else options.request_rate,
        "burstiness": "inf" if math.isinf(options.burstiness) else options.burstiness,
        "max_concurrency": options.max_concurrency,
    }
    about |= {key: value for key, _, value in (one.partition("=") for one in options.metadata)}
    rate = "inf" if math.isinf(options.request_rate) else f"{options.request_rate:g}"
    path = Path(options.result_dir, options.result_filename or f"{options.backend}-{rate}qps-{date}.json")
    try:
        path.write_text(json.dumps(about | dict(result), indent=1) + "\n")
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from error
    return path


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("1 at least")
    return number


def _above_zero(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError("above 0")
    return number
