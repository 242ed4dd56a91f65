"""An ingress with all of `spec.security`, as the operator makes it, on a laptop whose API has its Secrets."""

import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, pool_credentials
from local_laptop import Laptop

from flexpert_operator import manifests
from flexpert_operator.api import Engines, Experts, Model, MoEDeployment, PlacementSpec, Serving
from flexpert_operator.api.security import (
    BearerTokens,
    Certificate,
    ClientCertificates,
    PoolCredentials,
    Security,
)
from flexpert_operator.kube import DEPLOYMENTS, MERGE_PATCH
from flexpert_operator.local.runtime import books

SECRETS = "/api/v1/namespaces/default/secrets"
HOST = "127.0.0.1"
PATH = "/v1/nothing"
"""What is answered at once to whoever may come in: there is no engine, and so no model."""
FIRST, SECOND = "first-" + "x" * 20, "second-" + "y" * 20
SECURITY = Security(
    tls=Certificate("front"),
    client_certificates=ClientCertificates("clients"),
    tokens=BearerTokens("tokens"),
    pool=PoolCredentials("pool"),
)


def tokens(*known: str) -> dict[str, str]:
    entries = [{"name": f"t{number}", "token": token} for number, token in enumerate(known)]
    return {"tokens.json": json.dumps({"tokens": entries})}


def files(folder: Path, *wanted: str) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in wanted}


@pytest.fixture
def deployed(laptop: Laptop) -> Iterator[Laptop]:
    """A Deployment of an ingress whose Secrets are not there."""
    asked = MoEDeployment(
        name="tiny-moe",
        namespace="default",
        uid="uid-1",
        generation=1,
        resource_version="1",
        model=Model("file:///models/tiny"),
        engines=Engines(),
        experts=Experts(),
        placement=PlacementSpec(),
        serving=Serving(),
        security=SECURITY,
    )
    body = manifests.ingress_deployment(asked, "none", 1)
    del body["metadata"]["ownerReferences"]  # it has no owner here that the API would look for
    laptop.kube.create(DEPLOYMENTS, "default", body)
    yield laptop
    for name in ("front", "clients", "tokens", "pool"):
        laptop.kube.request("DELETE", f"{SECRETS}/{name}")


def put(laptop: Laptop, name: str, entries: dict[str, str]) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": entries}
    laptop.kube.request("POST", SECRETS, body)


def change(laptop: Laptop, name: str, entries: dict[str, str]) -> None:
    laptop.kube.request("PATCH", f"{SECRETS}/{name}", {"stringData": entries}, content_type=MERGE_PATCH)


def waiting(laptop: Laptop) -> dict[str, Any]:
    statuses = [one for pod in laptop.pods() for one in (pod.get("status") or {}).get("containerStatuses", [])]
    return dict(statuses[0]["state"].get("waiting") or {}) if statuses else {}


def status_of(laptop: Laptop, context: ssl.SSLContext, path: str, token: str = "") -> int:
    """What the ingress answers; 0 for nothing."""
    [pod] = books.load(laptop.layout.pods).values()
    connection = http.client.HTTPSConnection(HOST, pod.ports["http"], context=context, timeout=30)
    try:
        connection.request("GET", path, headers={"authorization": f"Bearer {token}"} if token else {})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def trusting(authority: Authority, shown: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    if shown is not None:
        context.load_cert_chain(shown / "tls.crt", shown / "tls.key")
    return context


def test_an_ingress_takes_certificates_and_tokens_from_its_secrets(deployed: Laptop, tmp_path: Path) -> None:
    laptop = deployed
    laptop.wait(lambda: "not found" in waiting(laptop).get("message", ""))
    assert waiting(laptop)["reason"] == "ContainerCreating"

    front, clients = Authority("front"), Authority("clients")
    alice = clients.issue(tmp_path / "alice", "alice")
    pair = ("tls.crt", "tls.key")
    put(laptop, "front", files(front.issue(tmp_path / "front", HOST), *pair))
    put(laptop, "clients", files(alice, "ca.crt"))
    put(laptop, "tokens", tokens(FIRST))
    put(laptop, "pool", files(pool_credentials(tmp_path / "pool", Authority()), *pair, "ca.crt", "pool.key"))
    context = trusting(front, alice)
    laptop.wait(lambda: status_of(laptop, context, "/health") == 200)
    assert status_of(laptop, context, PATH) == 401
    assert status_of(laptop, context, PATH, SECOND) == 401
    assert status_of(laptop, context, PATH, FIRST) == 404
    assert status_of(laptop, trusting(front), PATH, FIRST) == 403
    assert status_of(laptop, trusting(Authority(), alice), "/health") == 0

    [process] = laptop.pids()
    change(laptop, "tokens", tokens(SECOND))
    laptop.wait(lambda: status_of(laptop, context, PATH, SECOND) == 404)
    assert status_of(laptop, context, PATH, FIRST) == 401
    renewed = Authority("renewed")
    change(laptop, "front", files(renewed.issue(tmp_path / "renewed", HOST), *pair))
    laptop.wait(lambda: status_of(laptop, trusting(renewed, alice), "/health") == 200)
    assert status_of(laptop, context, "/health") == 0
    assert laptop.pids() == [process]

    [pod] = books.load(laptop.layout.pods).values()
    assert Path(pod.folder).stat().st_mode & 0o777 == 0o700
    laptop.kube.delete(DEPLOYMENTS, "default", "tiny-moe-ingress")
    laptop.wait(lambda: not Path(pod.folder).exists())
