"""gRPC as clients see it that we did not write: Triton's, one that knows only reflection, and bare calls."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from ingress_fake_engine import expected_token
from ingress_fake_pool import FakePool
from tokenizers import Tokenizer

from flexpert_proto import generation_pb2 as pb
from flexpert_proto import open_inference_pb2 as oip
from flexpert_workers.errors import InvalidRequest
from flexpert_workers.ingress import Ingress
from flexpert_workers.ingress.tensors import pack, unpack

Start = Callable[..., Any]
GENERATE = "/flexpert.v1.Generation/Generate"
INFER = "/inference.GRPCInferenceService/ModelInfer"


def channel_to(ingress: Ingress) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{ingress.grpc_port}")


def generate_request(**parameters: Any) -> bytes:
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=(1, 2)), parameters=pb.SamplingParameters(**parameters)
    ).SerializeToString()


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value


def details_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    trailers = dict(error.trailing_metadata() or ())
    return status_pb2.Status.FromString(trailers["grpc-status-details-bin"])


async def test_tritons_client_speaks_the_open_inference_protocol(
    pool: FakePool, start_engine: Start, start_ingress: Start, model_folder: Path
) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    script = str(Path(__file__).parent / "open_inference_client.py")
    async with start_ingress(model_name="tiny") as ingress:
        client = await asyncio.create_subprocess_exec(
            sys.executable, script, f"127.0.0.1:{ingress.grpc_port}", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await client.communicate()
    assert client.returncode == 0
    said = json.loads(output)
    assert [said[key] for key in ("live", "ready", "model_ready", "other_ready")] == [True, True, True, False]
    assert said["server"]["name"] == "flexpert"
    assert said["model"]["inputs"] == [{"name": "text_input", "datatype": "BYTES", "shape": ["-1"]}]
    tokenizer = Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in ("import os", "def")]
    texts = [tokenizer.decode([expected_token(ids, 3, n) for n in range(6)]) for ids in prompts]
    assert said["infer"] == {
        "id": "mine",
        "text_output": texts,
        "finish_reason": ["length", "length"],
        "completion_tokens": [6, 6],
    }
    assert said["infer_async"] == tokenizer.decode([expected_token(prompts[0], 1, n) for n in range(2)])
    expected = {
        "model": "NOT_FOUND model 'another'",
        "version": "NOT_FOUND version '7'",
        "input": "INVALID_ARGUMENT inputs: give one input, 'text_input'",
        "datatype": "INVALID_ARGUMENT inputs[0].datatype",
        "encoding": "INVALID_ARGUMENT inputs[0] (text_input)[0]: is not UTF-8 at byte 0",
        "output": "INVALID_ARGUMENT outputs[0].name: 'image' is none of",
        "unsupported": "INVALID_ARGUMENT parameters['beam_width']: is not supported",
        "type": "INVALID_ARGUMENT parameters['max_tokens']: 'many' is no value",
        "range": "INVALID_ARGUMENT parameters.top_p: 1.5",
        "metadata": "NOT_FOUND model 'another'",
    }
    for name, message in said["errors"].items():
        assert message.removeprefix("StatusCode.").startswith(expected[name]), message


async def test_contents_may_be_typed_instead_of_raw(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    pool.set_engines({"a": start_engine(script=(400, 401)).endpoint})
    request = oip.ModelInferRequest(parameters={"max_tokens": oip.InferParameter(uint64_param=2)})
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"import os")
    async with start_ingress() as ingress, channel_to(ingress) as channel:
        response = oip.ModelInferResponse.FromString(await channel.unary_unary(INFER)(request.SerializeToString()))
    contents = {output.name: output.contents for output in response.outputs}
    assert list(contents["text_output"].bytes_contents) == [b"word400 word401 "]
    assert list(contents["completion_tokens"].uint_contents) == [2]
    assert not response.raw_output_contents


async def test_a_client_that_knows_only_reflection_generates(
    pool: FakePool, start_engine: Start, start_ingress: Start
) -> None:
    pool.set_engines({"a": start_engine().endpoint})

    def discover_and_call(address: str) -> tuple[set[str], list[dict[str, Any]]]:
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            types = DescriptorPool(database)
            method = types.FindServiceByName("flexpert.v1.Generation").FindMethodByName("Generate")
            request = json_format.ParseDict(
                {"tokenIds": {"ids": [1, 2]}, "parameters": {"maxTokens": 4, "seed": "7"}},
                GetMessageClass(method.input_type)(),
            )
            call = channel.unary_stream(
                f"/{method.containing_service.full_name}/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            answers = [json_format.MessageToDict(response) for response in call(request)]
            return set(database.get_services()), answers

    async with start_ingress() as ingress:
        services, answers = await asyncio.to_thread(discover_and_call, f"127.0.0.1:{ingress.grpc_port}")
    assert services >= {"flexpert.v1.Generation", "inference.GRPCInferenceService", "grpc.health.v1.Health"}
    ids = [token["id"] for answer in answers for token in answer["tokens"]]
    assert ids == [expected_token((1, 2), 7, n) for n in range(4)]
    assert answers[-1]["finishReason"] == "FINISH_LENGTH"


async def test_a_full_ingress_says_when_to_come_back(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    pool.set_engines({"a": start_engine(delay_s=0.01).endpoint})
    async with start_ingress(max_streams=1) as ingress, channel_to(ingress) as channel:
        generate = channel.unary_stream(GENERATE)
        first = generate(generate_request(max_tokens=200))
        await first.read()
        error = await failure(generate(generate_request(max_tokens=1)))
        first.cancel()
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    pushback_ms = int(dict(error.trailing_metadata() or ())["grpc-retry-pushback-ms"])
    hint = error_details_pb2.RetryInfo()
    assert details_of(error).details[0].Unpack(hint)
    assert hint.retry_delay.ToMilliseconds() == pushback_ms > 0


async def test_a_wrong_field_is_named_in_the_details(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    async with start_ingress() as ingress, channel_to(ingress) as channel:
        error = await failure(channel.unary_stream(GENERATE)(generate_request(top_p=2.0)))
    bad = error_details_pb2.BadRequest()
    assert details_of(error).details[0].Unpack(bad)
    assert [violation.field for violation in bad.field_violations] == ["parameters.top_p"]


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x12\x02\xff\xfe", b"\x12\x7f"])
async def test_bytes_that_are_no_message_are_the_callers_fault(
    pool: FakePool, start_engine: Start, start_ingress: Start, data: bytes
) -> None:
    """Not a tag; invalid UTF-8 in `text`; a length behind the end."""
    pool.set_engines({"a": start_engine().endpoint})
    async with start_ingress() as ingress, channel_to(ingress) as channel:
        error = await failure(channel.unary_stream(GENERATE)(data))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "flexpert.v1.GenerateRequest" in (error.details() or "")


async def test_a_message_over_the_limit_is_refused(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    request = pb.GenerateRequest(text="x" * 5000).SerializeToString()
    async with start_ingress(max_request_bytes=4096) as ingress, channel_to(ingress) as channel:
        error = await failure(channel.unary_stream(GENERATE)(request))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (error.details() or "")


async def test_a_deadline_cancels_at_the_engine(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    engine = start_engine(delay_s=0.01)
    pool.set_engines({"a": engine.endpoint})
    async with start_ingress() as ingress, channel_to(ingress) as channel:
        error = await failure(channel.unary_stream(GENERATE)(generate_request(max_tokens=250), timeout=0.2))
        async with asyncio.timeout(30):
            while not engine.cancelled:  # noqa: ASYNC110 - it happens in another thread
                await asyncio.sleep(0.005)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_the_callers_request_id_is_kept(pool: FakePool, start_engine: Start, start_ingress: Start) -> None:
    engine = start_engine()
    pool.set_engines({"a": engine.endpoint})
    async with start_ingress() as ingress, channel_to(ingress) as channel:
        call = channel.unary_stream(GENERATE)
        mine = call(generate_request(max_tokens=2), metadata=(("x-request-id", "trace-7"),))
        answers = [pb.GenerateResponse.FromString(answer) async for answer in mine]
    assert {answer.request_id for answer in answers} == {"trace-7"}
    assert engine.submitted[0].request_id == "trace-7"


def test_raw_texts_survive_packing() -> None:
    texts = [b"", b"abc", "grüße".encode()]
    assert unpack(pack(texts)) == texts
    for broken in (b"\x01", b"\x05\x00\x00\x00abc", b"\xff\xff\xff\xffabc"):
        with pytest.raises(InvalidRequest, match="ends behind the contents"):
            unpack(broken)
