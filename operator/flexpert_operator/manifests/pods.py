"""Puts what `api.pods` says about a role's pods into their template; the head, the groups and the ingress use it."""

from collections.abc import Iterable, Mapping
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.pods import OWN_VARIABLES, PodSettings
from flexpert_operator.api.spec import MoEDeployment

SPREAD_OVER = ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
"""Labels of nodes over whose values pods are spread where nothing else is said."""

Object = dict[str, Any]


def with_settings(deployment: MoEDeployment, role: str, template: Object) -> Object:
    """A role's pod template with all that the spec says about its pods.

    The operator's own labels, tolerations, volumes and mounts stay; of environment variables the spec's win, apart from
    those by which a pool's processes find each other.
    """
    said = deployment.pod_settings(role)
    metadata, spec = template["metadata"], template["spec"]
    added = {
        "imagePullSecrets": list(said.image_pull_secrets),
        "nodeSelector": dict(said.node_selector),
        "tolerations": [*spec.get("tolerations", ()), *said.tolerations],
        "affinity": dict(said.affinity),
        "topologySpreadConstraints": spread(deployment.name, role, said),
        "volumes": [*spec.get("volumes", ()), *said.volumes],
        "priorityClassName": said.priority_class_name,
        "serviceAccountName": said.service_account_name,
        "runtimeClassName": said.runtime_class_name,
    }
    containers = [with_container_settings(one, said) for one in spec["containers"]]
    annotations = {**metadata.get("annotations", {}), **said.annotations}
    return {
        **template,
        "metadata": {
            **metadata,
            "labels": {**said.labels, **metadata["labels"]},
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": without_empty({**spec, **without_empty(added), "containers": containers}),
    }


def with_container_settings(container: Object, said: PodSettings) -> Object:
    """A container with the image, environment and mounts that the spec gives to all of its pod."""
    added = {
        "image": said.image,
        "imagePullPolicy": str(said.image_pull_policy) if said.image_pull_policy else None,
        "env": merged_variables(container.get("env", ()), said.env),
        "envFrom": [*container.get("envFrom", ()), *said.env_from],
        "volumeMounts": [*container.get("volumeMounts", ()), *said.volume_mounts],
    }
    return without_empty({**container, **without_empty(added)})


def without_empty(fields: Object) -> Object:
    """Without what is empty, which the API server does not store."""
    return {key: value for key, value in fields.items() if value not in (None, "", [], {})}


def merged_variables(own: Iterable[Mapping[str, Any]], said: Iterable[Mapping[str, Any]]) -> list[Object]:
    """Environment variables by name, in the operator's order and then the spec's; each is there once."""
    merged = {one["name"]: dict(one) for one in own}
    for one in said:
        if one["name"] not in OWN_VARIABLES:
            merged[one["name"]] = dict(one)
    return list(merged.values())


def spread(name: str, role: str, said: PodSettings) -> list[Object]:
    """How pods are spread: as the spec says, else softly over zones and nodes."""
    selector = {"matchLabels": {names.DEPLOYMENT_LABEL: name, names.ROLE_LABEL: role}}
    if said.topology_spread_constraints:
        return [{"labelSelector": selector, **one} for one in said.topology_spread_constraints]
    if role == names.HEAD_ROLE:
        return []
    soft = {"maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector}
    return [{"topologyKey": key, **soft} for key in SPREAD_OVER]
