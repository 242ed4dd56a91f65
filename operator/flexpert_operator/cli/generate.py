"""`flexpert generate PROMPT`: a client of the ingress."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flexpert_operator.cli import access, ingress
from flexpert_operator.cli.ingress import Ingress
from flexpert_proto import generation_pb2 as pb
from flexpert_proto.client import GenerationClient, Piece

DEFAULT_MAX_TOKENS = 64


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = commands.add_parser("generate", help="complete a prompt")
    parser.add_argument("prompt", help="text to go on from, or - for standard input")
    parser.add_argument("--name", help="MoEDeployment (default: the only one)")
    parser.add_argument("--endpoint", help="host:port of the ingress's gRPC (default: the MoEDeployment's status)")
    parser.add_argument("--stream", action="store_true", help="print text as it comes")
    parser.add_argument("--max-tokens", type=int, default=DEFAULT_MAX_TOKENS)
    parser.add_argument("--temperature", type=float, help="0 is greedy")
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--stop", action="append", help="text before which to end; up to 4 times")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--ignore-eos", action="store_true", help="go on behind the end of the text")
    parser.add_argument("--timeout", type=float, help="seconds for the whole text")
    parser.add_argument("-o", "--output", choices=["json"])
    ingress.add_options(parser)
    access.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Generate and print: prompt and text together when streaming, the text alone otherwise."""
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    show = _printer(options, prompt)
    pieces = []
    with client_of(options) as client:
        for piece in client.generate_stream(prompt, timeout_s=options.timeout, **parameters_of(options)):
            pieces.append(piece)
            show(piece)
    _finish(options, pieces)
    return 0


@contextmanager
def client_of(options: argparse.Namespace) -> Iterator[GenerationClient]:
    """A client of the ingress, which is looked up again whenever the connection breaks."""
    with found_by(options) as found:
        tls = found.tls
        with GenerationClient(
            found.lookup,
            credentials=tls.channel_credentials() if tls else None,
            server_name=tls.server_name if tls else "",
            token=ingress.token_of(options),
        ) as client:
            yield client


@contextmanager
def found_by(options: argparse.Namespace) -> Iterator[Ingress]:
    """Where the ingress is."""
    if options.endpoint:
        yield Ingress(lambda: str(options.endpoint), ingress.tls_of(options))
        return
    with ingress.ingress_of(options, "grpc") as found:
        yield found


def parameters_of(options: argparse.Namespace) -> Any:
    """The sampling parameters that were given."""
    named = ("max_tokens", "temperature", "top_p", "top_k", "stop", "seed")
    given = {name: getattr(options, name) for name in named if getattr(options, name) is not None}
    return {**given, **({"ignore_eos": True} if options.ignore_eos else {})}


def _printer(options: argparse.Namespace, prompt: str) -> Callable[[Piece], None]:
    if not options.stream or options.output == "json":
        return lambda piece: None
    print(prompt, end="", flush=True)
    return lambda piece: print(piece.text, end="", flush=True)


def _finish(options: argparse.Namespace, pieces: list[Piece]) -> None:
    text = "".join(piece.text for piece in pieces)
    if options.output == "json":
        print(json.dumps(_summary(text, pieces)))
    else:
        print("" if options.stream else text)


def _summary(text: str, pieces: list[Piece]) -> dict[str, Any]:
    last = pieces[-1]
    reason = pb.FinishReason.Name(last.finish_reason or pb.FINISH_REASON_UNSPECIFIED)
    usage = last.usage
    return {
        "text": text,
        "finish_reason": reason.removeprefix("FINISH_").lower(),
        "seed": last.seed,
        "prompt_tokens": usage.prompt_tokens if usage else 0,
        "completion_tokens": usage.completion_tokens if usage else 0,
        "cached_tokens": usage.cached_tokens if usage else 0,
    }
