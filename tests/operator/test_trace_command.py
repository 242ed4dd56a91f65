"""`flexpert trace record`: chunks of several engines become sequences, and what cannot be in a trace stays out."""

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from flexpert_operator.cli.main import main
from flexpert_operator.cli.trace import Heard, heard_of
from flexpert_proto import pool_pb2 as pb


def chunk(engine: str, sequences: list[int], lengths: list[int], value: int = 0, left_out: int = 0) -> pb.TraceChunk:
    experts = np.tile(np.array([value, value + 1], dtype="<u2"), (sum(lengths), 3, 1))
    return pb.TraceChunk(
        recording="r",
        engine=engine,
        layers=3,
        top_k=2,
        sequences=sequences,
        lengths=lengths,
        experts=experts.tobytes(),
        left_out=left_out,
    )


def heard(*chunks: pb.TraceChunk) -> Heard:
    return heard_of(chunks)


def test_sequences_of_engines_are_put_together_in_order() -> None:
    found = heard(
        pb.TraceChunk(recording="r", engine="a"),
        chunk("a", [0, 1], [5, 2], value=0),
        chunk("b", [0], [3], value=2),
        chunk("a", [1, 0], [1, 1], value=4, left_out=7),
    )
    trace = found.trace(8, tokens=100)
    assert trace is not None
    assert trace.sequence_lengths.tolist() == [6, 3, 3]
    assert trace.experts[:, 0, 0].tolist() == [0] * 5 + [4] + [0] * 2 + [4] + [2] * 3
    assert (trace.num_experts, found.left_out) == (8, 7)


def test_no_more_tokens_than_asked_for() -> None:
    trace = heard(chunk("a", [0], [5]), chunk("b", [0], [5])).trace(8, tokens=7)
    assert trace is not None
    assert trace.sequence_lengths.tolist() == [5, 2]


def test_tokens_with_fewer_experts_are_left_out() -> None:
    found = heard(chunk("a", [0], [2], value=7), chunk("a", [0], [3], value=0))
    trace = found.trace(8, tokens=100)
    assert trace is not None
    assert trace.num_tokens == 3
    assert heard(chunk("a", [0], [2], value=7)).trace(8, tokens=100) is None


def test_a_call_that_breaks_leaves_what_came_before() -> None:
    def broken(first: bool) -> Iterator[pb.TraceChunk]:
        if first:
            yield chunk("a", [0], [2])
        raise grpc.RpcError("away")

    assert heard_of(broken(True)).broken
    with pytest.raises(grpc.RpcError):
        heard_of(broken(False))


@pytest.mark.parametrize(("path", "says"), [("t.npy", "end in .npz"), ("/absent-folder/t.npz", "no such folder")])
def test_files_that_cannot_be_written_are_refused_first(
    path: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "record", "tiny", "--tokens", "5", "-o", path]) == 1
    assert says in capsys.readouterr().err
