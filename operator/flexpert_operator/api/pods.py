"""What a platform team says about pods: where they run, with what image, environment and volumes; how they are spread.

`spec` has these fields in the head, the engines, the experts and the ingress; `manifests.pods` puts them into pod
templates as they are. Lists and texts are bounded, so that the API server can tell what the rules about them cost.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from flexpert_operator.api.fields import Field, Rule
from flexpert_proto import names as pool_names

LABEL_VALUE = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
KEYS = Rule(
    "self.all(key, key.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))",
    "a key is a name of at most 63 letters, digits, '-', '_' and '.', behind a DNS subdomain and '/' if need be",
)
OWN_LABELS = Rule(
    "self.all(key, !key.startsWith('flexpert.io/') && !key.startsWith('ray.io/') && !(key in "
    "['app.kubernetes.io/part-of', 'app.kubernetes.io/instance', 'app.kubernetes.io/managed-by']))",
    "labels of flexpert.io/ and ray.io/, and app.kubernetes.io/part-of, instance and managed-by, are the operator's",
)
OWN_VARIABLES = (
    pool_names.ENV_POOL,
    pool_names.ENV_POD,
    pool_names.ENV_NODE,
    pool_names.ENV_BIND_HOST,
    pool_names.ENV_SOCKET_DIR,
    pool_names.ENV_POOL_CONTROL,
    pool_names.ENV_POOL_CREDENTIALS,
    pool_names.ENV_SERVING_CERTIFICATE,
    pool_names.ENV_CLIENT_AUTHORITIES,
    pool_names.ENV_TOKENS_FILE,
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
)
"""Environment variables by which a pool's processes find and know each other; all others that are set give way."""

OWN_VOLUMES = ("shm", "model", "pool-credentials", "certificate", "client-authorities", "tokens")
OWN_PATHS = ("/dev/shm",)


class PullPolicy(StrEnum):
    """When an image is fetched."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


def one_of(names: tuple[str, ...]) -> str:
    """A list of texts in CEL."""
    return "[" + ", ".join(f"'{name}'" for name in names) + "]"


@dataclass(frozen=True)
class Resources:
    """A container's resources, by name, as Kubernetes writes quantities."""

    limits: Annotated[
        Mapping[str, str | int], Field("Most of each resource, by its name.", absent="what the container needs")
    ] = field(default_factory=dict)
    requests: Annotated[
        Mapping[str, str | int], Field("What is set aside of each resource, by its name.", absent="the limits")
    ] = field(default_factory=dict)


@dataclass(frozen=True)
class DisruptionBudget:
    """How many pods may be evicted at a time."""

    max_unavailable: Annotated[
        int,
        Field(
            "Pods that may be missing when others are evicted, as kubectl drain does. With 0 a pod goes only once "
            "another has taken its place.",
            minimum=0,
            maximum=4096,
        ),
    ] = 1


@dataclass(frozen=True)
class PodSettings:
    """Fields of the pods of one role, passed through as Kubernetes has them."""

    RULES: ClassVar = (
        Rule(
            "!has(self.volumeMounts) || self.volumeMounts.all(mount, has(self.volumes) && "
            "self.volumes.exists(volume, volume.name == mount.name))",
            "each of volumeMounts must name one of volumes",
            ".volumeMounts",
        ),
    )

    image: Annotated[
        str | None,
        Field("Image of the containers.", min_length=1, max_length=512, absent="the one the operator was started with"),
    ] = None
    image_pull_policy: Annotated[
        PullPolicy | None, Field("When the image is fetched.", absent="Always with the tag latest, else IfNotPresent")
    ] = None
    image_pull_secrets: Annotated[
        tuple[Mapping[str, Any], ...],
        Field(
            "Secrets of the namespace with which the image is fetched.",
            core="V1LocalObjectReference",
            keys=("name",),
            max_items=16,
            absent="those of the service account",
        ),
    ] = ()
    node_selector: Annotated[
        Mapping[str, str],
        Field(
            "Labels that a node must have.",
            max_items=32,
            max_length=63,
            pattern=LABEL_VALUE,
            rules=(KEYS,),
            absent="any",
        ),
    ] = field(default_factory=dict)
    tolerations: Annotated[
        tuple[Mapping[str, Any], ...],
        Field(
            "Taints that pods tolerate; where they ask for GPUs, nvidia.com/gpu is tolerated all the same.",
            core="V1Toleration",
            max_items=64,
            absent="none",
        ),
    ] = ()
    affinity: Annotated[
        Mapping[str, Any],
        Field(
            "Rules about nodes and other pods, as in a pod (kubectl explain pod.spec.affinity).",
            core="V1Affinity",
            absent="none",
        ),
    ] = field(default_factory=dict)
    topology_spread_constraints: Annotated[
        tuple[Mapping[str, Any], ...],
        Field(
            "How pods are spread, as in a pod (kubectl explain pod.spec.topologySpreadConstraints). A constraint "
            "without labelSelector is about the pods of this role.",
            core="V1TopologySpreadConstraint",
            keys=("topologyKey", "whenUnsatisfiable"),
            max_items=16,
            absent="over zones and nodes as evenly as there is room",
        ),
    ] = ()
    env: Annotated[
        tuple[Mapping[str, Any], ...],
        Field(
            "Environment variables of the containers; they win over the operator's own.",
            core="V1EnvVar",
            keys=("name",),
            max_items=128,
            absent="none",
        ),
    ] = ()
    env_from: Annotated[
        tuple[Mapping[str, Any], ...],
        Field(
            "ConfigMaps and Secrets whose entries become environment variables.",
            core="V1EnvFromSource",
            max_items=32,
            absent="none",
        ),
    ] = ()
    volumes: Annotated[
        tuple[Mapping[str, Any], ...],
        Field(
            "Further volumes, as in a pod (kubectl explain pod.spec.volumes).",
            core="V1Volume",
            keys=("name",),
            max_items=32,
            absent="none",
        ),
    ] = ()
    volume_mounts: Annotated[
        tuple[Mapping[str, Any], ...],
        Field(
            "Where the containers find these volumes.",
            core="V1VolumeMount",
            keys=("mountPath",),
            max_items=32,
            absent="none",
        ),
    ] = ()
    priority_class_name: Annotated[
        str | None,
        Field("PriorityClass of the pods.", max_length=253, pattern=SUBDOMAIN, absent="the cluster's default"),
    ] = None
    service_account_name: Annotated[
        str | None,
        Field("ServiceAccount of the pods.", max_length=253, pattern=SUBDOMAIN, absent="the namespace's default"),
    ] = None
    runtime_class_name: Annotated[
        str | None,
        Field("RuntimeClass of the pods.", max_length=253, pattern=SUBDOMAIN, absent="the node's default"),
    ] = None
    labels: Annotated[
        Mapping[str, str],
        Field(
            "Further labels of the pods.",
            max_items=32,
            max_length=63,
            pattern=LABEL_VALUE,
            rules=(KEYS, OWN_LABELS),
            absent="none",
        ),
    ] = field(default_factory=dict)
    annotations: Annotated[
        Mapping[str, str],
        Field("Annotations of the pods.", max_items=32, max_length=8192, rules=(KEYS,), absent="none"),
    ] = field(default_factory=dict)
