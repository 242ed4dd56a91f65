"""Keeps `ObjectStore`s true by list and watch: one task a resource and namespace, in kopf's event loop.

`handlers` starts them before kopf begins to watch, and they wake whom a change concerns. Of children only objects with
the label of a MoEDeployment are asked for. A list comes in pages; a watch goes on where the last one ended, and a list
is made anew only when the API server says that it cannot (410). One that ends as soon as it began counts as broken,
whatever its end looks like: some proxies end every watch so. A kind that the API server does not know (RayClusters,
before KubeRay is installed) has no objects, and is asked for again until it is there.
"""

import asyncio
import contextlib
import json
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import aiohttp
from kubernetes import client

from flexpert_operator.api import names
from flexpert_operator.backoff import Backoff
from flexpert_operator.errors import KubeError, KubeExpired, KubeNotFound, KubeUnavailable
from flexpert_operator.kube import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Object, Resource, error_of
from flexpert_operator.object_store import Key, ObjectStore, key_of

log = logging.getLogger(__name__)

PAGE = 200
WATCH_S = (240.0, 360.0)
"""A watch lasts so long, chosen anew each time so that they do not all end at once."""

SILENCE_S = 90.0
"""API servers send a bookmark every minute; a watch that says nothing for longer is cut off."""

SHORT_S = 1.0
"""A watch that lasted for less has ended before its time, as in Kubernetes' own informers."""

LONGEST_PAUSE_S = 60.0
"""However much later the API server asks to come back."""

SELECTOR = names.DEPLOYMENT_LABEL

Wake = Callable[[str, str], None]
"""(namespace, name of the MoEDeployment) of what has changed."""


class WatchClient:
    """Lists and watches over asyncio, as a configuration of the Kubernetes client says; an async context manager."""

    def __init__(self, configuration: client.Configuration) -> None:
        self._configuration = configuration
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "WatchClient":
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_S)
        connector = aiohttp.TCPConnector(ssl=trust_of(self._configuration), limit=0)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def page(self, path: str, query: Mapping[str, str]) -> Object:
        """One page of a list; raises `KubeError`."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S), self._open(path, query) as answer:
                found: Object = json.loads(await answer.read())
                return found
        except (aiohttp.ClientError, TimeoutError, ValueError) as failure:
            raise KubeUnavailable(f"GET {path}: {failure!r}") from failure

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[tuple[str, Object]]:
        """Events (type, object) until the API server ends the watch; raises `KubeError`."""
        try:
            async with self._open(path, {**query, "watch": "true", "allowWatchBookmarks": "true"}) as answer:
                async for line in lines_of(answer.content):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise error_of(status.get("code", 500), status.get("message", "the watch broke"))
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, ValueError) as failure:
            raise KubeUnavailable(f"watch {path}: {failure!r}") from failure

    @contextlib.asynccontextmanager
    async def _open(self, path: str, query: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None, "used outside of its context"
        token = self._configuration.get_api_key_with_prefix("BearerToken")
        headers = {"Accept": "application/json"} | ({"Authorization": token} if token else {})
        async with self._session.get(self._configuration.host + path, params=query, headers=headers) as answer:
            if answer.status != 200:
                text = await answer.text()
                raise error_of(answer.status, text[:500], answer.headers.get("Retry-After"))
            yield answer


def trust_of(configuration: client.Configuration) -> ssl.SSLContext | bool:
    """Whom to trust and as whom to appear."""
    if not configuration.verify_ssl:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context


async def lines_of(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The lines of an answer, however long they are."""
    rest = b""
    async for piece in content.iter_any():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            if line:
                yield line


class Informer:
    """Keeps one store true for one resource and namespace (None: all).

    Attributes:
        synced: Set once the store has been filled for the first time, or the kind is found not to be served.
        served: Whether the API server knew the kind when it was asked last.
        lists: Lists that were made.
        restarts: Watches that broke, each of which `note_restart` is told of, with the resource.

    `note_served` is called when a kind that was not served is.
    """

    def __init__(
        self,
        connection: WatchClient,
        resource: Resource,
        namespace: str | None,
        store: ObjectStore,
        wake: Wake,
        note_restart: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        selector: str = SELECTOR,
        note_served: Callable[[], None] = lambda: None,
    ) -> None:
        self.synced = asyncio.Event()
        self.served = True
        self.lists = 0
        self.restarts = 0
        self._connection = connection
        self._path = resource.path(namespace)
        self._namespace = namespace
        self._store = store
        self._wake = wake
        self._note_restart = note_restart
        self._note_served = note_served
        self._select = {"labelSelector": selector} if selector else {}
        self._clock = clock
        self._sleep = sleep
        self._plural = resource.plural
        self._version: str | None = None

    async def run(self) -> None:
        """List and watch for ever."""
        backoff = Backoff(0.5, 30.0)
        while True:
            try:
                if self._version is None:
                    self._version = await self._list()
                    self._tell_served()
                await self._watch(self._version, backoff)
            except KubeExpired as expired:
                log.info("%s is listed anew: %s", self._path, expired)
                self._version = None
                await self._sleep(backoff.next())
            except KubeNotFound as missing:
                self._tell_missing(missing)
                self._version = None
                await self._sleep(backoff.next())
            except KubeError as failure:
                log.warning("%s is watched again: %s", self._path, failure)
                self.restarts += 1
                self._note_restart(self._plural)
                pause = getattr(failure, "retry_after_s", None) or 0.0
                await self._sleep(max(min(pause, LONGEST_PAUSE_S), backoff.next()))
            except Exception:
                log.exception("%s cannot be understood; it is listed anew", self._path)
                self._version = None
                await self._sleep(backoff.next())

    async def _list(self) -> str:
        """Fill the store page by page; returns the version to watch from."""
        self.lists += 1
        there: list[Key] = []
        query = {**self._select, "limit": str(PAGE)}
        while True:
            page = await self._connection.page(self._path, query)
            for body in page["items"]:
                there.append(key_of(body))
                if self._store.put(body):
                    self._tell(body)
            version = str(page["metadata"]["resourceVersion"])
            rest = page["metadata"].get("continue")
            if not rest:
                break
            query["continue"] = rest
            await asyncio.sleep(0)
        for key, owner in self._store.keep_only(there, int(version), self._namespace):
            self._wake(key[0], owner)
        return version

    async def _watch(self, version: str, backoff: Backoff) -> None:
        began, seconds = self._clock(), str(int(random.uniform(*WATCH_S)))
        query = {**self._select, "resourceVersion": version, "timeoutSeconds": seconds}
        async for kind, body in self._connection.watch(self._path, query):
            if kind != "BOOKMARK":
                news = self._store.drop(body) if kind == "DELETED" else self._store.put(body)
                if news:
                    self._tell(body)
            self._version = body["metadata"]["resourceVersion"]
            backoff.reset()
        if self._clock() - began < SHORT_S:
            raise KubeUnavailable("the watch ended as soon as it began")

    def _tell_served(self) -> None:
        self.synced.set()
        if not self.served:
            self.served = True
            log.info("%s is served from now on", self._path)
            self._note_served()

    def _tell_missing(self, missing: KubeNotFound) -> None:
        self.synced.set()
        if self.served:
            self.served = False
            log.warning("%s is not served, its CustomResourceDefinition is missing: %s", self._path, missing)

    def _tell(self, body: Mapping[str, Any]) -> None:
        owner = self._store.owner(body)
        if owner:
            self._wake(str(body["metadata"]["namespace"]), owner)
