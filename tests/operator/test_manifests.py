import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from flexpert_operator import manifests
from flexpert_operator.api import Model, MoEDeployment, Resources
from flexpert_operator.api.quantities import to_bytes
from flexpert_operator.api.security import (
    BearerTokens,
    Certificate,
    ClientCertificates,
    PoolCredentials,
    Security,
)
from flexpert_operator.decide.sizing import GroupSize
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_operator.settings import GcsStore
from flexpert_proto import names

Object = dict[str, Any]


@pytest.fixture
def cluster(deployment: MoEDeployment) -> Callable[..., Object]:
    def make(**changes: Any) -> Object:
        asked = replace(deployment, **changes)
        sizing = Sizing(settled=2, victims=("p",))
        return manifests.ray_cluster(
            asked, "image:1", GroupSize(1), GroupSize(3, ("p", "q")), sizing, Model("file:///models/tiny")
        )

    return make


def strict(schema: Any) -> Any:
    """The schema, refusing fields that it does not know, as `fieldValidation=Strict` does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items() if key != "x-kubernetes-int-or-string"}
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    elif "properties" in schema and isinstance(schema["properties"], dict) and "type" in schema:
        result.setdefault("additionalProperties", False)
    return result


@pytest.mark.parametrize("source", ["file:///models/tiny", "pvc://models/tiny"])
@pytest.mark.parametrize("limits", [{}, {"nvidia.com/gpu": 1}])
def test_the_ray_cluster_is_valid(
    cluster: Callable[..., Object], deployment: MoEDeployment, kuberay_schema: Object, source: str, limits: Object
) -> None:
    experts = replace(deployment.experts, resources=Resources(limits=limits))
    body = cluster(model=Model(source), experts=experts)
    jsonschema.Draft4Validator(strict(kuberay_schema["properties"]["spec"])).validate(body["spec"])


def test_the_check_above_can_fail(cluster: Callable[..., Object], kuberay_schema: Object) -> None:
    body = cluster()
    body["spec"]["workerGroupSpecs"][0]["template"]["spec"]["conatiners"] = []
    validator = jsonschema.Draft4Validator(strict(kuberay_schema["properties"]["spec"]))
    assert any("conatiners" in error.message for error in validator.iter_errors(body["spec"]))


def test_the_ray_cluster_says_what_the_design_asks_for(cluster: Callable[..., Object]) -> None:
    body = cluster()
    spec = body["spec"]
    assert spec["enableInTreeAutoscaling"] is False
    assert spec["authOptions"] == {"mode": "token"}
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert json.loads(json.loads(head["rayStartParams"]["resources"])) == {"head": 1}
    assert [one["name"] for one in head["template"]["spec"]["containers"]] == ["ray-head", "pool-launcher"]
    engines, experts = spec["workerGroupSpecs"]
    assert (engines["groupName"], engines["replicas"]) == ("engines", 1)
    assert (experts["groupName"], experts["replicas"]) == ("experts", 3)
    assert experts["scaleStrategy"] == {"workersToDelete": ["p", "q"]}
    assert json.loads(json.loads(experts["rayStartParams"]["resources"])) == {names.WORKER_RESOURCE: 1}
    for group in (engines, experts):
        assert group["minReplicas"] == 0
        assert group["maxReplicas"] >= 4096
        assert "readinessProbe" in group["template"]["spec"]["containers"][0]
    assert json.loads(body["metadata"]["annotations"]["flexpert.io/sizing"])["victims"] == ["p"]


def ray_containers(body: Object) -> Iterator[Object]:
    yield from body["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    for group in body["spec"]["workerGroupSpecs"]:
        yield from group["template"]["spec"]["containers"]


def environment(container: Object) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_every_ray_container_has_its_environment(cluster: Callable[..., Object]) -> None:
    for container in ray_containers(cluster()):
        found = environment(container)
        assert json.loads(found[names.ENV_POOL]) == {"uid": "uid-1", "name": "tiny", "namespace": "default"}
        assert found[names.ENV_POD] == {"fieldRef": {"fieldPath": "metadata.name"}}
        assert found[names.ENV_NODE] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
        assert int(found[names.ENV_THREADS]) >= 1
        assert found[names.ENV_BIND_HOST] == "0.0.0.0"
        assert found["RAY_AUTH_MODE"] == "token"
        assert found["RAY_gcs_rpc_server_reconnect_timeout_s"] == "600"


def test_a_pod_has_time_to_retire_and_to_drain_within_its_grace(cluster: Callable[..., Object]) -> None:
    spec = cluster()["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        for container in pod["containers"]:
            drain_s = int(environment(container)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["0"])
            assert float(hook[-1]) + drain_s < pod["terminationGracePeriodSeconds"]


def test_expert_pods_retire_before_they_end(cluster: Callable[..., Object]) -> None:
    engines, experts = cluster()["spec"]["workerGroupSpecs"]
    (container,) = experts["template"]["spec"]["containers"]
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:3] == ["python", "-m", "flexpert_workers.serving.retire"]
    assert environment(container)[names.ENV_POOL_CONTROL] == "$(FLEXPERT_RAY_CLUSTER)-head-control.default.svc:7000"
    assert environment(container)["FLEXPERT_RAY_CLUSTER"] == {
        "fieldRef": {"fieldPath": "metadata.labels['ray.io/cluster']"}
    }
    assert "lifecycle" not in engines["template"]["spec"]["containers"][0]


REDIS = GcsStore("redis", "redis.infra:6379", "redis-login", "pass")
VOLUME = GcsStore("rocksdb", volume_size="2Gi", volume_class="fast")


@pytest.mark.parametrize(
    ("store", "options"),
    [
        (None, None),
        (
            REDIS,
            {
                "redisAddress": "redis.infra:6379",
                "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "redis-login", "key": "pass"}}},
            },
        ),
        (GcsStore("redis", "redis:6379"), {"redisAddress": "redis:6379"}),
        (
            VOLUME,
            {
                "backend": "rocksdb",
                "storage": {"size": "2Gi", "storageClassName": "fast", "deletionPolicy": "DeleteWithCluster"},
            },
        ),
    ],
)
def test_where_the_heads_tables_are(
    deployment: MoEDeployment, kuberay_schema: Object, store: GcsStore | None, options: Object | None
) -> None:
    group = GroupSize(1)
    spec = manifests.ray_cluster(deployment, "image:1", group, group, Sizing(), None, store)["spec"]
    assert spec.get("gcsFaultToleranceOptions") == options
    jsonschema.Draft4Validator(strict(kuberay_schema["properties"]["spec"])).validate(spec)


def test_threads_follow_the_limit(cluster: Callable[..., Object], deployment: MoEDeployment) -> None:
    experts = replace(deployment.experts, resources=Resources(limits={"cpu": "3500m"}))
    group = cluster(experts=experts)["spec"]["workerGroupSpecs"][1]
    container = group["template"]["spec"]["containers"][0]
    assert environment(container)[names.ENV_THREADS] == "3"
    assert group["rayStartParams"]["num-cpus"] == "3"
    assert container["resources"]["requests"]["cpu"] == "3500m"


def test_workers_of_a_pod_share_its_memory(cluster: Callable[..., Object], deployment: MoEDeployment) -> None:
    experts = replace(deployment.experts, workers=4, workers_per_pod=2)
    group = cluster(experts=experts)["spec"]["workerGroupSpecs"][1]
    assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {names.WORKER_RESOURCE: 2}
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert to_bytes(limits["memory"]) > 2 * experts.memory_per_worker_bytes
    assert limits["cpu"] == "2"


@pytest.mark.parametrize("asked", ["limits", "requests"])
def test_a_pool_on_gpus_asks_for_what_it_needs(
    cluster: Callable[..., Object], deployment: MoEDeployment, asked: str
) -> None:
    resources = Resources(**{asked: {"nvidia.com/gpu": 2}})
    experts = replace(
        deployment.experts, workers=4, workers_per_pod=2, resources=resources, memory_per_worker_bytes=2**33
    )
    engines, group = cluster(experts=experts)["spec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert group["rayStartParams"]["num-gpus"] == "2"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert container["resources"]["requests"]["nvidia.com/gpu"] == "2"
    assert environment(container)["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "0"
    assert group["template"]["spec"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    on_gpus = to_bytes(container["resources"]["limits"]["memory"])
    _, on_host = cluster(experts=replace(experts, resources=Resources()))["spec"]["workerGroupSpecs"]
    host_memory = to_bytes(on_host["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"])
    assert host_memory - on_gpus == 2 * experts.memory_per_worker_bytes, "experts are in the memory of the GPUs"
    for other in (engines, on_host):
        assert other["rayStartParams"]["num-gpus"] == "0"
        assert "tolerations" not in other["template"]["spec"]


def test_a_claim_is_mounted_where_the_pool_looks_for_it(
    cluster: Callable[..., Object], deployment: MoEDeployment
) -> None:
    model = Model("pvc://models/tiny")
    body = cluster(model=model)
    ingress = manifests.ingress_deployment(replace(deployment, model=model), "image:1", 2)
    pods = [
        body["spec"]["headGroupSpec"]["template"]["spec"],
        *(group["template"]["spec"] for group in body["spec"]["workerGroupSpecs"]),
        ingress["spec"]["template"]["spec"],
    ]
    for pod in pods:
        claims = [one["persistentVolumeClaim"] for one in pod["volumes"] if "persistentVolumeClaim" in one]
        assert claims == [{"claimName": "models", "readOnly": True}]
        for container in pod["containers"]:
            mounts = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == "model"]
            assert str(names.model_path(model.source)).startswith(mounts[0] + "/")


def test_services_select_the_pods_they_are_for(cluster: Callable[..., Object], deployment: MoEDeployment) -> None:
    control = manifests.pool_control_service(deployment, "tiny")
    assert control["metadata"]["name"] == "tiny-pool-control"
    assert control["spec"]["ports"][0]["port"] == names.POOL_CONTROL_PORT
    head = cluster()["spec"]["headGroupSpec"]["template"]
    labels = head["metadata"]["labels"] | {"ray.io/cluster": "tiny"}
    assert control["spec"]["selector"].items() <= labels.items()
    own = manifests.cluster_control_service(deployment, "tiny")
    assert own["metadata"]["name"] == "tiny-head-control"
    assert own["spec"] == control["spec"]
    ports = [port["name"] for container in head["spec"]["containers"] for port in container.get("ports", ())]
    assert {port["targetPort"] for port in control["spec"]["ports"]} <= set(ports)
    ingress = manifests.ingress_deployment(deployment, "image:1", 2)
    service = manifests.ingress_service(deployment)
    template = ingress["spec"]["template"]
    assert service["spec"]["selector"] == ingress["spec"]["selector"]["matchLabels"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    named = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    assert named == {"grpc": 9000, "http": 8000}
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["grpc", "http"]


def test_the_ingress(deployment: MoEDeployment) -> None:
    body = manifests.ingress_deployment(deployment, "image:1", 2)
    (container,) = body["spec"]["template"]["spec"]["containers"]
    found = environment(container)
    assert found[names.ENV_POOL_CONTROL] == "tiny-pool-control.default.svc:7000"
    assert found[names.port_variable("grpc")] == "9000"
    assert found[names.port_variable("http")] == "8000"
    assert container["readinessProbe"]
    assert container["livenessProbe"]


def test_everything_belongs_to_the_deployment(cluster: Callable[..., Object], deployment: MoEDeployment) -> None:
    for body in (
        cluster(),
        manifests.pool_control_service(deployment, "tiny"),
        manifests.ingress_service(deployment),
        manifests.ingress_deployment(deployment, "image:1", 2),
    ):
        (owner,) = body["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("MoEDeployment", "uid-1", True)
        assert body["metadata"]["namespace"] == "default"


ALL_SECURITY = Security(
    tls=Certificate("front"),
    client_certificates=ClientCertificates("clients"),
    tokens=BearerTokens("bearers"),
    pool=PoolCredentials("members"),
)
IDENTITY = "tiny-pool-control.default.svc"


def environment_of(container: Object) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container["env"]}


def secrets_of(pod: Object) -> dict[str, list[str]]:
    """Files of Secrets that all containers of a pod have, and the Secret of each folder."""
    volumes = {one["name"]: one["secret"] for one in pod["volumes"] if "secret" in one}
    found = {}
    for container in pod["containers"]:
        for mount in container["volumeMounts"]:
            if secret := volumes.get(mount["name"]):
                assert mount["readOnly"]
                assert secret["defaultMode"] == 0o440
                keys = [item["path"] for item in secret["items"]]
                found[mount["mountPath"]] = [secret["secretName"], *keys]
    return found


def test_members_of_a_pool_are_given_its_credentials_alone(
    cluster: Callable[..., Object], kuberay_schema: Object
) -> None:
    body = cluster(security=ALL_SECURITY)
    jsonschema.Draft4Validator(strict(kuberay_schema["properties"]["spec"])).validate(body["spec"])
    groups = [body["spec"]["headGroupSpec"], *body["spec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        for container in pod["containers"]:
            environment = environment_of(container)
            folder = environment[names.ENV_POOL_CREDENTIALS]
            assert secrets_of({**pod, "containers": [container]}) == {
                folder: ["members", "tls.crt", "tls.key", "ca.crt", "pool.key"]
            }
            assert names.ENV_TOKENS_FILE not in environment
            if names.ENV_POOL_CONTROL in environment:
                address, identity = names.parts_of(environment[names.ENV_POOL_CONTROL])
                assert identity == IDENTITY
                assert address == "$(FLEXPERT_RAY_CLUSTER)-head-control.default.svc:7000"


def test_an_ingress_is_given_everything_and_probed_over_tls(deployment: MoEDeployment) -> None:
    asked = replace(deployment, security=ALL_SECURITY)
    pod = manifests.ingress_deployment(asked, "image:1", 2)["spec"]["template"]["spec"]
    [container] = pod["containers"]
    environment = environment_of(container)
    secrets = secrets_of(pod)
    assert secrets[environment[names.ENV_POOL_CREDENTIALS]][0] == "members"
    assert secrets[environment[names.ENV_SERVING_CERTIFICATE]] == ["front", "tls.crt", "tls.key"]
    assert secrets[environment[names.ENV_CLIENT_AUTHORITIES]] == ["clients", "ca.crt"]
    folder, _, file = environment[names.ENV_TOKENS_FILE].rpartition("/")
    assert secrets[folder] == ["bearers", file]
    assert names.parts_of(environment[names.ENV_POOL_CONTROL]) == (f"{IDENTITY}:7000", IDENTITY)
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"


def test_without_a_word_of_security_nothing_is_mounted(
    cluster: Callable[..., Object], deployment: MoEDeployment
) -> None:
    said = json.dumps([cluster(), manifests.ingress_deployment(deployment, "image:1", 2)])
    assert '"secret":' not in said
    assert "grpcs://" not in said
    assert "scheme" not in said
