"""The runtime's one way to the Kubernetes API: lists, watches and writes, over asyncio."""

import base64
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

from flexpert_operator.local.runtime.values import Object

_REQUEST_S = 15.0
_MERGE_PATCH = "application/merge-patch+json"
_MAX_LINE_BYTES = 16 * 2**20


class KubeError(Exception):
    """A call that the API refused, or that did not reach it.

    Attributes:
        status: HTTP status, 0 when there was no answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Kind:
    """A kind of object: its name and its path in the API."""

    name: str
    prefix: str
    plural: str
    api_version: str

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str = "") -> str:
        """Path of all objects, of one namespace's, or of one object."""
        middle = f"/namespaces/{namespace}" if namespace else ""
        end = (f"/{name}" if name else "") + (f"/{subresource}" if subresource else "")
        return f"{self.prefix}{middle}/{self.plural}{end}"


RAY_CLUSTER = Kind("RayCluster", "/apis/ray.io/v1", "rayclusters", "ray.io/v1")
DEPLOYMENT = Kind("Deployment", "/apis/apps/v1", "deployments", "apps/v1")
SERVICE = Kind("Service", "/api/v1", "services", "v1")
POD = Kind("Pod", "/api/v1", "pods", "v1")
NODE = Kind("Node", "/api/v1", "nodes", "v1")
SECRET = Kind("Secret", "/api/v1", "secrets", "v1")
CONFIG_MAP = Kind("ConfigMap", "/api/v1", "configmaps", "v1")
KINDS = {kind.name: kind for kind in (RAY_CLUSTER, DEPLOYMENT, SERVICE, POD, NODE, SECRET, CONFIG_MAP)}


@dataclass(frozen=True)
class Access:
    """How a kubeconfig says to reach its cluster."""

    server: str
    token: str | None
    ssl: ssl.SSLContext | bool

    @classmethod
    def read(cls, kubeconfig: Path) -> "Access":
        """Of the kubeconfig's current context; tokens and certificate authorities are understood."""
        config = yaml.safe_load(kubeconfig.read_text())
        named = {kind: {item["name"]: item for item in config[kind]} for kind in ("contexts", "clusters", "users")}
        context = named["contexts"][config["current-context"]]["context"]
        cluster = named["clusters"][context["cluster"]]["cluster"]
        user = named["users"][context["user"]].get("user") or {}
        token = user.get("token") or (Path(user["tokenFile"]).read_text().strip() if "tokenFile" in user else None)
        return cls(cluster["server"].rstrip("/"), token, _trust(cluster))


def _trust(cluster: Mapping[str, Any]) -> ssl.SSLContext | bool:
    if cluster.get("insecure-skip-tls-verify"):
        return False
    if "certificate-authority-data" in cluster:
        return ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    if "certificate-authority" in cluster:
        return ssl.create_default_context(cafile=cluster["certificate-authority"])
    return True


class Kube:
    """A connection to the API; an async context manager."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self._access.token}"} if self._access.token else {}
        self._session = aiohttp.ClientSession(headers=headers, read_bufsize=_MAX_LINE_BYTES)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def list(self, kind: Kind) -> tuple[list[Object], str]:
        """All objects of a kind, and the resourceVersion to watch from."""
        found = await self._request("GET", kind.path())
        items = [{"apiVersion": kind.api_version, "kind": kind.name, **item} for item in found["items"]]
        return items, found["metadata"]["resourceVersion"]

    async def watch(self, kind: Kind, resource_version: str) -> AsyncIterator[tuple[str, Object]]:
        """Events (type, object) from a resourceVersion on, until the server ends the watch.

        Raises:
            KubeError: Also for an event of type ERROR, such as 410 for a resourceVersion that is too old.
        """
        query = {"watch": "true", "resourceVersion": resource_version, "allowWatchBookmarks": "true"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_REQUEST_S)
        try:
            async with self._open("GET", kind.path(), query, timeout=timeout) as answer:
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise KubeError(event["object"].get("code", 500), event["object"].get("message", ""))
                    yield event["type"], event["object"]
        except aiohttp.ClientError as error:
            raise KubeError(0, str(error)) from error

    async def create(self, kind: Kind, body: Object) -> Object:
        """Make an object."""
        return await self._request("POST", kind.path(body["metadata"].get("namespace")), body)

    async def patch_status(self, kind: Kind, namespace: str, name: str, status: Object) -> Object:
        """Merge into an object's status."""
        return await self._request("PATCH", kind.path(namespace, name, "status"), {"status": status}, _MERGE_PATCH)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str, grace_s: int | None) -> Object | None:
        """Delete the object if it still is the one with this uid.

        Returns:
            The object where it stays for a while yet (its grace), None when it is gone.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        try:
            left = await self._request("DELETE", kind.path(namespace, name), options)
        except KubeError as error:
            if error.status not in (404, 409):
                raise
            return None
        return left if left.get("kind") != "Status" and left["metadata"].get("deletionTimestamp") else None

    async def _request(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json"
    ) -> Object:
        timeout = aiohttp.ClientTimeout(total=_REQUEST_S)
        data = None if body is None else json.dumps(body)
        try:
            async with self._open(
                method, path, {}, data=data, headers={"Content-Type": content_type}, timeout=timeout
            ) as answer:
                found: Object = await answer.json(content_type=None)
                return found
        except (aiohttp.ClientError, TimeoutError) as error:
            raise KubeError(0, f"{method} {path}: {error or 'timed out'}") from error

    def _open(self, method: str, path: str, query: Mapping[str, str], **options: Any) -> "_Answer":
        assert self._session is not None, "used outside its context"
        url = self._access.server + path
        return _Answer(self._session.request(method, url, params=query, ssl=self._access.ssl, **options))


class _Answer:
    """An answer of the API whose refusals are `KubeError`s."""

    def __init__(self, request: Any) -> None:
        self._request = request

    async def __aenter__(self) -> aiohttp.ClientResponse:
        answer: aiohttp.ClientResponse = await self._request.__aenter__()
        if answer.status >= 400:
            text = await answer.text()
            await self._request.__aexit__(None, None, None)
            raise KubeError(answer.status, _message(text))
        return answer

    async def __aexit__(self, *error: Any) -> None:
        await self._request.__aexit__(*error)


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
