"""TLS at both ports of an ingress: certificates that change while streams run, clients that have to show one."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx2
import openai
import pytest
from certificates import DAY, Authority
from ingress_fake_pool import FakePool

from flexpert_proto import generation_pb2 as pb
from flexpert_proto import generation_pb2_grpc
from flexpert_proto.client import AsyncGenerationClient, Unavailable
from flexpert_proto.credentials import CredentialsError, Identity, serving_identity
from flexpert_workers import http_server
from flexpert_workers.ingress import Ingress

Start = Callable[..., Any]
HOST = "127.0.0.1"


def identity_of(folder: Path, clients: Path | None = None) -> Identity:
    environment = {"FLEXPERT_SERVING_CERTIFICATE": str(folder)}
    if clients is not None:
        environment["FLEXPERT_CLIENT_AUTHORITIES"] = str(clients)
    identity = serving_identity(environment)
    assert identity is not None
    return identity


def channel_credentials(trusted: Authority, shown: Path | None = None) -> grpc.ChannelCredentials:
    pair = [(shown / name).read_bytes() for name in ("tls.key", "tls.crt")] if shown else [None, None]
    return grpc.ssl_channel_credentials(trusted.certificate, *pair)


def client_context(trusted: Authority, shown: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=trusted.certificate.decode())
    if shown is not None:
        context.load_cert_chain(shown / "tls.crt", shown / "tls.key")
    return context


def rpc_client(ingress: Ingress, credentials: grpc.ChannelCredentials | None) -> AsyncGenerationClient:
    return AsyncGenerationClient(f"{HOST}:{ingress.grpc_port}", credentials=credentials, tries=1)


async def http_get(ingress: Ingress, path: str, context: ssl.SSLContext) -> httpx2.Response:
    async with httpx2.AsyncClient(verify=context) as http:
        return await http.get(f"https://{HOST}:{ingress.http_port}{path}")


def shown_by(port: int, context: ssl.SSLContext) -> bytes:
    """The certificate that a port shows to a new connection."""
    with socket.create_connection((HOST, port), timeout=30) as sock:
        context.set_alpn_protocols(["h2", "http/1.1"])
        with context.wrap_socket(sock, server_hostname=HOST) as secured:
            shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    return shown


async def test_text_over_tls_from_both_ports(
    pool: FakePool, start_engine: Start, start_ingress: Start, tmp_path: Path
) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    authority, foreign = Authority(), Authority("foreign")
    identity = identity_of(authority.issue(tmp_path, HOST))
    async with start_ingress(identity=identity, model_name="tiny") as ingress:
        async with rpc_client(ingress, channel_credentials(authority)) as client:
            assert (await client.generate([1, 2], max_tokens=3)).finish_reason == pb.FINISH_LENGTH
        for wrong in (None, channel_credentials(foreign)):
            async with rpc_client(ingress, wrong) as client:
                with pytest.raises(Unavailable):
                    await client.generate([1, 2], max_tokens=3)
        url = f"https://{HOST}:{ingress.http_port}/v1"
        async with (
            httpx2.AsyncClient(verify=client_context(authority)) as http,
            openai.AsyncOpenAI(base_url=url, api_key="x", http_client=http) as client,
        ):
            assert (await client.completions.create(model="tiny", prompt="def", max_tokens=3)).choices[0].text
        with pytest.raises(httpx2.ConnectError):
            await http_get(ingress, "/health", client_context(foreign))
        async with httpx2.AsyncClient() as http:
            with pytest.raises(httpx2.HTTPError):
                await http.get(f"http://{HOST}:{ingress.http_port}/health")


@pytest.mark.parametrize("port", ["grpc_port", "http_port"])
async def test_versions_before_1_2_are_not_spoken(
    pool: FakePool, start_ingress: Start, tmp_path: Path, port: str
) -> None:
    authority = Authority()
    context = client_context(authority)
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with start_ingress(wait=False, identity=identity_of(authority.issue(tmp_path, HOST))) as ingress:
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(shown_by, getattr(ingress, port), context)


async def test_clients_have_to_show_a_certificate_of_the_authorities(
    pool: FakePool, start_engine: Start, start_ingress: Start, tmp_path: Path
) -> None:
    pool.set_engines({"a": start_engine().endpoint})
    ours, clients, foreign = Authority(), Authority("clients"), Authority("foreign")
    known = clients.issue(tmp_path / "known", "alice")
    expired = clients.issue(tmp_path / "expired", "alice", lasts=-DAY)
    stranger = foreign.issue(tmp_path / "stranger", "alice")
    identity = identity_of(ours.issue(tmp_path / "server", HOST), known)
    async with start_ingress(identity=identity, model_name="tiny") as ingress:
        async with rpc_client(ingress, channel_credentials(ours, known)) as client:
            assert (await client.generate([1, 2], max_tokens=3)).finish_reason == pb.FINISH_LENGTH
        assert (await http_get(ingress, "/v1/models", client_context(ours, known))).status_code == 200
        for shown in (None, expired, stranger):
            async with rpc_client(ingress, channel_credentials(ours, shown)) as client:
                with pytest.raises(Unavailable):
                    await client.generate([1, 2], max_tokens=3)
        for shown in (expired, stranger):
            with pytest.raises(httpx2.HTTPError):
                await http_get(ingress, "/v1/models", client_context(ours, shown))
        refused = await http_get(ingress, "/v1/models", client_context(ours))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "certificate_required")
        assert (await http_get(ingress, "/ready", client_context(ours))).status_code == 200  # the kubelet has none


async def test_certificates_and_authorities_change_under_streams(
    pool: FakePool, start_engine: Start, start_ingress: Start, tmp_path: Path
) -> None:
    pool.set_engines({"a": start_engine(delay_s=0.02).endpoint})
    before, after = Authority("before"), Authority("after")
    server, early, late = tmp_path / "server", tmp_path / "early", tmp_path / "late"
    before.issue(server, HOST)
    before.issue(early, "alice")
    after.issue(late, "alice")
    async with start_ingress(identity=identity_of(server, server), model_name="tiny") as ingress:
        address = f"{HOST}:{ingress.grpc_port}"
        async with grpc.aio.secure_channel(address, channel_credentials(before, early)) as channel:
            request = pb.GenerateRequest(
                token_ids=pb.TokenIds(ids=(1, 2)), parameters=pb.SamplingParameters(max_tokens=60)
            )
            call = generation_pb2_grpc.GenerationStub(channel).Generate(request)
            await anext(aiter(call))
            old = await asyncio.to_thread(shown_by, ingress.http_port, client_context(before, early))

            after.issue(server, HOST)
            for port in (ingress.http_port, ingress.grpc_port):
                new = await asyncio.to_thread(shown_by, port, client_context(after, late))
                assert new != old
            async with rpc_client(ingress, channel_credentials(after, late)) as client:
                assert (await client.generate([1, 2], max_tokens=3)).finish_reason == pb.FINISH_LENGTH
            async with rpc_client(ingress, channel_credentials(after, early)) as client:
                with pytest.raises(Unavailable):
                    await client.generate([1, 2], max_tokens=3)
            assert (await http_get(ingress, "/v1/models", client_context(after, late))).status_code == 200
            with pytest.raises(httpx2.HTTPError):
                await http_get(ingress, "/v1/models", client_context(after, early))

            (server / "tls.key").write_text("broken")
            assert (await http_get(ingress, "/v1/models", client_context(after, late))).status_code == 200
            responses = [response async for response in call]
            assert responses[-1].finish_reason == pb.FINISH_LENGTH


def test_files_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    authority = Authority()
    one, two = authority.issue(tmp_path / "one", HOST), authority.issue(tmp_path / "two", HOST)
    identity_of(one).read()
    (one / "tls.key").write_bytes((two / "tls.key").read_bytes())
    with pytest.raises(CredentialsError, match=r"one/tls\.key"):
        identity_of(one).read()
    with pytest.raises(CredentialsError, match="FLEXPERT_SERVING_CERTIFICATE"):
        serving_identity({"FLEXPERT_CLIENT_AUTHORITIES": str(two)})


async def test_half_open_and_endless_requests_are_dropped(
    pool: FakePool, start_ingress: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT_S", 0.2)
    async with start_ingress(wait=False) as ingress:
        for begun in (b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nhost: x\r\n"):
            reader, writer = await asyncio.open_connection(HOST, ingress.http_port)
            writer.write(begun)
            assert await dropped(reader)
            writer.close()
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT_S", 600)
    async with start_ingress(wait=False) as ingress:
        reader, writer = await asyncio.open_connection(HOST, ingress.http_port)
        writer.write(b"GET /health HTTP/1.1\r\nx: ")
        drop = asyncio.create_task(dropped(reader))
        while not drop.done():
            writer.write(b"a" * 65536)
            await asyncio.sleep(0)
        assert await drop
        writer.close()


async def dropped(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True
