"""The one module that writes to the Kubernetes API and asks it. `cached` and `cli` use it; `informers` and kopf watch.

One function, `Kube.request`, owns the URL, the time-outs and the translation of errors.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
from kubernetes import client, config
from kubernetes.client.rest import ApiException

from flexpert_operator.api import names
from flexpert_operator.errors import (
    KubeConflict,
    KubeError,
    KubeExpired,
    KubeNotFound,
    KubeRefused,
    KubeUnavailable,
)
from flexpert_operator.fence import Fence, NoFence

Object = dict[str, Any]

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 15.0
CONNECTIONS = 16
"""Connections that are kept: as many as threads that call at once."""

MERGE_PATCH = "application/merge-patch+json"


@dataclass(frozen=True)
class Resource:
    """A namespaced resource of the API; `group` is empty for the core."""

    group: str
    version: str
    plural: str

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Path of the collection (None: of all namespaces), of an object of it, or of an object's subresource."""
        base = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        where = ["namespaces", quote(namespace)] if namespace else []
        return "/".join(part for part in [base, *where, self.plural, quote(name), subresource] if part)


MOE_DEPLOYMENTS = Resource(names.GROUP, names.VERSION, names.PLURAL)
POLICIES = Resource(names.GROUP, names.VERSION, names.POLICY_PLURAL)
SCALERS = Resource(names.GROUP, names.VERSION, names.SCALER_PLURAL)
RAY_CLUSTERS = Resource(names.RAY_GROUP, names.RAY_VERSION, names.RAY_PLURAL)
DEPLOYMENTS = Resource("apps", "v1", "deployments")
SERVICES = Resource("", "v1", "services")
PODS = Resource("", "v1", "pods")
DISRUPTION_BUDGETS = Resource("policy", "v1", "poddisruptionbudgets")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies")


def api_client(kubeconfig: Path | None, context: str | None = None) -> client.ApiClient:
    """A client for the cluster of a kubeconfig file (its current context, or another), or for the one around us."""
    configuration = client.Configuration()
    if kubeconfig is None:
        config.load_incluster_config(client_configuration=configuration)
    else:
        config.load_kube_config(str(kubeconfig), context, client_configuration=configuration)
    configuration.retries = urllib3.Retry(0)
    configuration.connection_pool_maxsize = CONNECTIONS
    return client.ApiClient(configuration)


class Kube:
    """Reads and writes objects as plain dictionaries. Safe to use from several threads.

    Args:
        api: The client's connections.
        fence: Asked before every write.
    """

    def __init__(self, api: client.ApiClient, fence: Fence | None = None) -> None:
        self._api = api
        self._fence = fence or NoFence()

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """One call of the API.

        Raises:
            KubeUnavailable, KubeConflict, KubeNotFound, KubeRefused: As the answer says, or the fence.
        """
        if method != "GET":
            self._fence.check()
        found: Object = json.loads(self._call(method, path, body, query, content_type))
        return found

    def text(self, path: str, query: Mapping[str, str]) -> str:
        """What is no object, a log for example; raises as `request` does."""
        return self._call("GET", path, None, query, "application/json").decode(errors="replace")

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, str] | None,
        content_type: str,
    ) -> bytes:
        headers = {"Accept": "application/json, */*", "Content-Type": content_type}
        call = self._api.param_serialize(method, path, header_params=headers, auth_settings=["BearerToken"])
        method, url, headers, _, _ = call
        if query:
            url = f"{url}?{urlencode(query)}"
        try:
            answer = self._api.call_api(
                method, url, headers, dict(body) if body else None, _request_timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
            )
            data = answer.read()
        except ApiException as refusal:
            raise translate(refusal) from refusal
        except urllib3.exceptions.HTTPError as failure:
            why = getattr(failure, "reason", None) or failure
            host = self._api.configuration.host
            raise KubeUnavailable(f"no answer from the API server {host} to {method} {path}: {why}") from failure
        if not 200 <= answer.status < 300:
            raise translate(ApiException(http_resp=answer))
        return bytes(data)

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """An object; raises `KubeNotFound`."""
        return self.request("GET", resource.path(namespace, name))

    def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """An object, or None when there is none."""
        try:
            return self.get(resource, namespace, name)
        except KubeNotFound:
            return None

    def list(self, resource: Resource, namespace: str, selector: str) -> list[Object]:
        """The objects that carry the labels of `selector`, as the server has them now."""
        found = self.request("GET", resource.path(namespace), query={"labelSelector": selector})
        items: list[Object] = found["items"]
        return items

    def create(self, resource: Resource, namespace: str, body: Mapping[str, Any]) -> Object:
        """Make an object; raises `KubeConflict` when it exists."""
        return self.request("POST", resource.path(namespace), body)

    def replace(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> Object:
        """Write a whole object; raises `KubeConflict` when its resourceVersion is not the newest."""
        return self.request("PUT", resource.path(namespace, name), body)

    def patch(
        self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any], subresource: str = ""
    ) -> Object:
        """Merge `body` into an object (RFC 7386); with a resourceVersion in it, `KubeConflict` when that is old."""
        return self.request("PATCH", resource.path(namespace, name, subresource), body, content_type=MERGE_PATCH)

    def delete(self, resource: Resource, namespace: str, name: str, uid: str = "") -> None:
        """Delete an object; its dependents go in the background. It may be gone already.

        With the `uid` of the object that is meant, `KubeConflict` where another one has its name by now.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            self.request("DELETE", resource.path(namespace, name), options)
        except KubeNotFound:
            return


def translate(refusal: ApiException) -> KubeError:
    """The exception of our own tree for one of the client's."""
    return error_of(refusal.status or 503, message_of(refusal), (refusal.headers or {}).get("Retry-After"))


def error_of(status: int, message: str, retry_after: str | None = None) -> KubeError:
    """The exception for an HTTP status, a message and the header Retry-After."""
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    if status == 410:
        return KubeExpired(message, seconds)
    if status in (408, 429) or status >= 500:
        return KubeUnavailable(message, seconds)
    return {404: KubeNotFound, 409: KubeConflict}.get(status, KubeRefused)(message)


def message_of(refusal: ApiException) -> str:
    """The message of the `Status` object in an answer, or the answer itself."""
    try:
        return str(json.loads(refusal.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{refusal.status} {refusal.reason}: {refusal.body}"
