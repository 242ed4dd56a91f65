"""Running an embedded API: in an event loop (`serve`), or in a thread of its own (`KubeApiServer`).

`python -m flexpert_operator.local.kubeapi` uses the first, tests the second.
"""

import asyncio
import contextlib
import secrets
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from aiohttp import web

from flexpert_operator.local.kubeapi import tls
from flexpert_operator.local.kubeapi.api import Api
from flexpert_operator.local.kubeapi.authorization import ADMINISTRATOR, Audit, User
from flexpert_operator.local.kubeapi.kubeconfig import write_kubeconfig
from flexpert_operator.local.kubeapi.server import application

_SHUTDOWN_S = 0.5


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How to serve.

    Attributes:
        port: 0 is one that the system chooses.
        token: what clients show to be administrators.
        users: who else may come, by the token that they show; they may do what roles let them.
        audit: told of every request for a resource, on the server's thread.
        state_file: where objects survive a restart; None keeps them in memory only.
        tls_folder: where the certificate survives a restart; None makes a new one.
        history: events of each resource that a watch can start from.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    users: Mapping[str, User] = field(default_factory=dict)
    audit: Audit | None = None
    state_file: Path | None = None
    tls_folder: Path | None = None
    history: int = 2048
    bookmark_interval_s: float = 30.0


@contextlib.asynccontextmanager
async def serve(config: ServerConfig) -> AsyncIterator[str]:
    """Serve inside the running event loop; yields the URL once it listens.

    Raises:
        OSError: the address cannot be bound.
        ValueError: the state file cannot be read.
    """
    api = Api(state_file=config.state_file, history=config.history)
    users = {**config.users, config.token: ADMINISTRATOR}
    app = application(api, users, bookmark_interval_s=config.bookmark_interval_s, audit=config.audit)
    keep = config.tls_folder
    certificate = tls.load_or_create(keep, config.host) if keep else tls.create(config.host)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, config.host, config.port, ssl_context=certificate.context()).start()
        host, port = runner.addresses[0][:2]
        async with asyncio.TaskGroup() as tasks:
            background = tasks.create_task(api.background())
            yield f"https://{f'[{host}]' if ':' in host else host}:{port}"
            background.cancel()
    finally:
        await runner.cleanup()
        api.close()


class KubeApiServer:
    """An embedded API in a thread of its own; a context manager.

    Example:
        with KubeApiServer() as api:
            subprocess.run(["kubectl", "--kubeconfig", api.write_kubeconfig(path), "get", "ns"])
    """

    def __init__(self, config: ServerConfig | None = None) -> None:
        self.config = config or ServerConfig()
        self._url: Future[str] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="kubeapi", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens; waits until it does.

        Raises:
            OSError: the address could not be bound.
        """
        return self._url.result(timeout=30)

    @property
    def token(self) -> str:
        """What clients must show."""
        return self.config.token

    def write_kubeconfig(self, path: Path | str, token: str | None = None) -> Path:
        """Write a kubeconfig for this server, of the user of `token` or of an administrator; returns its path."""
        return write_kubeconfig(path, self.url, self.token if token is None else token)

    def start(self) -> "KubeApiServer":
        """Start serving; returns when it listens."""
        self._thread.start()
        self._url.result(timeout=30)
        return self

    def stop(self) -> None:
        """Stop serving; what has a state file is saved."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=30)

    def __enter__(self) -> "KubeApiServer":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            async with serve(self.config) as url:
                self._url.set_result(url)
                await self._stop.wait()
        except (OSError, ValueError) as error:
            if self._url.done():
                raise
            self._url.set_exception(error)
