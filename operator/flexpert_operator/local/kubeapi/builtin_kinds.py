"""The built-in resource types that the embedded API serves.

`server` starts its registry with them. Most are plain storage with the real schema; nothing here runs a controller.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

from flexpert_operator.local.kubeapi import builtin_columns as columns
from flexpert_operator.local.kubeapi import builtin_defaults as defaults
from flexpert_operator.local.kubeapi import event_conversion
from flexpert_operator.local.kubeapi.builtin_models import structural
from flexpert_operator.local.kubeapi.objects import JsonObject
from flexpert_operator.local.kubeapi.resources import Column, ResourceType, ScalePaths
from flexpert_operator.local.kubeapi.store import Storage

CRDS = Storage("apiextensions.k8s.io", "customresourcedefinitions")
NAMESPACES = Storage("", "namespaces")
PODS = Storage("", "pods")
EVENTS = Storage("", "events")
BUDGETS = Storage("policy", "poddisruptionbudgets")

# A delete answers with the object itself, not with a Status.
RETURN_DELETED = frozenset(
    Storage("", plural)
    for plural in ("pods", "services", "serviceaccounts", "persistentvolumeclaims", "resourcequotas")
)

_EVENT_FIELDS = frozenset(
    ["reason", "type", "source", "reportingComponent"]
    + [f"involvedObject.{name}" for name in ("kind", "namespace", "name", "uid", "apiVersion", "fieldPath")]
    + [f"regarding.{name}" for name in ("kind", "namespace", "name", "uid", "apiVersion", "fieldPath")]
)
_POD_FIELDS = frozenset(
    [
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ]
)
_WORKLOAD_SCALE = ScalePaths(("spec", "replicas"), ("status", "replicas"))
_RBAC = "rbac.authorization.k8s.io"


def _nothing(_: JsonObject) -> None:
    """A kind without defaults of its own."""


def _kind(
    group: str,
    plural: str,
    kind: str,
    *,
    version: str = "v1",
    model: str | None = None,
    namespaced: bool = True,
    short: str = "",
    subresources: str = "",
    shown: tuple[Column, ...] = (columns.AGE,),
    fill: Callable[[JsonObject], None] = _nothing,
    fields: frozenset[str] = frozenset(),
    generation: bool = False,
    name_rule: str = "subdomain",
    categories: str = "",
) -> ResourceType:
    model = model or f"V1{kind}"
    subs = frozenset(subresources.split())
    return ResourceType(
        group=group,
        version=version,
        plural=plural,
        kind=kind,
        namespaced=namespaced,
        singular=kind.lower(),
        list_kind=f"{kind}List",
        short_names=tuple(short.split()),
        categories=tuple(categories.split()),
        subresources=subs,
        load_schema=functools.partial(structural, model),
        definition=model,
        columns=shown,
        scale=_WORKLOAD_SCALE if "scale" in subs else None,
        has_generation=generation,
        fields=fields,
        name_rule=name_rule,
        defaults=fill,
    )


def _core() -> list[ResourceType]:
    return [
        _kind(
            "",
            "namespaces",
            "Namespace",
            namespaced=False,
            short="ns",
            subresources="status finalize",
            shown=columns.NAMESPACE,
            fill=defaults.namespace,
            fields=frozenset(["status.phase"]),
            name_rule="label",
        ),
        _kind("", "events", "Event", model="CoreV1Event", short="ev", shown=columns.EVENT, fields=_EVENT_FIELDS),
        _kind(
            "",
            "pods",
            "Pod",
            short="po",
            subresources="status eviction binding",
            shown=columns.POD,
            fill=defaults.pod,
            fields=_POD_FIELDS,
            categories="all",
        ),
        _kind(
            "",
            "services",
            "Service",
            short="svc",
            subresources="status",
            shown=columns.SERVICE,
            fill=defaults.service,
            name_rule="label1035",
            categories="all",
        ),
        _kind("", "configmaps", "ConfigMap", short="cm", shown=columns.CONFIG_MAP),
        _kind("", "secrets", "Secret", shown=columns.SECRET, fill=defaults.secret, fields=frozenset(["type"])),
        _kind("", "serviceaccounts", "ServiceAccount", short="sa", shown=columns.SERVICE_ACCOUNT),
        _kind("", "endpoints", "Endpoints", short="ep", shown=columns.ENDPOINTS),
        _kind(
            "",
            "persistentvolumeclaims",
            "PersistentVolumeClaim",
            short="pvc",
            subresources="status",
            shown=columns.CLAIM,
            fill=defaults.claim,
        ),
        _kind("", "persistentvolumes", "PersistentVolume", namespaced=False, short="pv", subresources="status"),
        _kind(
            "",
            "nodes",
            "Node",
            namespaced=False,
            short="no",
            subresources="status",
            shown=columns.NODE,
            fields=frozenset(["spec.unschedulable"]),
        ),
        _kind("", "resourcequotas", "ResourceQuota", short="quota", subresources="status"),
        _kind("", "limitranges", "LimitRange", short="limits"),
    ]


def _workloads() -> list[ResourceType]:
    return [
        _kind(
            "apps",
            "deployments",
            "Deployment",
            short="deploy",
            subresources="status scale",
            shown=columns.DEPLOYMENT,
            fill=defaults.deployment,
            generation=True,
            categories="all",
        ),
        _kind(
            "apps",
            "replicasets",
            "ReplicaSet",
            short="rs",
            subresources="status scale",
            shown=columns.REPLICA_SET,
            fill=defaults.workload,
            generation=True,
            categories="all",
        ),
        _kind(
            "apps",
            "statefulsets",
            "StatefulSet",
            short="sts",
            subresources="status scale",
            shown=columns.REPLICA_SET,
            fill=defaults.workload,
            generation=True,
            categories="all",
        ),
        _kind(
            "apps",
            "daemonsets",
            "DaemonSet",
            short="ds",
            subresources="status",
            fill=defaults.workload,
            generation=True,
        ),
        _kind("batch", "jobs", "Job", subresources="status", fill=defaults.workload, generation=True, categories="all"),
        _kind(
            "autoscaling",
            "horizontalpodautoscalers",
            "HorizontalPodAutoscaler",
            version="v2",
            model="V2HorizontalPodAutoscaler",
            short="hpa",
            subresources="status",
            shown=columns.AUTOSCALER,
            categories="all",
        ),
        _kind(
            "policy",
            "poddisruptionbudgets",
            "PodDisruptionBudget",
            short="pdb",
            subresources="status",
            shown=columns.BUDGET,
            generation=True,
        ),
    ]


def _others() -> list[ResourceType]:
    return [
        _events_group(),
        _kind("coordination.k8s.io", "leases", "Lease", shown=columns.LEASE),
        _kind("discovery.k8s.io", "endpointslices", "EndpointSlice", shown=columns.ENDPOINT_SLICE),
        _kind("networking.k8s.io", "networkpolicies", "NetworkPolicy", short="netpol", generation=True),
        _kind("networking.k8s.io", "ingresses", "Ingress", short="ing", subresources="status", generation=True),
        _kind("storage.k8s.io", "storageclasses", "StorageClass", namespaced=False, short="sc"),
        _kind("scheduling.k8s.io", "priorityclasses", "PriorityClass", namespaced=False, short="pc"),
        _kind(_RBAC, "roles", "Role", shown=columns.CREATED, name_rule="path"),
        _kind(_RBAC, "rolebindings", "RoleBinding", name_rule="path"),
        _kind(_RBAC, "clusterroles", "ClusterRole", namespaced=False, shown=columns.CREATED, name_rule="path"),
        _kind(_RBAC, "clusterrolebindings", "ClusterRoleBinding", namespaced=False, name_rule="path"),
        _kind(
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            "CustomResourceDefinition",
            namespaced=False,
            short="crd crds",
            subresources="status",
            shown=columns.DEFINITION,
            generation=True,
            categories="api-extensions",
        ),
    ]


def _events_group() -> ResourceType:
    shown = _kind("events.k8s.io", "events", "Event", model="EventsV1Event", short="ev", fields=_EVENT_FIELDS)
    return replace(shown, storage=EVENTS, to_storage=event_conversion.to_core, from_storage=event_conversion.from_core)


def builtin_types() -> list[ResourceType]:
    """Every built-in type, as a new server serves it."""
    return [*_core(), *_workloads(), *_others()]
