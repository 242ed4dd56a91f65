"""Role-based access control in the embedded API: who is not an administrator may do what roles allow, and no more."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flexpert_operator.errors import KubeRefused
from flexpert_operator.kube import SERVICES, Kube, Resource, api_client
from flexpert_operator.local.kubeapi import KubeApiServer, ServerConfig
from flexpert_operator.local.kubeapi.authorization import Attributes, allows, service_account, verb_of

USER = service_account("default", "worker")
CONFIG_MAPS = Resource("", "v1", "configmaps")
RBAC = "/apis/rbac.authorization.k8s.io/v1"


class Both:
    """The same API seen by an administrator and by a service account, and what the account asked for."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[Attributes] = []
        audit = self.asked.append
        self.api = KubeApiServer(ServerConfig(users={"workers": USER}, audit=audit)).start()
        self.admin = Kube(api_client(self.api.write_kubeconfig(folder / "admin")))
        self.user = Kube(api_client(self.api.write_kubeconfig(folder / "user", "workers")))

    def allow(self, *rules: dict[str, Any], cluster: bool = False) -> None:
        """Give the account a role with these rules, in the namespace or in all of them."""
        prefix, base = ("Cluster", RBAC) if cluster else ("", f"{RBAC}/namespaces/default")
        name = {"name": "worker"}
        self.admin.request("POST", f"{base}/{prefix.lower()}roles", {"metadata": name, "rules": list(rules)})
        binding = {
            "metadata": name,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": f"{prefix}Role", "name": "worker"},
            "subjects": [{"kind": "ServiceAccount", "name": "worker", "namespace": "default"}],
        }
        self.admin.request("POST", f"{base}/{prefix.lower()}rolebindings", binding)


def rule(resources: str, verbs: str, group: str = "", **more: Any) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": resources.split(), "verbs": verbs.split()} | more


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    made = Both(tmp_path)
    yield made
    made.api.stop()


def refused(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(KubeRefused, match=says):
        call()


def test_without_a_role_nothing_is_allowed_but_discovery(both: Both) -> None:
    words = 'configmaps is forbidden: User "system:serviceaccount:default:worker" cannot list resource "configmaps"'
    refused(lambda: both.user.list(CONFIG_MAPS, "default", ""), words)
    assert both.user.request("GET", "/apis")["groups"]
    assert both.user.request("GET", "/api/v1")["resources"]


def test_a_role_is_of_its_namespace_and_of_its_verbs(both: Both) -> None:
    both.allow(rule("configmaps", "create list"))
    both.user.create(CONFIG_MAPS, "default", {"metadata": {"name": "one"}})
    assert len(both.user.list(CONFIG_MAPS, "default", "")) == 1
    refused(lambda: both.user.get(CONFIG_MAPS, "default", "one"), 'configmaps "one" is forbidden.* cannot get')
    refused(lambda: both.user.delete(CONFIG_MAPS, "default", "one"), "cannot delete")
    refused(lambda: both.user.list(CONFIG_MAPS, "kube-system", ""), 'in the namespace "kube-system"')
    refused(lambda: both.user.request("GET", "/api/v1/configmaps"), "at the cluster scope")
    refused(lambda: both.user.request("GET", "/api/v1/configmaps", query={"watch": "1"}), "cannot watch")


def test_a_cluster_role_is_of_all_namespaces(both: Both) -> None:
    both.allow(rule("configmaps", "list"), rule("nodes", "list"), cluster=True)
    assert both.user.list(CONFIG_MAPS, "kube-system", "") == []
    assert both.user.request("GET", "/api/v1/nodes")["items"] == []


def test_a_subresource_needs_a_rule_of_its_own(both: Both) -> None:
    both.allow(rule("services", "create get patch"))
    both.user.create(SERVICES, "default", {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 1}]}})
    refused(lambda: both.user.patch(SERVICES, "default", "s", {}, subresource="status"), 'resource "services/status"')


def test_applying_what_is_not_there_is_creating_it(both: Both) -> None:
    both.allow(rule("configmaps", "patch get"))
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "new"}}
    path, query = CONFIG_MAPS.path("default", "new"), {"fieldManager": "test"}

    def apply() -> Any:
        return both.user.request("PATCH", path, body, query=query, content_type="application/apply-patch+yaml")

    refused(apply, "cannot create")
    both.admin.create(CONFIG_MAPS, "default", body)
    assert apply()["metadata"]["name"] == "new"


def test_blocking_an_owners_deletion_needs_its_finalizers(both: Both) -> None:
    both.allow(rule("configmaps", "create"))
    owner = both.admin.create(CONFIG_MAPS, "default", {"metadata": {"name": "owner"}})["metadata"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["uid"]}
    both.user.create(CONFIG_MAPS, "default", {"metadata": {"name": "a", "ownerReferences": [reference]}})
    blocking = {"metadata": {"name": "b", "ownerReferences": [reference | {"blockOwnerDeletion": True}]}}
    refused(lambda: both.user.create(CONFIG_MAPS, "default", blocking), 'resource "configmaps/finalizers"')


def test_what_was_asked_is_told(both: Both) -> None:
    both.admin.list(CONFIG_MAPS, "default", "")
    refused(lambda: both.user.get(CONFIG_MAPS, "default", "x"), "forbidden")
    (asked,) = [one for one in both.asked if one.user == USER]
    assert (asked.verb, asked.resource, asked.namespace, asked.name) == ("get", "configmaps", "default", "x")


@pytest.mark.parametrize(
    ("method", "named", "watch", "verb"),
    [
        ("GET", True, False, "get"),
        ("GET", False, False, "list"),
        ("GET", False, True, "watch"),
        ("POST", False, False, "create"),
        ("PUT", True, False, "update"),
        ("DELETE", True, False, "delete"),
        ("DELETE", False, False, "deletecollection"),
    ],
)
def test_verbs(method: str, named: bool, watch: bool, verb: str) -> None:
    assert verb_of(method, named=named, watch=watch) == verb


@pytest.mark.parametrize(
    ("some", "expected"),
    [
        (rule("pods", "get"), True),
        (rule("*", "*"), True),
        (rule("pods", "get", resourceNames=["p"]), True),
        (rule("pods", "get", resourceNames=["q"]), False),
        (rule("pods", "get", group="apps"), False),
        (rule("pods/status", "get"), False),
    ],
)
def test_rules(some: dict[str, Any], expected: bool) -> None:
    assert allows(some, Attributes(USER, "get", "", "pods", "", "default", "p")) is expected
