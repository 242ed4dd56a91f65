"""Every object of the chart, in every combination of its flags: accepted by an API server, and as it should be."""

import itertools
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from chart_release import CHART, NAMESPACE, Chart, Object

from flexpert_operator.__main__ import parser, settings_of
from flexpert_operator.api import names as api_names
from flexpert_operator.kube import Kube, api_client
from flexpert_operator.local.kubeapi import KubeApiServer
from flexpert_operator.settings import PrometheusAt, Settings
from flexpert_proto import names

DIGEST = "sha256:" + "0123456789abcdef" * 4
POOLS = {"enabled": True, "clientPeers": [{"namespaceSelector": {"matchLabels": {"team": 'it\'s "us"'}}}]}
FLAGS: dict[str, tuple[Object, ...]] = {
    "scope": ({}, {"watchNamespaces": ["a", "b"]}),
    "nodes": (
        {},
        {"watchNodes": {"enabled": True, "leavingTaints": ["spot/gone"]}},
        {"watchNodes": {"enabled": False}},
    ),
    "account": ({}, {"serviceAccount": {"create": False, "name": "other"}, "rbac": {"create": False}}),
    "policies": (
        {},
        {"networkPolicy": {"enabled": True, "pools": POOLS}, "podDisruptionBudget": {"enabled": False}},
        {"networkPolicy": {"pools": {"enabled": True}}},
    ),
    "election": ({}, {"leaderElection": {"enabled": False}, "operator": {"replicas": 1}}),
    "metrics": (
        {},
        {
            "metrics": {
                "service": {"enabled": False},
                "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
                "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
                "prometheus": {"url": "http://prometheus.monitoring:9090", "tokenFile": "/token"},
                "dashboard": {"enabled": True, "annotations": {"grafana_folder": "Flexpert"}},
            }
        },
        {"metrics": {"service": {"enabled": False}}},
    ),
    "gcs": (
        {},
        {
            "gcsFaultTolerance": {
                "backend": "Redis",
                "redis": {"address": "redis:6379", "passwordSecret": {"name": "redis"}},
            }
        },
        {"gcsFaultTolerance": {"backend": "RocksDB", "rocksdb": {"size": "2Gi", "storageClassName": "fast"}}},
    ),
    "pod": (
        {},
        {
            "imagePullSecrets": [{"name": "registry"}],
            "commonLabels": {"team": "serving"},
            "fullnameOverride": "experts",
            "operator": {
                "image": {"digest": DIGEST},
                "replicas": 1,
                "verbose": True,
                "extraArgs": ["--leaving-taint=other/gone"],
                "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
                "podAnnotations": {"a": "b"},
                "podLabels": {"c": "d"},
                "nodeSelector": {"kubernetes.io/os": "linux"},
                "tolerations": [{"operator": "Exists"}],
                "affinity": {"nodeAffinity": {}},
                "topologySpreadConstraints": [
                    {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
                ],
                "priorityClassName": "system-cluster-critical",
                "resources": {},
            },
            "pool": {"image": {"digest": DIGEST}},
        },
    ),
}


def combinations() -> list[Object]:
    """All that decides about roles with each other; and every other flag with the first and the last of those."""
    roles = list(itertools.product(*(FLAGS[name] for name in ("scope", "nodes", "account"))))
    others = [FLAGS[name] for name in ("policies", "election", "metrics", "gcs", "pod")]
    single = [(one,) for flags in others for one in flags[1:]]
    parts = [*roles, *(role + one for role in (roles[0], roles[-1]) for one in single)]
    parts.append(roles[0] + tuple(flags[1] for flags in others))
    return [{key: value for part in some for key, value in part.items()} for some in parts]


COMBINATIONS = combinations()
CLUSTER_SCOPED = {"ClusterRole", "ClusterRoleBinding"}


def monitor_definition(kind: str) -> Object:
    """A kind of the Prometheus operator's, as far as the chart needs it."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.lower()}s.monitoring.coreos.com"},
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": f"{kind.lower()}s", "listKind": f"{kind}List"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                }
            ],
        },
    }


@pytest.fixture(scope="module")
def kube(tmp_path_factory: pytest.TempPathFactory) -> "Kube":
    """An API server with the namespaces that the chart's objects are in."""
    with KubeApiServer() as api:
        kube = Kube(api_client(api.write_kubeconfig(tmp_path_factory.mktemp("api") / "kubeconfig")))
        for kind in ("ServiceMonitor", "PodMonitor"):
            definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            kube.request("POST", definitions, monitor_definition(kind))
        for name in ("flexpert-system", "a", "b"):
            kube.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        yield kube


def dry_run(kube: Kube, body: Object) -> None:
    """Have the server check an object as `kubectl apply --dry-run=server --validate=strict` would."""
    group, _, version = body["apiVersion"].rpartition("/")
    base = f"/apis/{group}/{version}" if group else f"/api/{version}"
    kind = body["kind"].lower()
    plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
    scope = "" if body["kind"] in CLUSTER_SCOPED else f"/namespaces/{body['metadata']['namespace']}"
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    kube.request("POST", f"{base}{scope}/{plural}", body, query=query)


def test_every_combination_is_accepted(chart: Chart, kube: Kube) -> None:
    seen: set[str] = set()
    for values in COMBINATIONS:
        for body in chart.objects(values):
            text = yaml.safe_dump(body)
            if text not in seen:
                seen.add(text)
                dry_run(kube, body)
    kinds = {yaml.safe_load(text)["kind"] for text in seen}
    assert kinds == {
        *("Deployment", "ServiceAccount", "Service", "ServiceMonitor", "PodMonitor", "ConfigMap", "NetworkPolicy"),
        *("PodDisruptionBudget", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"),
    }


def test_the_linter_finds_nothing_but_the_dependency(chart: Chart) -> None:
    report = chart.ask("lint")["lint"]
    wrong = [one["error"] for one in report["messages"] if one["severity"] >= 2]
    assert wrong == ["chart directory is missing these dependencies: kuberay-operator"]


def test_the_operator_understands_its_arguments(
    chart: Chart, container: Callable[..., Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(names.ENV_SERVICES, raising=False)
    for values in COMBINATIONS:
        settings_of(parser().parse_args(container(values)["args"]))


def test_the_chart_says_what_the_operator_would_do_by_itself(
    container: Callable[..., Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(names.ENV_SERVICES, raising=False)
    settings, default = settings_of(parser().parse_args(container({})["args"])), Settings()
    assert (settings.resync_s, settings.max_surge) == (default.resync_s, default.max_surge)
    assert settings.provision_deadline_s == default.provision_deadline_s
    assert settings.drain_deadline_s == default.drain_deadline_s
    assert settings.headroom_wait_s == default.headroom_wait_s
    assert (settings.streams_deadline_s, settings.threads) == (default.streams_deadline_s, default.threads)


def test_probes_are_cheap(container: Callable[..., Object]) -> None:
    """What Prometheus reads every half minute is too large to be made every few seconds."""
    found = container({})
    for probe in ("livenessProbe", "readinessProbe"):
        assert found[probe]["httpGet"] == {"path": "/healthz", "port": "liveness"}


def test_what_the_values_say_reaches_the_operator(
    container: Callable[..., Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(names.ENV_SERVICES, raising=False)
    options = parser().parse_args(
        container(
            {
                "watchNamespaces": ["a", "b"],
                "leaderElection": {"leaseSeconds": 20},
                "operator": {
                    "resyncSeconds": 7,
                    "provisionDeadlineSeconds": 70,
                    "drainDeadlineSeconds": 77,
                    "logFormat": "json",
                },
                "pool": {"image": {"repository": "registry:5000/pool", "tag": "2"}, "ingressReplicas": 3},
                "gcsFaultTolerance": {"backend": "RocksDB", "rocksdb": {"size": "2Gi", "storageClassName": "fast"}},
            }
        )["args"]
    )
    settings = settings_of(options)
    assert options.namespace == ["a", "b"]
    assert not options.watch_nodes
    assert (settings.resync_s, settings.provision_deadline_s, settings.drain_deadline_s) == (7, 70, 77)
    assert (options.leader_elect, options.lease_name, options.lease_namespace) == (True, "fx-flexpert", NAMESPACE)
    assert options.lease_seconds == 20
    assert options.log_format == "json"
    assert (settings.image, settings.ingress_replicas) == ("registry:5000/pool:2", 3)
    assert settings.gcs is not None
    assert (settings.gcs.backend, settings.gcs.volume_size, settings.gcs.volume_class) == ("rocksdb", "2Gi", "fast")


def test_the_operators_own_certificate_is_mounted_and_nothing_else_of_secrets(chart: Chart) -> None:
    values = {"operator": {"poolCredentialsSecret": "operator-certificate"}}
    [deployment] = [one for one in chart.objects(values) if one["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    folder = next(one["value"] for one in container["env"] if one["name"] == names.ENV_POOL_CREDENTIALS)
    [mount] = [one for one in container["volumeMounts"] if one["mountPath"] == folder]
    [volume] = [one for one in pod["volumes"] if one["name"] == mount["name"]]
    assert volume["secret"] == {"secretName": "operator-certificate", "defaultMode": 0o440}
    [plain] = [one for one in chart.objects({}) if one["kind"] == "Deployment"]
    assert names.ENV_POOL_CREDENTIALS not in yaml.safe_dump(plain)


def test_redis_and_its_secret_reach_the_operator(
    container: Callable[..., Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(names.ENV_SERVICES, raising=False)
    redis = {"address": "redis:6379", "passwordSecret": {"name": "redis-auth", "key": "pw"}}
    arguments = container({"gcsFaultTolerance": {"backend": "Redis", "redis": redis}})["args"]
    gcs = settings_of(parser().parse_args(arguments)).gcs
    assert gcs is not None
    assert (gcs.redis_address, gcs.redis_secret, gcs.redis_secret_key) == ("redis:6379", "redis-auth", "pw")
    assert settings_of(parser().parse_args(container()["args"])).gcs is None


def test_who_may_reach_pools_is_told_to_the_operator(
    chart: Chart, container: Callable[..., Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(names.ENV_SERVICES, raising=False)
    values = {"networkPolicy": {"pools": POOLS}}
    network = settings_of(parser().parse_args(container(values)["args"])).network
    assert network is not None
    assert list(network.clients) == POOLS["clientPeers"]
    ((operator,), labels) = network.operators, chart.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert operator["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}
    assert operator["podSelector"]["matchLabels"].items() <= labels.items()
    assert settings_of(parser().parse_args(container()["args"])).network is None
    for said, asks in ((values, True), ({}, False)):
        (role,) = [one for one in chart.objects(said) if one["kind"] == "ClusterRole"]
        assert ("networkpolicies" in str(role["rules"])) == asks


def test_pods_are_restricted(chart: Chart) -> None:
    """Pod Security Standards, level restricted, and a root file system that cannot be written."""
    pod = chart.one("Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(pod)
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [volume["name"] for volume in pod["volumes"] if "emptyDir" in volume] == ["tmp"]
    assert container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]


def test_a_digest_wins_over_a_tag(container: Callable[..., Object]) -> None:
    assert container()["image"] == "ghcr.io/flexpert/operator:0.1.0"
    assert container({"operator": {"image": {"tag": "1", "digest": DIGEST}}})["image"].endswith(f"operator@{DIGEST}")
    assert f"--image=ghcr.io/flexpert/flexpert@{DIGEST}" in container({"pool": {"image": {"digest": DIGEST}}})["args"]


def test_namespaced_mode_has_no_role_at_cluster_scope(chart: Chart) -> None:
    kinds = [one["kind"] for one in chart.objects({"watchNamespaces": ["a", "b"]})]
    assert CLUSTER_SCOPED.isdisjoint(kinds)
    assert kinds.count("Role") == kinds.count("RoleBinding") == 3, "of both namespaces, and of the lease"
    with_nodes = {"watchNamespaces": ["a"], "watchNodes": {"enabled": True}}
    (rule,) = chart.one("ClusterRole", with_nodes)["rules"]
    assert rule["resources"] == ["nodes"]


def test_objects_at_cluster_scope_are_named_by_their_namespace(chart: Chart) -> None:
    """So that releases of one name in two namespaces have different ones."""
    role, binding = chart.one("ClusterRole"), chart.one("ClusterRoleBinding")
    assert role["metadata"]["name"] == binding["metadata"]["name"] == f"{NAMESPACE}-fx-flexpert"
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_selectors_find_the_pods(chart: Chart) -> None:
    values = {
        "networkPolicy": {"enabled": True},
        "podDisruptionBudget": {"enabled": True},
        "metrics": {"serviceMonitor": {"enabled": True}},
    }
    labels = chart.one("Deployment", values)["spec"]["template"]["metadata"]["labels"]
    service = chart.one("Service", values)
    selectors = [
        chart.one("Deployment", values)["spec"]["selector"]["matchLabels"],
        chart.one("NetworkPolicy", values)["spec"]["podSelector"]["matchLabels"],
        chart.one("PodDisruptionBudget", values)["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    monitored = chart.one("ServiceMonitor", values)["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= service["metadata"]["labels"].items()


def test_pools_are_monitored_where_the_operator_looks_and_by_ports_that_their_pods_have(chart: Chart) -> None:
    everywhere = {"metrics": {"podMonitor": {"enabled": True}}}
    for values, namespaces in (
        (everywhere, {"any": True}),
        ({**everywhere, "watchNamespaces": ["a"]}, {"matchNames": ["a"]}),
    ):
        monitors = [one["spec"] for one in chart.objects(values) if one["kind"] == "PodMonitor"]
        assert all(monitor["namespaceSelector"] == namespaces for monitor in monitors)
        found = {
            monitor["selector"]["matchLabels"][api_names.ROLE_LABEL]: monitor["podMetricsEndpoints"][0]["port"]
            for monitor in monitors
        }
        assert found == {
            api_names.HEAD_ROLE: names.METRICS_PORT_NAME,
            api_names.INGRESS_ROLE: names.HTTP_PORT_NAME,
        }


def test_the_operator_reaches_the_prometheus_that_it_reads(chart: Chart, container: Callable[..., Object]) -> None:
    for url, port in (("http://prometheus.monitoring:9090/x", 9090), ("https://thanos", 443), ("http://thanos2", 80)):
        values = {"networkPolicy": {"enabled": True}, "metrics": {"prometheus": {"url": url}}}
        settings = settings_of(parser().parse_args(container(values)["args"]))
        assert settings.prometheus == PrometheusAt(url)
        rules = chart.one("NetworkPolicy", values)["spec"]["egress"]
        assert [{"port": port, "protocol": "TCP"}] in [rule["ports"] for rule in rules]


REFUSED: dict[str, tuple[Object, str]] = {
    "an unknown value": ({"operator": {"replica": 2}}, "replica"),
    "Redis without an address": ({"gcsFaultTolerance": {"backend": "Redis"}}, "address"),
    "an unknown backend": ({"gcsFaultTolerance": {"backend": "Etcd"}}, "backend"),
    "a digest that is none": ({"pool": {"image": {"digest": "latest"}}}, "digest"),
    "a namespace twice": ({"watchNamespaces": ["a", "a"]}, "watchNamespaces"),
    "no namespace's name": ({"watchNamespaces": ["A_B"]}, "watchNamespaces"),
    "two operators that do not elect": ({"leaderElection": {"enabled": False}}, "two operators would work at once"),
    "an unknown format of the log": ({"operator": {"logFormat": "xml"}}, "logFormat"),
    "peers that are no list": ({"networkPolicy": {"pools": {"clientPeers": {}}}}, "clientPeers"),
    "no threads": ({"operator": {"threads": 0}}, "threads"),
    "no address of a Prometheus": ({"metrics": {"prometheus": {"url": "prometheus:9090"}}}, "url"),
    "a port": ({"metrics": {"service": {"port": 0}}}, "port"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_cannot_work_are_refused(chart: Chart, case: str) -> None:
    values, says = REFUSED[case]
    assert says in chart.refusal(values)


def test_notes_say_what_to_do(chart: Chart) -> None:
    first = chart.files()["NOTES.txt"]
    assert "all namespaces" in first
    assert "rayclusters.ray.io" in first
    assert "crds/" not in first
    upgrade = chart.files(upgrade=True)["NOTES.txt"]
    assert "kubectl apply --server-side" in upgrade
    assert "flexpert crds apply" in upgrade
    digests = {"operator": {"image": {"digest": DIGEST}}, "pool": {"image": {"digest": DIGEST}}}
    assert "by digest" not in chart.files(digests)["NOTES.txt"]


def test_the_chart_has_the_operators_version() -> None:
    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == project["version"]


def test_every_crd_of_the_folder_is_a_crd() -> None:
    for file in Path(CHART, "crds").glob("*.yaml"):
        assert yaml.safe_load(file.read_text())["kind"] == "CustomResourceDefinition"
