"""`flexpert generate` and `bench serve` at an ingress that wants TLS, a client's certificate and a token."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from ingress_fake_pool import FakePool

from flexpert_operator.cli.main import main
from flexpert_proto import names
from flexpert_proto.credentials import serving_identity
from flexpert_workers.ingress import Ingress

Start = Callable[..., Any]
TOKEN = "a-token-of-a-test-" + "x" * 20
LOAD = ("--num-prompts", "3", "--dataset-name", "random", "--random-input-len", "4", "--random-output-len", "3")


@dataclass
class Door:
    """An ingress, and what its clients are given."""

    ingress: Ingress
    folder: Path

    def command(self, kind: str, *options: str) -> list[str]:
        grpc, http = f"127.0.0.1:{self.ingress.grpc_port}", f"https://127.0.0.1:{self.ingress.http_port}"
        return {
            "generate": ["generate", "--endpoint", grpc, *options, "import"],
            "grpc": ["bench", "serve", "--backend", "grpc", "--grpc-endpoint", grpc, *LOAD, *options],
            "openai": ["bench", "serve", "--base-url", http, *LOAD, *options],
        }[kind]

    def options(self, *without: str) -> list[str]:
        pairs = {
            "--ca": str(self.folder / "front" / "ca.crt"),
            "--cert": str(self.folder / "client" / "tls.crt"),
            "--key": str(self.folder / "client" / "tls.key"),
            "--token-file": str(self.folder / "token"),
            "--server-name": "door.example",
        }
        return [word for pair in pairs.items() if pair[0] not in without for word in pair]


@pytest.fixture
async def door(pool: FakePool, start_engine: Start, start_ingress: Start, tmp_path: Path) -> AsyncIterator[Door]:
    pool.set_engines({"a": start_engine().endpoint})
    clients = Authority("clients").issue(tmp_path / "client", "alice")
    front = Authority("front").issue(tmp_path / "front", "door.example")
    (tmp_path / "tokens.json").write_text(json.dumps({"tokens": [{"name": "alice", "token": TOKEN}]}))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    environment = {names.ENV_SERVING_CERTIFICATE: str(front), names.ENV_CLIENT_AUTHORITIES: str(clients)}
    identity, file = serving_identity(environment), str(tmp_path / "tokens.json")
    async with start_ingress(identity=identity, tokens_file=file) as ingress:
        yield Door(ingress, tmp_path)


@pytest.mark.parametrize("kind", ["generate", "grpc", "openai"])
async def test_what_is_asked_for_is_shown(door: Door, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--max-tokens", "3"] if kind == "generate" else []
    assert await asyncio.to_thread(main, door.command(kind, *door.options(), *options)) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out


@pytest.mark.parametrize(
    ("kind", "without", "said"),
    [
        ("generate", "--token-file", "bearer token"),
        ("grpc", "--token-file", "bearer token"),
        ("openai", "--token-file", "bearer token"),
        ("grpc", "--server-name", "UNAVAILABLE"),
        ("openai", "--server-name", "certificate verify failed"),
        ("grpc", "--ca", "UNAVAILABLE"),
        ("openai", "--ca", "certificate verify failed"),
    ],
)
async def test_without_one_of_them_nothing_is_got(
    door: Door, kind: str, without: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(main, door.command(kind, *door.options(without))) == 1
    told = capsys.readouterr().err
    assert told.startswith("flexpert: ")
    assert said in told


async def test_a_token_also_comes_from_the_environment(
    door: Door, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEXPERT_TOKEN", TOKEN)
    assert await asyncio.to_thread(main, door.command("generate", *door.options("--token-file"))) == 0
    given = door.command("generate", *door.options("--token-file"), "--token", "another-" + "y" * 20)
    assert await asyncio.to_thread(main, given) == 1
    assert "UNAUTHENTICATED" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ca", "/absent"], "/absent"),
        (["--cert", "/absent"], "/absent"),
        (["--key", "/absent"], "--key needs --cert"),
        (["--token-file", "/absent"], "--token-file /absent"),
        (["--token-file", "/dev/null"], "has to hold one token"),
    ],
)
@pytest.mark.parametrize(
    "command", [["generate", "x", "--endpoint", "127.0.0.1:1"], ["bench", "serve", "--base-url", "https://x"]]
)
def test_files_that_cannot_be_used_are_named(
    command: list[str], options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *options]) == 1
    assert said in capsys.readouterr().err
