"""Bearer tokens at the doors of an ingress: who comes in, what is said to others, limits, and files that change."""

import asyncio
import datetime
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx2
import openai
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from ingress_fake_pool import FakePool

from flexpert_proto import generation_pb2 as pb
from flexpert_proto import generation_pb2_grpc, open_inference_pb2, open_inference_pb2_grpc
from flexpert_proto.client import AsyncGenerationClient, GenerationFailed, Overloaded
from flexpert_workers.errors import Overloaded as Limited
from flexpert_workers.ingress import Ingress
from flexpert_workers.ingress.caller import CLIENT, caller_of
from flexpert_workers.ingress.tokens import PermissionDenied, Tokens, Unauthenticated, read_tokens

Start = Callable[..., Any]
ALICE, BOB, READER = ("alice-" + "a" * 20, "bob-" + "b" * 20, "reader-" + "r" * 20)
NOW = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)


def write(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"tokens": list(entries)}))
    return path


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def channel_to(ingress: Ingress) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{ingress.grpc_port}")


def request() -> pb.GenerateRequest:
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=(1, 2)), parameters=pb.SamplingParameters(max_tokens=3))


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError):
        await (anext(aiter(call)) if hasattr(call, "__aiter__") else call)
    code: grpc.StatusCode = await call.code()
    return code


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def tokens_of(path: Path, clock: Callable[[], float] | None = None) -> Tokens:
    return Tokens(path, clock or Clock(), lambda: NOW)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return write(
        tmp_path / "tokens.json",
        {"name": "alice", "token": ALICE},
        {"name": "bob", "sha256": hashlib.sha256(BOB.encode()).hexdigest(), "requestsPerSecond": 0.001, "burst": 2},
        {"name": "reader", "token": READER, "access": "Read"},
    )


def test_only_known_tokens_come_in_and_only_for_what_they_are(token_file: Path) -> None:
    tokens = tokens_of(token_file)
    assert tokens.admit(f"Bearer {ALICE}", generates=True) == "alice"
    assert tokens.admit(f"bearer  {BOB} ", generates=True) == "bob"
    assert tokens.admit(f"Bearer {READER}", generates=False) == "reader"
    with pytest.raises(PermissionDenied, match="reader"):
        tokens.admit(f"Bearer {READER}", generates=True)
    for wrong in (None, "", "Bearer", "Bearer ", f"Basic {ALICE}", f"Bearer {ALICE}x", ALICE, "Bearer " + "x" * 5000):
        with pytest.raises(Unauthenticated):
            tokens.admit(wrong, generates=False)


def test_a_token_ends_when_it_expires(tmp_path: Path) -> None:
    file = write(
        tmp_path / "tokens.json",
        {"name": "old", "token": ALICE, "expires": "2026-11-21T23:00:00-01:00"},
        {"name": "new", "token": BOB, "expires": "2026-11-22T00:00:01Z"},
    )
    tokens = tokens_of(file)
    assert tokens.admit(f"Bearer {BOB}", generates=True) == "new"
    with pytest.raises(Unauthenticated, match="'old' has expired"):
        tokens.admit(f"Bearer {ALICE}", generates=True)


def test_the_file_is_read_again_when_it_changes_and_stays_when_it_breaks(token_file: Path) -> None:
    tokens = tokens_of(token_file)
    write(token_file, {"name": "carol", "token": "carol-" + "c" * 20})
    assert tokens.admit(f"Bearer carol-{'c' * 20}", generates=True) == "carol"
    with pytest.raises(Unauthenticated):
        tokens.admit(f"Bearer {ALICE}", generates=True)
    token_file.write_text("{")
    assert tokens.admit(f"Bearer carol-{'c' * 20}", generates=True) == "carol"
    token_file.unlink()
    assert tokens.admit(f"Bearer carol-{'c' * 20}", generates=True) == "carol"
    write(token_file)
    with pytest.raises(Unauthenticated):
        tokens.admit(f"Bearer carol-{'c' * 20}", generates=True)


def test_a_secret_that_the_kubelet_swaps_by_a_link_is_seen(tmp_path: Path) -> None:
    for folder, name in (("one", "alice"), ("two", "bob")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "tokens.json", {"name": name, "token": ALICE})
    (tmp_path / "..data").symlink_to("one")
    tokens = tokens_of(tmp_path / "..data" / "tokens.json")
    assert tokens.admit(f"Bearer {ALICE}", generates=True) == "alice"
    (tmp_path / "..tmp").symlink_to("two")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    assert tokens.admit(f"Bearer {ALICE}", generates=True) == "bob"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "a", "token": "short"}], "shorter than"),
        ([{"name": "a"}], "needs one of"),
        ([{"name": "a", "token": ALICE, "sha256": "00"}], "needs one of"),
        ([{"name": "a", "sha256": "zz"}], "64 hexadecimal"),
        ([{"name": "a/b", "token": ALICE}], "no file of tokens"),
        ([{"name": "a", "token": ALICE, "rate": 3}], "no file of tokens"),
        ([{"name": "a", "token": ALICE, "expires": "2026-01-01T00:00:00"}], "no time zone"),
        ([{"name": "a", "token": ALICE}, {"name": "a", "token": BOB}], "same name"),
        ([{"name": "a", "token": ALICE}, {"name": "b", "token": ALICE}], "same token"),
    ],
)
def test_a_file_that_is_wrong_is_refused_without_telling_a_token(
    tmp_path: Path, entries: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_tokens(write(tmp_path / "tokens.json", *entries))
    assert ALICE not in str(caught.value)


def test_requests_and_tokens_are_limited_by_name(tmp_path: Path) -> None:
    file = write(
        tmp_path / "tokens.json",
        {"name": "alice", "token": ALICE, "requestsPerSecond": 2, "burst": 3},
        {"name": "bob", "token": BOB, "tokensPerMinute": 60},
    )
    clock = Clock()
    tokens = tokens_of(file, clock)
    for _ in range(3):
        tokens.admit(f"Bearer {ALICE}", generates=True)
    with pytest.raises(Limited) as caught:
        tokens.admit(f"Bearer {ALICE}", generates=True)
    assert caught.value.retry_after_s == pytest.approx(0.5)
    clock.now += caught.value.retry_after_s
    tokens.admit(f"Bearer {ALICE}", generates=True)

    tokens.admit(f"Bearer {BOB}", generates=True)
    tokens.spend("bob", 90)  # more than there is: the next request waits until it is made up for
    with pytest.raises(Limited, match="60 tokens a minute") as caught:
        tokens.admit(f"Bearer {BOB}", generates=True)
    assert caught.value.retry_after_s == pytest.approx(30)
    clock.now += 30
    tokens.admit(f"Bearer {BOB}", generates=True)


def test_a_tokens_name_is_the_client_whatever_the_request_says() -> None:
    assert caller_of({CLIENT: "somebody"}, "10.0.0.1").client == "somebody"
    assert caller_of({CLIENT: "somebody"}, "10.0.0.1", token="alice").client == "alice"


async def test_over_grpc(pool: FakePool, start_engine: Start, start_ingress: Start, token_file: Path) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    async with start_ingress(tokens_file=str(token_file)) as ingress, channel_to(ingress) as channel:
        generation = generation_pb2_grpc.GenerationStub(channel)
        oip = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = {name: tuple(bearer(token).items()) for name, token in (("alice", ALICE), ("reader", READER))}
        live = open_inference_pb2.ServerLiveRequest()

        assert await code_of(generation.Generate(request())) is grpc.StatusCode.UNAUTHENTICATED
        assert await code_of(oip.ServerLive(live)) is grpc.StatusCode.UNAUTHENTICATED
        wrong = (("authorization", "Bearer " + "x" * 30),)
        assert await code_of(generation.Generate(request(), metadata=wrong)) is grpc.StatusCode.UNAUTHENTICATED
        denied = generation.Generate(request(), metadata=metadata["reader"])
        assert await code_of(denied) is grpc.StatusCode.PERMISSION_DENIED
        assert (await oip.ServerLive(live, metadata=metadata["reader"])).live

        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status != health_pb2.HealthCheckResponse.UNKNOWN
        asks = reflection_pb2.ServerReflectionRequest(list_services="")
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel)
        assert await code_of(reflected.ServerReflectionInfo(iter([asks]))) is grpc.StatusCode.UNAUTHENTICATED

        async with AsyncGenerationClient(f"127.0.0.1:{ingress.grpc_port}", token=ALICE) as client:
            assert (await client.generate([1, 2], max_tokens=3)).finish_reason == pb.FINISH_LENGTH
            assert await client.tokenize("def")
        async with AsyncGenerationClient(f"127.0.0.1:{ingress.grpc_port}") as client:
            with pytest.raises(GenerationFailed, match="UNAUTHENTICATED"):
                await client.generate([1, 2], max_tokens=3)

        async with AsyncGenerationClient(f"127.0.0.1:{ingress.grpc_port}", token=BOB, tries=1) as client:
            for _ in range(2):
                await client.generate([1, 2], max_tokens=3)
            with pytest.raises(Overloaded, match="'bob' may make"):
                await client.generate([1, 2], max_tokens=3)
        limited = generation.Generate(request(), metadata=tuple(bearer(BOB).items()))
        assert await code_of(limited) is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(await limited.trailing_metadata())
        hint = error_details_pb2.RetryInfo()
        assert status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details[0].Unpack(hint)
        assert hint.retry_delay.ToSeconds() > 0


async def test_reflection_by_a_generic_client_with_a_token(
    pool: FakePool, start_engine: Start, start_ingress: Start, token_file: Path
) -> None:
    pool.set_engines({"a": start_engine().endpoint})

    def look(address: str) -> list[str]:
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(channel, WithToken()))
            service = DescriptorPool(database).FindServiceByName("flexpert.v1.Generation")
            return [method.name for method in service.methods]

    async with start_ingress(tokens_file=str(token_file)) as ingress:
        assert await asyncio.to_thread(look, f"127.0.0.1:{ingress.grpc_port}") == ["Generate", "Tokenize"]


class WithToken(grpc.StreamStreamClientInterceptor):  # type: ignore[type-arg]
    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(details._replace(metadata=tuple(bearer(READER).items())), requests)


async def test_over_http(pool: FakePool, start_engine: Start, start_ingress: Start, token_file: Path) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    async with start_ingress(tokens_file=str(token_file), model_name="tiny") as ingress:
        url = f"http://127.0.0.1:{ingress.http_port}"
        async with httpx2.AsyncClient(base_url=url) as http:
            for path in ("/health", "/ready", "/metrics"):
                assert (await http.get(path)).status_code == 200
            for path in ("/v1/models", "/nowhere"):
                refused = await http.get(path)
                assert refused.status_code == 401
                assert refused.headers["www-authenticate"] == "Bearer"
                assert refused.json()["error"]["code"] == "invalid_api_key"
            large = await http.post("/v1/completions", content=b"x" * 100_000, headers=bearer("x" * 30))
            assert large.status_code == 401
            assert (await http.get("/v1/models", headers=bearer(READER))).status_code == 200
            denied = await http.post("/v1/completions", json={"prompt": "a"}, headers=bearer(READER))
            assert denied.status_code == 403
            assert denied.json()["error"]["code"] == "permission_denied"

        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=ALICE, max_retries=0) as client:
            answer = await client.completions.create(model="tiny", prompt="def", max_tokens=3, user="somebody")
            assert answer.choices[0].finish_reason == "length"
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="z" * 30, max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError, match="not known"):
                await client.completions.create(model="tiny", prompt="def", max_tokens=3)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=BOB, max_retries=0) as client:
            for _ in range(2):
                await client.completions.create(model="tiny", prompt="def", max_tokens=3)
            with pytest.raises(openai.RateLimitError) as caught:
                await client.completions.create(model="tiny", prompt="def", max_tokens=3)
            assert int(caught.value.response.headers["retry-after"]) > 0


async def test_a_token_that_is_taken_away_ends_nothing_that_runs(
    pool: FakePool, start_engine: Start, start_ingress: Start, token_file: Path
) -> None:
    pool.set_engines({"a": start_engine(delay_s=0.02).endpoint})
    async with start_ingress(tokens_file=str(token_file)) as ingress, channel_to(ingress) as channel:
        stub = generation_pb2_grpc.GenerationStub(channel)
        asked = request()
        asked.parameters.max_tokens = 50
        call = stub.Generate(asked, metadata=tuple(bearer(ALICE).items()))
        await anext(aiter(call))
        write(token_file)
        assert await code_of(stub.Generate(asked, metadata=tuple(bearer(ALICE).items()))) is (
            grpc.StatusCode.UNAUTHENTICATED
        )
        responses = [response async for response in call]
        assert responses[-1].finish_reason == pb.FINISH_LENGTH
