"""PoolControl and PoolMembership with certificates: members alone are answered, and the pool alone is believed."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from certificates import DAY, Authority

from flexpert_proto import names, pool_pb2
from flexpert_proto.channels import pool_channel_aio
from flexpert_proto.credentials import CredentialsError
from flexpert_proto.pool_pb2_grpc import PoolControlStub
from flexpert_workers.pool.service import serve

IDENTITY = names.pool_identity("tiny-moe", "default")


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
async def port(rig: Any, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setenv(names.ENV_POOL_CREDENTIALS, str(authority.issue(tmp_path / "pool", IDENTITY)))
    server, port = await serve(rig.controller, "127.0.0.1:0")
    yield port
    await server.stop(None)


async def ask(address: str) -> pool_pb2.Pool:
    async with pool_channel_aio(address) as channel:
        pool: pool_pb2.Pool = await PoolControlStub(channel).GetPool(pool_pb2.GetPoolRequest(), timeout=60)
        return pool


async def test_only_members_are_answered(
    port: int, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = f"127.0.0.1:{port}"
    address = names.secured(plain, IDENTITY)
    assert (await ask(address)).incarnation
    with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
        await ask(plain)
    members = {
        "operator": authority.issue(tmp_path / "operator", "flexpert-operator"),
        "expired": authority.issue(tmp_path / "expired", "flexpert-operator", lasts=-DAY),
        "foreign": Authority("foreign").issue(tmp_path / "foreign", IDENTITY),
    }
    (members["foreign"] / "ca.crt").write_bytes(authority.certificate)  # it knows the pool; the pool does not know it
    for name, folder in members.items():
        monkeypatch.setenv(names.ENV_POOL_CREDENTIALS, str(folder))
        if name == "operator":
            assert (await ask(address)).incarnation
        else:
            with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                await ask(address)
    async with grpc.aio.secure_channel(
        plain,
        grpc.ssl_channel_credentials(authority.certificate),
        options=[("grpc.ssl_target_name_override", IDENTITY)],
    ) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            await PoolControlStub(channel).GetPool(pool_pb2.GetPoolRequest(), timeout=60)


async def test_a_controller_of_another_pool_is_not_believed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
        await ask(names.secured(f"127.0.0.1:{port}", names.pool_identity("other", "default")))
    monkeypatch.delenv(names.ENV_POOL_CREDENTIALS)
    with pytest.raises(CredentialsError, match=names.ENV_POOL_CREDENTIALS):
        await ask(names.secured(f"127.0.0.1:{port}", IDENTITY))


async def test_a_controller_takes_new_files_for_new_connections(
    port: int, authority: Authority, tmp_path: Path
) -> None:
    address = names.secured(f"127.0.0.1:{port}", IDENTITY)
    async with pool_channel_aio(address) as channel:
        stub = PoolControlStub(channel)
        before = (await stub.GetPool(pool_pb2.GetPoolRequest(), timeout=60)).incarnation
        Authority("next").issue(tmp_path / "pool", IDENTITY)
        assert (await ask(address)).incarnation == before
        assert (await stub.GetPool(pool_pb2.GetPoolRequest(), timeout=60)).incarnation == before
