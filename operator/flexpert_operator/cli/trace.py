"""`flexpert trace record NAME`: which experts a live pool's router chooses, token by token, into a file for `plan`."""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from flexpert_operator.api import names
from flexpert_operator.cli import access
from flexpert_operator.cli.errors import CliError
from flexpert_operator.cli.pool import read_pool
from flexpert_operator.cli.reach import Reach, reach_of
from flexpert_placement.instance import Ints
from flexpert_placement.trace import RoutingTrace, save_trace, trace_of
from flexpert_proto import pool_pb2 as pb
from flexpert_proto.pool_pb2_grpc import PoolControlStub

DEFAULT_SECONDS = 60.0
_GRACE_S = 15.0
_MAX_MESSAGE_BYTES = 256 * 2**20


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = commands.add_parser("trace", help="record which experts the router chooses")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    record = actions.add_parser("record", help="record the tokens that a live pool computes meanwhile")
    record.add_argument("name", nargs="?", help="MoEDeployment (default: the only one)")
    record.add_argument("--tokens", type=int, required=True, help="to record, all engines together")
    record.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="to wait for them at most")
    record.add_argument("-o", "--output", required=True, metavar="FILE.npz")
    access.add_options(record)
    record.set_defaults(run=run_record)


def run_record(options: argparse.Namespace) -> int:
    """Record, and write what came."""
    if not options.output.endswith(".npz"):
        raise CliError(f"-o {options.output}: a trace's name has to end in .npz")
    if not Path(options.output).absolute().parent.is_dir():
        raise CliError(f"-o {options.output}: there is no such folder")
    reach = reach_of(options)
    deployment = access.find_deployment(reach.kube, options.namespace, options.name)
    address = names.control_address_of(deployment)
    pool = read_pool(reach, address)
    if not pool.HasField("model"):
        raise CliError(
            f"{deployment['metadata']['name']} serves no model yet: wait until it is Ready (`flexpert status`)"
        )
    heard = _record(reach, address, options.tokens, options.seconds)
    trace = heard.trace(pool.model.experts, options.tokens)
    if trace is None:
        raise CliError(
            f"no token was computed in {options.seconds:g} s: send requests meanwhile, or record for longer (--seconds)"
        )
    try:
        save_trace(options.output, trace)
    except OSError as error:
        raise CliError(f"-o {options.output}: {error.strerror}") from error
    print(_summary(options.output, trace, heard))
    return 0


@dataclass
class Heard:
    """What engines have sent so far.

    Attributes:
        parts: (engine, its sequence) → experts [tokens, layers, k], in the order of their coming.
        left_out: Tokens that engines had no room for.
        broken: Why the recording ended early, or empty.
    """

    parts: dict[tuple[str, int], list[Ints]] = field(default_factory=dict)
    left_out: int = 0
    broken: str = ""

    def take(self, chunk: pb.TraceChunk) -> None:
        """Add a chunk."""
        self.left_out += chunk.left_out
        if not chunk.lengths:
            return
        experts = np.frombuffer(chunk.experts, dtype="<u2").astype(np.int64).reshape(-1, chunk.layers, chunk.top_k)
        ends = np.cumsum(chunk.lengths)
        for sequence, length, end in zip(chunk.sequences, chunk.lengths, ends, strict=True):
            self.parts.setdefault((chunk.engine, sequence), []).append(experts[end - length : end])

    def trace(self, num_experts: int, tokens: int) -> RoutingTrace | None:
        """The sequences one behind the other, `tokens` at most; None where there is no token.

        Tokens that went to fewer experts than others in some layer are left out: a trace has no place for them.
        """
        rows: list[Ints] = []
        lengths: list[int] = []
        for parts in self.parts.values():
            sequence = np.concatenate(parts)[: tokens - sum(lengths)]
            sequence = sequence[(sequence < num_experts).all(axis=(1, 2))]
            if len(sequence):
                rows.append(sequence)
                lengths.append(len(sequence))
        return trace_of(np.concatenate(rows), np.array(lengths), num_experts) if rows else None


def heard_of(chunks: Iterable[pb.TraceChunk]) -> Heard:
    """All chunks of a call; what came before it broke counts.

    Raises:
        grpc.RpcError: It broke before the first token.
    """
    heard = Heard()
    try:
        for chunk in chunks:
            heard.take(chunk)
    except grpc.RpcError as error:
        if not heard.parts:
            raise
        heard.broken = error.details() if isinstance(error, grpc.Call) else repr(error)
    return heard


def _record(reach: Reach, address: str, tokens: int, seconds: float) -> Heard:
    options = [("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)]
    request = pb.RecordTraceRequest(tokens=max(tokens, 0), seconds=seconds)
    with reach.channel(address, options) as channel:
        try:
            return heard_of(PoolControlStub(channel).RecordTrace(request, timeout=seconds + _GRACE_S))
        except grpc.RpcError as error:
            raise CliError(f"the pool controller at {address} does not record: {error.details()}") from error


def _summary(path: str, trace: RoutingTrace, heard: Heard) -> str:
    text = (
        f"{path}: {trace.num_tokens} tokens of {len(trace.sequence_lengths)} sequences, {trace.num_layers} layers, "
        f"{trace.top_k} of {trace.num_experts} experts"
    )
    if heard.left_out:
        text += f"; engines left {heard.left_out} tokens out, having no room for them"
    return text + (f"; it ended early: {heard.broken}" if heard.broken else "")
