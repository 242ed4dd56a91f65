"""The RayCluster of a MoEDeployment: a head without processors, a group of engines, a group of expert workers.

Sizes are the operator's own business (`decide.sizing`), so Ray's in-tree autoscaler is off and the bounds of the
groups are so wide that they never act.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.fields import written
from flexpert_operator.api.spec import Model, MoEDeployment, Resources
from flexpert_operator.decide.sizing import GroupSize
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_operator.manifests import containers, pods, security
from flexpert_operator.manifests.gcs import gcs_options
from flexpert_operator.manifests.metadata import child_metadata
from flexpert_operator.settings import RAY_VERSION, GcsStore
from flexpert_proto import names as pool_names

MAX_PODS = 4096
GRACE_S = 60
EXPERTS_GRACE_S = 120
DRAIN_S = 30
"""That Ray's node takes to drain itself, once it got SIGTERM."""

RETIRE_S = 75
"""That the preStop hook of expert pods waits at most; what is left of the grace is Ray's."""

HEAD_MEMORY_BYTES = 4 * 2**30
PROCESS_MEMORY_BYTES = 2 * 2**30
"""What a Ray node's own processes and a Python process with torch take beside the weights."""

RAY_CLUSTER_VARIABLE = "FLEXPERT_RAY_CLUSTER"

RAY_ENVIRONMENT: Mapping[str, str] = {
    "RAY_AUTH_MODE": "token",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S),
    "RAY_USAGE_STATS_ENABLED": "0",
}


def ray_cluster(
    deployment: MoEDeployment,
    image: str,
    engines: GroupSize,
    experts: GroupSize,
    sizing: Sizing,
    served_model: Model | None,
    gcs: GcsStore | None = None,
    cluster: str = "",
) -> dict[str, Any]:
    """The RayCluster with both groups at the sizes given; what has to be remembered stands in its annotations.

    `gcs`: where the head keeps its tables; None: in memory. `cluster`: its name, where it is not the first one's.
    """
    name = cluster or names.ray_cluster(deployment.name)
    metadata = child_metadata(deployment, name, names.HEAD_ROLE)
    metadata["annotations"] = {
        names.SIZING_ANNOTATION: sizing.encode(),
        names.HEAD_ANNOTATION: head_revision(deployment, image, gcs),
    }
    if served_model is not None:
        metadata["annotations"][names.MODEL_ANNOTATION] = json.dumps(annotated(served_model), sort_keys=True)
    return {
        "apiVersion": f"{names.RAY_GROUP}/{names.RAY_VERSION}",
        "kind": names.RAY_KIND,
        "metadata": metadata,
        "spec": {
            "rayVersion": RAY_VERSION,
            "enableInTreeAutoscaling": False,
            "authOptions": {"mode": "token"},
            "upgradeStrategy": {"type": "None"},
            **gcs_options(gcs),
            "headGroupSpec": head_group(deployment, image, name),
            "workerGroupSpecs": [
                stamped(engines_group(deployment, image, engines)),
                stamped(experts_group(deployment, image, experts)),
            ],
        },
    }


def template_revisions(deployment: MoEDeployment, image: str) -> dict[str, str]:
    """Revision of the template of each worker group, by its name: the same as long as its pods would be the same."""
    groups = (engines_group(deployment, image, GroupSize(0)), experts_group(deployment, image, GroupSize(0)))
    return {group["groupName"]: revision_of(group) for group in groups}


def revision_of(group: Mapping[str, Any]) -> str:
    """Digest of all that a pod of the group is made from."""
    made_from = json.dumps([group["template"], group["rayStartParams"]], sort_keys=True)
    return hashlib.sha256(made_from.encode()).hexdigest()[:10]


def stamped(group: dict[str, Any]) -> dict[str, Any]:
    """The group with the revision as a label of its pods."""
    labels = group["template"]["metadata"]["labels"]
    revision = revision_of(group)
    group["template"]["metadata"]["labels"] = {**labels, names.REVISION_LABEL: revision}
    return group


def annotated(model: Model) -> dict[str, Any]:
    """What is remembered of a model that is served: which it is, of a remote one also how pods get at it and what its
    revision was resolved to. `observe` reads it.
    """
    known = {"source": model.source, "revision": model.revision, "dtype": model.dtype}
    return known | ({"resolved": model.resolved, "access": written(model.access)} if model.remote else {})


def head_revision(deployment: MoEDeployment, image: str, gcs: GcsStore | None) -> str:
    """Digest of all that makes a head what it is: another one takes another RayCluster."""
    made_from = [RAY_VERSION, gcs_options(gcs), revision_of(head_group(deployment, image, ""))]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:10]


def has_other_head(live: Mapping[str, Any] | None, revision: str) -> bool:
    """Whether a RayCluster was made with another head. That is never changed in place: another RayCluster follows it,
    and until that serves the templates of this one stay as they are.
    """
    was = (live["metadata"].get("annotations") or {}).get(names.HEAD_ANNOTATION) if live is not None else None
    return was not in (None, revision)


def as_it_is(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """A RayCluster with the sizes of `wanted`, and head and templates as they are in `live`."""
    spec, groups = live["spec"], {group["groupName"]: group for group in live["spec"].get("workerGroupSpecs", ())}
    kept = {key: spec[key] for key in ("rayVersion", "gcsFaultToleranceOptions", "headGroupSpec") if key in spec}
    plain = {key: value for key, value in wanted["spec"].items() if key != "gcsFaultToleranceOptions"}
    annotations = dict(wanted["metadata"]["annotations"])
    was = (live["metadata"].get("annotations") or {}).get(names.HEAD_ANNOTATION)
    annotations[names.HEAD_ANNOTATION] = was or annotations[names.HEAD_ANNOTATION]
    return {
        **wanted,
        "metadata": {**wanted["metadata"], "annotations": annotations},
        "spec": {
            **plain,
            **kept,
            "workerGroupSpecs": [
                {
                    **group,
                    **{
                        key: groups[group["groupName"]][key]
                        for key in ("template", "rayStartParams")
                        if group["groupName"] in groups
                    },
                }
                for group in wanted["spec"]["workerGroupSpecs"]
            ],
        },
    }


def head_group(deployment: MoEDeployment, image: str, cluster: str) -> dict[str, Any]:
    """The head: it takes no work but the pool controller, which the launcher beside it starts."""
    return {
        "rayStartParams": {
            "num-cpus": "0",
            "num-gpus": "0",
            "resources": ray_resources({pool_names.HEAD_RESOURCE: 1}),
            "include-dashboard": "false",
        },
        "template": pod_template(
            deployment,
            names.HEAD_ROLE,
            [head_container(deployment, image), launcher_container(deployment, image, cluster)],
        ),
    }


def head_container(deployment: MoEDeployment, image: str) -> dict[str, Any]:
    """The Ray head itself, whose command KubeRay makes of `rayStartParams`."""
    head = ray_container(deployment, image, "ray-head", containers.resources(Resources(), 1, HEAD_MEMORY_BYTES))
    head["ports"] = [{"name": "gcs-server", "containerPort": 6379, "protocol": "TCP"}]
    head["readinessProbe"] = {"tcpSocket": {"port": "gcs-server"}, "periodSeconds": 5, "failureThreshold": 6}
    return head


def launcher_container(deployment: MoEDeployment, image: str, cluster: str) -> dict[str, Any]:
    """Creates the pool controller where there is none; ready when the controller answers."""
    port = pool_names.POOL_CONTROL_PORT_NAME
    ports = {
        port: pool_names.POOL_CONTROL_PORT,
        pool_names.UI_PORT_NAME: pool_names.UI_PORT,
        pool_names.METRICS_PORT_NAME: pool_names.METRICS_PORT,
    }
    token = {
        "name": "RAY_AUTH_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": cluster, "key": names.RAY_TOKEN_KEY, "optional": True}},
    }
    launcher = ray_container(
        deployment, image, "pool-launcher", containers.resources(Resources(), 1, PROCESS_MEMORY_BYTES)
    )
    launcher["command"] = ["python", "-m", "flexpert_workers.serving.head"]
    launcher["env"] += [
        token,
        *containers.variables({pool_names.port_variable(name): str(number) for name, number in ports.items()}),
        *control_variables(deployment),
    ]
    launcher["ports"] = [{"name": name, "containerPort": number, "protocol": "TCP"} for name, number in ports.items()]
    launcher["readinessProbe"] = {"tcpSocket": {"port": port}, "periodSeconds": 2, "failureThreshold": 3}
    return launcher


def engines_group(deployment: MoEDeployment, image: str, size: GroupSize) -> dict[str, Any]:
    """One engine a pod."""
    spec = deployment.engines
    memory = spec.kv_cache_bytes + 2 * PROCESS_MEMORY_BYTES
    return worker_group(
        deployment,
        image,
        names.ENGINES_ROLE,
        size,
        {pool_names.ENGINE_RESOURCE: 1},
        containers.resources(spec.resources, 1, memory),
    )


def experts_group(deployment: MoEDeployment, image: str, size: GroupSize) -> dict[str, Any]:
    """`workersPerPod` expert workers a pod, and their page owners. Experts are in its GPUs' memory, if it has any."""
    spec = deployment.experts
    workers = spec.workers_per_pod
    on_host = 0 if has_gpus(spec.resources) else spec.memory_per_worker_bytes
    memory = workers * (on_host + PROCESS_MEMORY_BYTES) + PROCESS_MEMORY_BYTES
    group = worker_group(
        deployment,
        image,
        names.EXPERTS_ROLE,
        size,
        {pool_names.WORKER_RESOURCE: workers},
        containers.resources(spec.resources, workers, memory),
    )
    group["template"]["spec"]["terminationGracePeriodSeconds"] = EXPERTS_GRACE_S
    retire_first(deployment, group["template"]["spec"]["containers"][0])
    return group


def retire_first(deployment: MoEDeployment, container: dict[str, Any]) -> None:
    """Have an expert pod's workers emptied before it ends, whoever deletes it."""
    command = ["python", "-m", "flexpert_workers.serving.retire", "--deadline-seconds", str(RETIRE_S)]
    container["env"] += control_variables(deployment)
    container["lifecycle"] = {"preStop": {"exec": {"command": command}}}


def control_variables(deployment: MoEDeployment) -> list[dict[str, Any]]:
    """Where the pool controller of the pod's own RayCluster is, said alike for every RayCluster."""
    address = security.control_address(deployment, f"$({RAY_CLUSTER_VARIABLE})")
    return [
        containers.from_field(RAY_CLUSTER_VARIABLE, f"metadata.labels['{names.RAY_CLUSTER_LABEL}']"),
        *containers.variables({pool_names.ENV_POOL_CONTROL: address}),
    ]


def has_gpus(resources: Resources) -> bool:
    """Whether a container with these resources has GPUs."""
    return containers.gpus_of(containers.resources(resources, 1, 0)) > 0


def worker_group(
    deployment: MoEDeployment,
    image: str,
    role: str,
    size: GroupSize,
    ray: Mapping[str, int],
    container_resources: dict[str, Any],
) -> dict[str, Any]:
    """A group whose Ray nodes offer the custom resources `ray`."""
    gpus = containers.gpus_of(container_resources)
    worker = ray_container(deployment, image, "ray-worker", container_resources)
    worker["env"] += containers.gpu_environment(gpus)
    worker["readinessProbe"] = {
        "exec": {"command": ["sh", "-c", "test -S /tmp/ray/session_latest/sockets/raylet"]},
        "periodSeconds": 2,
        "failureThreshold": 15,
    }
    return {
        "groupName": role,
        "replicas": size.replicas,
        "minReplicas": 0,
        "maxReplicas": MAX_PODS,
        "numOfHosts": 1,
        "scaleStrategy": {"workersToDelete": list(size.workers_to_delete)},
        "rayStartParams": {
            "num-cpus": str(containers.cores_of(container_resources)),
            "num-gpus": str(gpus),
            "resources": ray_resources(ray),
        },
        "template": pod_template(deployment, role, [worker], containers.gpu_tolerations(gpus)),
    }


def ray_container(
    deployment: MoEDeployment, image: str, name: str, container_resources: dict[str, Any]
) -> dict[str, Any]:
    """What every container of the RayCluster has in common."""
    return {
        "name": name,
        "image": image,
        "env": [
            *containers.pool_environment(deployment, containers.cores_of(container_resources)),
            *containers.variables(RAY_ENVIRONMENT),
            *security.environment(deployment, names.HEAD_ROLE),
        ],
        "resources": container_resources,
        "securityContext": dict(containers.SECURITY_CONTEXT),
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            *containers.model_mounts(deployment),
            *security.mounts(deployment, names.HEAD_ROLE),
        ],
        **containers.model_credentials(deployment.model),
    }


def pod_template(
    deployment: MoEDeployment,
    role: str,
    pod_containers: list[dict[str, Any]],
    tolerations: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A pod template with our labels, by which Services select and pods are listed."""
    tolerated = {"tolerations": tolerations} if tolerations else {}
    template = {
        "metadata": {"labels": names.labels(deployment.name, role)},
        "spec": {
            **tolerated,
            **containers.POD_SECURITY,
            "terminationGracePeriodSeconds": GRACE_S,
            "containers": pod_containers,
            "volumes": [
                {"name": "shm", "emptyDir": {"medium": "Memory"}},
                *containers.model_volumes(deployment),
                *security.volumes(deployment, role),
            ],
        },
    }
    return pods.with_settings(deployment, role, template)


def ray_resources(amounts: Mapping[str, int]) -> str:
    """Custom resources as `rayStartParams` takes them: JSON in double quotes, since KubeRay hands it to a shell."""
    return json.dumps(json.dumps(dict(amounts), separators=(",", ":")))
