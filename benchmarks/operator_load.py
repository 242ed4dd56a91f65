"""Who puts load on the API in `bench_operator`: applies and changes objects, watches what comes of it, counts."""

import contextlib
import json
import socket
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import urllib3

from flexpert_operator.api import names
from flexpert_operator.errors import KubeUnavailable
from flexpert_operator.kube import (
    DEPLOYMENTS,
    MOE_DEPLOYMENTS,
    RAY_CLUSTERS,
    SERVICES,
    Kube,
    Resource,
    api_client,
)

NAMESPACE = "default"
CHILDREN = {RAY_CLUSTERS: 1, SERVICES: 3, DEPLOYMENTS: 1}
"""What every MoEDeployment has in the end, however large it is."""

POLL_S = 0.2
QUIET_S = 4.0
ATTEMPTS = 10
NO_RECONCILE = ("lease", "watch")

Object = Mapping[str, Any]


class Measured(Protocol):
    """A process whose CPU time is known."""

    @property
    def cpu_s(self) -> float:
        """CPU seconds so far."""


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Watcher:
    """Watches a resource in a thread, and notes when each object was first seen as wanted.

    Args:
        key: What is noted of an object, and under which name.
    """

    def __init__(self, kubeconfig: Path, resource: Resource, key: Callable[[Object], tuple[str, str] | None]) -> None:
        self.seen: dict[str, dict[str, float]] = defaultdict(dict)
        self._api = api_client(kubeconfig)
        self._api.user_agent = "bench"
        self._path = resource.path(NAMESPACE)
        self._key = key
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        query = "?watch=true&timeoutSeconds=3600"
        call = self._api.param_serialize("GET", self._path, auth_settings=["BearerToken"])
        method, url, headers, _, _ = call
        answer = self._api.rest_client.pool_manager.request(
            method, url + query, headers={**headers, "User-Agent": "bench"}, preload_content=False, timeout=None
        )
        rest = b""
        with contextlib.suppress(urllib3.exceptions.HTTPError):  # the API ends before its watches do
            for piece in answer.stream(None):
                *lines, rest = (rest + piece).split(b"\n")
                self._note([json.loads(line)["object"] for line in lines if line])

    def _note(self, bodies: Sequence[Object]) -> None:
        now = time.monotonic()
        for body in bodies:
            found = self._key(body)
            if found is not None:
                self.seen[found[0]].setdefault(found[1], now)


def child_of(body: Object) -> tuple[str, str] | None:
    """The owner's name and the child's."""
    owner = (body["metadata"].get("labels") or {}).get(names.DEPLOYMENT_LABEL)
    return (owner, body["metadata"]["name"]) if owner else None


def told(body: Object) -> tuple[str, str] | None:
    """A MoEDeployment whose status is of some generation."""
    generation = (body.get("status") or {}).get("observedGeneration")
    return (body["metadata"]["name"], str(generation)) if generation else None


class Load:
    """One client of the API, and its watches."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        api = api_client(kubeconfig)
        api.user_agent = "bench"
        self._kube = Kube(api)
        self._children = {resource: Watcher(kubeconfig, resource, child_of) for resource in CHILDREN}
        self._told = Watcher(kubeconfig, MOE_DEPLOYMENTS, told)

    def requests(self) -> int:
        """Requests of others so far, without those of the election and the watches themselves."""
        counts = self._counts()
        return sum(
            number
            for key, number in counts.items()
            if not key.startswith("bench ") and key.rpartition(" ")[2] not in NO_RECONCILE
        )

    def _counts(self) -> Mapping[str, int]:
        """The API's counts; while it lists for others, it may not answer for a while."""
        for _ in range(ATTEMPTS):
            with contextlib.suppress(KubeUnavailable):
                return self._kube.request("GET", "/livez/counts")
        raise SystemExit("the API does not answer")

    def reconciled(self, port: int) -> int:
        """Reconciliations so far, as the operator's metrics say."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        counts = (line for line in lines if line.startswith("flexpert_reconcile_seconds_count"))
        return int(sum(float(line.rpartition(" ")[2]) for line in counts))

    def free_port(self) -> int:
        """A port that nobody listens at."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    def warm_up(self, timeout_s: float, has_children: bool) -> None:
        """One object, until the operator has seen to it: start-up is not measured."""
        self.apply(1, has_children, timeout_s, prefix="warm")

    def apply(self, number: int, has_children: bool, timeout_s: float, prefix: str = "m") -> list[float]:
        """Create objects one after the other; seconds until each had all its children, or a status."""
        began = {}
        for index in range(number):
            name = f"{prefix}{index:04}"
            began[name] = time.monotonic()
            self._kube.create(MOE_DEPLOYMENTS, NAMESPACE, moe_deployment(name))
        ends = self._until(lambda: self._ends(began, has_children), number, timeout_s)
        return [ends[name] - began[name] for name in began]

    def churn(self, number: int, timeout_s: float) -> float:
        """Change the number of workers of every object; seconds until every status is of the new generation."""
        began, wanted = time.monotonic(), {}
        for index in range(number):
            name = f"m{index:04}"
            body = self._kube.patch(MOE_DEPLOYMENTS, NAMESPACE, name, {"spec": {"experts": {"workers": 3}}})
            wanted[name] = str(body["metadata"]["generation"])
        ends = self._until(
            lambda: {name: self._told.seen[name][one] for name, one in wanted.items() if one in self._told.seen[name]},
            number,
            timeout_s,
        )
        return max(ends.values()) - began

    def until_quiet(self, process: Measured, before: int, timeout_s: float) -> None:
        """Wait until an operator that is being started has asked something, then asks and computes nothing any more.

        `before`: requests before it was started.
        """
        deadline, quiet_since = time.monotonic() + timeout_s, time.monotonic()
        asked, cpu = self.requests(), process.cpu_s
        while time.monotonic() - quiet_since < QUIET_S or asked == before:
            time.sleep(POLL_S * 5)
            now = self.requests(), process.cpu_s
            if now[0] != asked or now[1] - cpu > 0.25 * POLL_S * 5:
                quiet_since = time.monotonic()
            asked, cpu = now
            if time.monotonic() > deadline:
                raise SystemExit("the operator did not come to rest")

    def _ends(self, began: Mapping[str, float], has_children: bool) -> dict[str, float]:
        found = {}
        for name in began:
            if has_children:
                times: Sequence[float] = [
                    moment for watcher in self._children.values() for moment in watcher.seen[name].values()
                ]
                complete = len(times) >= sum(CHILDREN.values())
            else:
                times = list(self._told.seen[name].values())
                complete = bool(times)
            if complete:
                found[name] = max(times) if has_children else min(times)
        return found

    def _until(self, look: Callable[[], dict[str, float]], number: int, timeout_s: float) -> dict[str, float]:
        deadline = time.monotonic() + timeout_s
        while len(found := look()) < number:
            if time.monotonic() > deadline:
                raise SystemExit(f"only {len(found)} of {number} objects were seen to in {timeout_s:.0f} s")
            time.sleep(POLL_S)
        return found


def moe_deployment(name: str) -> dict[str, Any]:
    """A MoEDeployment of two workers."""
    spec = {"model": {"source": "file:///models/tiny"}, "experts": {"workers": 2}}
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "spec": spec}
