"""Kubernetes objects for the tests of the laptop runtime."""

import copy
from typing import Any

from flexpert_operator.local.processes import ProcessId
from flexpert_operator.local.runtime.values import Container, LocalPod

Object = dict[str, Any]
NOW = 1_000_000.0


def container(name: str, *code: str, **more: Any) -> Object:
    command = ["python", "-c", "\n".join(code)] if code else None
    return {"name": name, "image": "none", **({"command": command} if command else {}), **more}


def group(name: str, replicas: int | None, *, to_delete: tuple[str, ...] = (), **more: Any) -> Object:
    return {
        "groupName": name,
        "replicas": replicas,
        "minReplicas": 0,
        "maxReplicas": 10,
        "scaleStrategy": {"workersToDelete": list(to_delete)},
        "rayStartParams": {},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container("ray-worker")]}},
        **more,
    }


def ray_cluster(*groups: Object, name: str = "moe", **spec: Any) -> Object:
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [container("ray-head")]}}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "generation": 3},
        "spec": {"headGroupSpec": head, "workerGroupSpecs": list(groups), **spec},
    }


def deployment(replicas: int, image: str = "a", name: str = "web", **metadata: Any) -> Object:
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "web", "image": image}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "generation": 1, **metadata},
        "spec": {"replicas": replicas, "template": template},
    }


def born(manifest: Object, *, phase: str = "Running", ready: bool = True) -> Object:
    """The Pod that the API makes of a manifest, with a status."""
    pod = copy.deepcopy(manifest)
    pod["metadata"]["uid"] = f"uid-{pod['metadata']['name']}"
    pod["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    pod["status"] = {
        "phase": phase,
        "conditions": [{"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": "then"}],
    }
    return pod


def local_pod(pod: Object, *containers: Container, **more: Any) -> LocalPod:
    names = [spec["name"] for spec in pod["spec"]["containers"]]
    values: dict[str, Any] = {
        "uid": pod["metadata"]["uid"],
        "namespace": "default",
        "name": pod["metadata"]["name"],
        "cluster": (pod["metadata"].get("labels") or {}).get("ray.io/cluster"),
        "is_head": False,
        "grace_s": 30.0,
        "folder": "/tmp/x",
        "ports": {},
        "containers": containers or tuple(Container(name) for name in names),
    }
    return LocalPod(**{**values, **more})


def running(name: str, *, ready: bool = True, restarts: int = 0) -> Container:
    return Container(name, ProcessId(77, NOW), running=True, started_at=NOW, restarts=restarts, ready=ready)


def ended(name: str, *, code: int = 1, restarts: int = 0, after_s: float = 1.0) -> Container:
    return Container(
        name, ProcessId(77, NOW), started_at=NOW, finished_at=NOW + after_s, exit_code=code, restarts=restarts
    )
