"""What Flexpert's kinds are to an API server: the same to the embedded one, on which most tests run, and to a real one.

Owner references differ: garbage is collected by the embedded API itself, and else by the controller manager, which does
not run here.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from admission import SPECS, admit
from chart_operator import await_kinds
from either_server import KINDS, EitherServer, open_server
from hypothesis import HealthCheck, Phase, given, settings

from flexpert_operator import manifests
from flexpert_operator.api import names, parse_deployment
from flexpert_operator.decide.difference import covers
from flexpert_operator.errors import KubeConflict, KubeExpired, KubeNotFound, KubeRefused
from flexpert_operator.informers import Informer, WatchClient
from flexpert_operator.kube import MOE_DEPLOYMENTS, NETWORK_POLICIES, SERVICES, Kube, Object, Resource, api_client
from flexpert_operator.local.up import install_crds
from flexpert_operator.object_store import ObjectStore
from flexpert_operator.settings import PoolNetwork

NAMESPACE = "default"
MINIMAL = {"model": {"source": "file:///models/tiny"}}


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EitherServer]:
    with open_server(request.param, tmp_path_factory.mktemp("either")) as server:
        kube = Kube(api_client(server.write_kubeconfig(tmp_path_factory.mktemp("admin") / "kubeconfig")))
        install_crds(kube)
        await_kinds(kube)
        yield server


@pytest.fixture
def kube(server: EitherServer, tmp_path: Path) -> Kube:
    return Kube(api_client(server.write_kubeconfig(tmp_path / "kubeconfig")))


def body(name: str, spec: Any = None, **metadata: Any) -> Object:
    kind = {"apiVersion": f"{names.GROUP}/{names.VERSION}", "kind": "MoEDeployment"}
    return {**kind, "metadata": {"name": name, **metadata}, "spec": MINIMAL if spec is None else spec}


def until(what: str, holds: Callable[[], Any]) -> None:
    pause = threading.Event()
    for _ in range(600):
        if holds():
            return
        pause.wait(0.1)
    pytest.fail(f"never came: {what}")


# ---------------------------------------------------------------------- schema, defaults, rules


def test_what_the_schema_does_not_know_is_pruned_or_named(kube: Kube) -> None:
    spec = {**MINIMAL, "experts": {"wrokers": 3}, "unknown": 1}
    stored = kube.create(MOE_DEPLOYMENTS, NAMESPACE, body("pruned", spec))["spec"]
    assert "unknown" not in stored
    assert "wrokers" not in stored["experts"]
    path = MOE_DEPLOYMENTS.path(NAMESPACE)
    with pytest.raises(KubeRefused, match=r'unknown field "spec.experts.wrokers"'):
        kube.request("POST", path, body("strict", spec), {"fieldValidation": "Strict"})


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({}, "spec.model"),
        ({**MINIMAL, "experts": {"workers": -1}}, "spec.experts.workers"),
        ({**MINIMAL, "experts": {"workers": "2"}}, "spec.experts.workers"),
        ({**MINIMAL, "placement": {"objective": "makespan"}}, "spec.placement.objective"),
        ({"model": {"source": "ftp://x"}}, "spec.model.source"),
        ({"model": {"source": "file:///x", "tokenSecretRef": {"name": "hub"}}}, "spec.model"),
        ({**MINIMAL, "engines": {"replicas": 1.5}}, "spec.engines.replicas"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(kube: Kube, spec: Object, path: str) -> None:
    with pytest.raises(KubeRefused, match=path.replace(".", r"\.")):
        kube.create(MOE_DEPLOYMENTS, NAMESPACE, body("wrong", spec))
    assert kube.find(MOE_DEPLOYMENTS, NAMESPACE, "wrong") is None


def test_names_are_as_children_can_have_them(kube: Kube) -> None:
    for name in ("x" * 41, "a.b", "1x"):
        with pytest.raises(KubeRefused, match="name"):
            kube.create(MOE_DEPLOYMENTS, NAMESPACE, body(name))


def test_defaults_reach_into_what_was_left_out(kube: Kube) -> None:
    stored = kube.create(MOE_DEPLOYMENTS, NAMESPACE, body("defaulted"))["spec"]
    expected, _ = admit(MINIMAL)
    assert expected is not None
    assert stored == expected["spec"]
    assert stored["experts"]["workers"] == 1
    assert stored["placement"]["rebalance"]["enabled"] is True


def test_what_is_immutable_stays(kube: Kube) -> None:
    kube.create(MOE_DEPLOYMENTS, NAMESPACE, body("immutable"))
    with pytest.raises(KubeRefused, match=r"spec\.experts\.workersPerPod: .* cannot be changed"):
        kube.patch(MOE_DEPLOYMENTS, NAMESPACE, "immutable", {"spec": {"experts": {"workersPerPod": 2, "workers": 2}}})
    kube.patch(MOE_DEPLOYMENTS, NAMESPACE, "immutable", {"spec": {"experts": {"workersPerPod": 1, "workers": 3}}})


def test_a_pools_credentials_are_said_at_the_beginning_or_not_at_all(kube: Kube) -> None:
    def change(name: str, security: Any) -> None:
        kube.patch(MOE_DEPLOYMENTS, NAMESPACE, name, {"spec": {"security": security}})

    kube.create(MOE_DEPLOYMENTS, NAMESPACE, body("plain"))
    with pytest.raises(KubeRefused, match="pool cannot be added or taken away"):
        change("plain", {"pool": {"secretName": "one"}})
    with pytest.raises(KubeRefused, match="clientCertificates needs tls"):
        change("plain", {"clientCertificates": {"secretName": "one"}})
    change("plain", {"tls": {"secretName": "one"}, "clientCertificates": {"secretName": "two"}})
    change("plain", {"tls": None, "clientCertificates": None, "tokens": {"secretName": "three"}})

    secured = {**MINIMAL, "security": {"pool": {"secretName": "one"}}}
    kube.create(MOE_DEPLOYMENTS, NAMESPACE, body("secured", secured))
    with pytest.raises(KubeRefused, match="secretName cannot be changed"):
        change("secured", {"pool": {"secretName": "two"}})
    with pytest.raises(KubeRefused, match="pool cannot be added or taken away"):
        change("secured", {"pool": None})


def test_specs_are_judged_as_the_fuzz_tests_judge_them(kube: Kube) -> None:
    """The fuzz tests call the embedded API's functions; a server of either kind comes to the same."""
    seen = {True: 0, False: 0}

    @settings(
        max_examples=60, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(SPECS)
    def judge(spec: Any) -> None:
        expected, paths = admit(spec)
        query = {"dryRun": "All", "fieldValidation": "Strict"}
        stored, refusal = None, ""
        try:
            stored = kube.request("POST", MOE_DEPLOYMENTS.path(NAMESPACE), body("fuzzed", spec), query)["spec"]
        except KubeRefused as refused:
            refusal = str(refused)
        assert stored == (expected["spec"] if expected else None), f"{paths}\n{refusal}\n{spec}"
        assert expected or any(path in refusal for path in paths), f"{paths}\n{refusal}"
        seen[expected is not None] += 1

    judge()
    assert min(seen.values()) > 3


# ---------------------------------------------------------------------- status, scale, conflicts, deletion


def test_spec_and_status_are_written_apart(kube: Kube) -> None:
    made = kube.create(MOE_DEPLOYMENTS, NAMESPACE, {**body("apart"), "status": {"experts": {"epoch": 1}}})
    assert "status" not in made
    assert made["metadata"]["generation"] == 1
    both = {"spec": {"experts": {"workers": 5}}, "status": {"experts": {"workers": 2}}}
    after = kube.patch(MOE_DEPLOYMENTS, NAMESPACE, "apart", both, subresource="status")
    assert (after["spec"]["experts"]["workers"], after["status"]["experts"]["workers"]) == (1, 2)
    assert after["metadata"]["generation"] == 1
    both["status"] = {"experts": {"workers": 9}}
    after = kube.patch(MOE_DEPLOYMENTS, NAMESPACE, "apart", both)
    assert (after["spec"]["experts"]["workers"], after["status"]["experts"]["workers"]) == (5, 2)
    assert after["metadata"]["generation"] == 2
    with pytest.raises(KubeRefused, match=r"status\.experts\.workers"):
        kube.patch(MOE_DEPLOYMENTS, NAMESPACE, "apart", {"status": {"experts": {"workers": "x"}}}, "status")


def test_scale_is_what_kubectl_and_hpa_read_and_write(kube: Kube) -> None:
    kube.create(MOE_DEPLOYMENTS, NAMESPACE, body("scaled"))
    path = MOE_DEPLOYMENTS.path(NAMESPACE, "scaled", "scale")
    assert kube.request("GET", path)["spec"]["replicas"] == 1, "by default, without which HPA has nothing to read"
    status = {"selector": "flexpert.io/moedeployment=scaled", "experts": {"workers": 1}}
    kube.patch(MOE_DEPLOYMENTS, NAMESPACE, "scaled", {"status": status}, "status")
    found = kube.request("GET", path)
    assert found["kind"] == "Scale"
    assert found["status"] == {"replicas": 1, "selector": status["selector"]}
    kube.patch(MOE_DEPLOYMENTS, NAMESPACE, "scaled", {"spec": {"replicas": 0}}, "scale")
    stored = kube.get(MOE_DEPLOYMENTS, NAMESPACE, "scaled")
    assert (stored["spec"]["experts"]["workers"], stored["metadata"]["generation"]) == (0, 2)
    with pytest.raises(KubeRefused, match="greater than or equal to 0"):
        kube.patch(MOE_DEPLOYMENTS, NAMESPACE, "scaled", {"spec": {"replicas": -1}}, "scale")


def test_who_writes_on_old_knowledge_conflicts(kube: Kube) -> None:
    first = kube.create(MOE_DEPLOYMENTS, NAMESPACE, body("old"))
    kube.patch(MOE_DEPLOYMENTS, NAMESPACE, "old", {"spec": {"experts": {"workers": 3}}})
    with pytest.raises(KubeConflict):
        kube.replace(MOE_DEPLOYMENTS, NAMESPACE, "old", first)
    version = {"resourceVersion": first["metadata"]["resourceVersion"]}
    for subresource in ("", "status"):
        with pytest.raises(KubeConflict):
            kube.patch(MOE_DEPLOYMENTS, NAMESPACE, "old", {"metadata": version, "status": {}}, subresource)
    with pytest.raises(KubeConflict):
        kube.create(MOE_DEPLOYMENTS, NAMESPACE, body("old"))
    with pytest.raises(KubeConflict):
        kube.delete(MOE_DEPLOYMENTS, NAMESPACE, "old", uid="another")
    newest = kube.get(MOE_DEPLOYMENTS, NAMESPACE, "old")
    kube.replace(MOE_DEPLOYMENTS, NAMESPACE, "old", newest)


def test_a_finalizer_holds_what_is_deleted(kube: Kube) -> None:
    kube.create(MOE_DEPLOYMENTS, NAMESPACE, body("held", finalizers=[names.FINALIZER]))
    kube.delete(MOE_DEPLOYMENTS, NAMESPACE, "held")
    held = kube.get(MOE_DEPLOYMENTS, NAMESPACE, "held")
    assert held["metadata"]["deletionTimestamp"]
    kube.delete(MOE_DEPLOYMENTS, NAMESPACE, "held")
    more = {"metadata": {"finalizers": [names.FINALIZER, "example.com/another"]}}
    with pytest.raises(KubeRefused, match="finalizers"):
        kube.patch(MOE_DEPLOYMENTS, NAMESPACE, "held", more)
    kube.patch(MOE_DEPLOYMENTS, NAMESPACE, "held", {"metadata": {"finalizers": None}})
    with pytest.raises(KubeNotFound):
        kube.get(MOE_DEPLOYMENTS, NAMESPACE, "held")


def test_children_name_their_owner(kube: Kube, server: EitherServer) -> None:
    owner = kube.create(MOE_DEPLOYMENTS, NAMESPACE, body("owner"))
    reference = {key: owner[key] for key in ("apiVersion", "kind")}
    reference |= {"name": "owner", "uid": owner["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True}
    child = {"metadata": {"name": "child", "ownerReferences": [reference]}, "spec": {"ports": [{"port": 1}]}}
    assert kube.create(SERVICES, NAMESPACE, child)["metadata"]["ownerReferences"] == [reference]
    two, nobody = [reference, {**reference, "uid": "b", "name": "b"}], [{**reference, "uid": ""}]
    for owners, why in ((two, "Only one reference can have Controller set to true"), (nobody, "ownerReferences.*uid")):
        with pytest.raises(KubeRefused, match=why):
            kube.create(SERVICES, NAMESPACE, {**child, "metadata": {"name": "b", "ownerReferences": owners}})
    kube.delete(MOE_DEPLOYMENTS, NAMESPACE, "owner")
    if server.collects:
        until("the child is collected", lambda: kube.find(SERVICES, NAMESPACE, "child") is None)
    else:
        assert kube.get(SERVICES, NAMESPACE, "child"), "nobody collects it here"
        kube.delete(SERVICES, NAMESPACE, "child")


def test_policies_of_pools_are_as_an_api_server_takes_and_keeps_them(kube: Kube, server: EitherServer) -> None:
    owner = parse_deployment(kube.create(MOE_DEPLOYMENTS, NAMESPACE, body("shut")))
    peer = {"namespaceSelector": {"matchLabels": {"a": "b"}}, "podSelector": {"matchLabels": {"c": "d"}}}
    query = {"fieldValidation": "Strict", "dryRun": "All"}
    for network in (PoolNetwork((peer,)), PoolNetwork((peer,), (peer, {"ipBlock": {"cidr": "10.0.0.0/8"}}))):
        for policy in manifests.network_policies(owner, network):
            stored = kube.request("POST", NETWORK_POLICIES.path(NAMESPACE), policy, query)
            assert covers(stored, policy), "else it would be written again and again"
    if not server.collects:
        broken = manifests.network_policies(owner, PoolNetwork(({"ipBlock": {"cidr": "10.0.0"}},)))[0]
        with pytest.raises(KubeRefused, match="ipBlock"):
            kube.request("POST", NETWORK_POLICIES.path(NAMESPACE), broken, query)


# ---------------------------------------------------------------------- watches


def service(name: str) -> Object:
    return {"metadata": {"name": name, "labels": {names.DEPLOYMENT_LABEL: "watched"}}, "spec": {"ports": [{"port": 1}]}}


async def test_a_version_of_which_there_is_no_history_is_expired(server: EitherServer, tmp_path: Path) -> None:
    configuration = api_client(server.write_kubeconfig(tmp_path / "kubeconfig")).configuration
    await asyncio.to_thread(restart, server)
    async with WatchClient(configuration) as connection:
        with pytest.raises(KubeExpired):
            await anext(connection.watch(SERVICES.path(NAMESPACE), {"resourceVersion": "1"}))


def restart(server: EitherServer) -> None:
    with server.killed(forgets=True):
        pass


@pytest.mark.parametrize("group", [names.RAY_GROUP, "nobody.example.com"])
async def test_a_kind_that_is_not_served_is_not_found(
    server: EitherServer, kube: Kube, tmp_path: Path, group: str
) -> None:
    """By this the operator knows that KubeRay is not installed."""
    resource = Resource(group, "v1", "unknowns")
    unknown = {"apiVersion": f"{group}/v1", "kind": "Unknown", "metadata": {"name": "one"}}
    with pytest.raises(KubeNotFound):
        await asyncio.to_thread(kube.create, resource, NAMESPACE, unknown)
    async with WatchClient(api_client(server.write_kubeconfig(tmp_path / "informer")).configuration) as connection:
        with pytest.raises(KubeNotFound):
            await connection.page(resource.path(NAMESPACE), {"limit": "1"})
        with pytest.raises(KubeNotFound):
            await anext(connection.watch(resource.path(NAMESPACE), {"resourceVersion": "1"}))


async def test_an_informer_outlives_the_server(server: EitherServer, kube: Kube, tmp_path: Path) -> None:
    configuration = api_client(server.write_kubeconfig(tmp_path / "informer")).configuration
    await asyncio.to_thread(kube.create, SERVICES, NAMESPACE, service("a"))
    store, woken = ObjectStore(), set[tuple[str, str]]()

    def seen() -> set[str]:
        return {body["metadata"]["name"] for body in store.select(NAMESPACE, {names.DEPLOYMENT_LABEL: "watched"})}

    async with WatchClient(configuration) as connection, asyncio.TaskGroup() as tasks:
        informer = Informer(connection, SERVICES, NAMESPACE, store, lambda *owner: woken.add(owner))
        running = tasks.create_task(informer.run())
        await informer.synced.wait()
        assert seen() == {"a"}
        await asyncio.to_thread(kube.create, SERVICES, NAMESPACE, service("b"))
        await asyncio.to_thread(until, "b is seen", lambda: seen() == {"a", "b"})
        assert informer.lists == 1
        await asyncio.to_thread(restart, server)
        await asyncio.to_thread(kube.create, SERVICES, NAMESPACE, service("c"))
        await asyncio.to_thread(kube.delete, SERVICES, NAMESPACE, "a")
        await asyncio.to_thread(until, "c is seen, and a is gone", lambda: seen() == {"b", "c"})
        assert informer.lists >= 2, "the history before is lost: it is listed anew"
        running.cancel()
    assert woken == {(NAMESPACE, "watched")}
    for name in ("b", "c"):
        await asyncio.to_thread(kube.delete, SERVICES, NAMESPACE, name)
