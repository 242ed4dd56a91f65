"""Defaults of built-in kinds, as the API server's own defaulting fills them in.

`builtin_kinds` names the function of each kind; each changes the object in place. Source: the "Defaults to" of the
Kubernetes API reference.
"""

import base64

from flexpert_operator.local.kubeapi.objects import JsonObject, is_terminating

_PROBE = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}


def pod(obj: JsonObject) -> None:
    """A Pod: its spec's defaults, phase Pending and its quality-of-service class."""
    spec = obj.setdefault("spec", {})
    pod_spec(spec)
    status = obj.setdefault("status", {})
    status.setdefault("phase", "Pending")
    status.setdefault("qosClass", _qos_class(spec))


def pod_spec(spec: JsonObject) -> None:
    """A pod's spec, of a Pod or in a template."""
    _fill(
        spec,
        restartPolicy="Always",
        terminationGracePeriodSeconds=30,
        dnsPolicy="ClusterFirst",
        securityContext={},
        schedulerName="default-scheduler",
    )
    if spec.get("serviceAccountName"):
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
    for container in [*spec.get("containers", []), *spec.get("initContainers", [])]:
        _container(container)


def workload(obj: JsonObject) -> None:
    """A ReplicaSet, StatefulSet, DaemonSet or Job: the spec of its template."""
    _template(obj)
    obj.setdefault("status", {})


def deployment(obj: JsonObject) -> None:
    """A Deployment: one replica, rolling update by a quarter."""
    spec = obj.setdefault("spec", {})
    _fill(spec, replicas=1, revisionHistoryLimit=10, progressDeadlineSeconds=600)
    strategy = spec.setdefault("strategy", {})
    strategy.setdefault("type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        _fill(strategy.setdefault("rollingUpdate", {}), maxUnavailable="25%", maxSurge="25%")
    workload(obj)


def service(obj: JsonObject) -> None:
    """A Service: ClusterIP, each port's target its own number."""
    spec = obj.setdefault("spec", {})
    _fill(spec, type="ClusterIP", sessionAffinity="None", internalTrafficPolicy="Cluster")
    _fill(spec, ipFamilyPolicy="SingleStack", ipFamilies=["IPv4"])
    for port in spec.get("ports", []):
        _fill(port, protocol="TCP", targetPort=port.get("port"))
    obj.setdefault("status", {"loadBalancer": {}})


def secret(obj: JsonObject) -> None:
    """A Secret: Opaque; `stringData` becomes part of `data`."""
    obj.setdefault("type", "Opaque")
    for name, text in obj.pop("stringData", {}).items():
        obj.setdefault("data", {})[name] = base64.b64encode(text.encode()).decode()


def namespace(obj: JsonObject) -> None:
    """A Namespace: its own finalizer, its phase, its name as a label."""
    obj.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    phase = "Terminating" if is_terminating(obj) else "Active"
    obj.setdefault("status", {})["phase"] = phase
    obj["metadata"].setdefault("labels", {}).setdefault("kubernetes.io/metadata.name", obj["metadata"].get("name"))


def claim(obj: JsonObject) -> None:
    """A PersistentVolumeClaim: a file system, pending."""
    obj.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
    obj.setdefault("status", {}).setdefault("phase", "Pending")


def _container(container: JsonObject) -> None:
    image = str(container.get("image", ""))
    latest = ":" not in image.rpartition("/")[2] or image.endswith(":latest")
    _fill(
        container,
        imagePullPolicy="Always" if latest and "@" not in image else "IfNotPresent",
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="File",
        resources={},
    )
    for port in container.get("ports", []):
        port.setdefault("protocol", "TCP")
    for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
        if kind in container:
            _fill(container[kind], **_PROBE)
    for name, limit in container["resources"].get("limits", {}).items():
        container["resources"].setdefault("requests", {}).setdefault(name, limit)
    for variable in container.get("env", []):
        if "fieldRef" in variable.get("valueFrom", {}):
            variable["valueFrom"]["fieldRef"].setdefault("apiVersion", "v1")


def _template(obj: JsonObject) -> None:
    template = obj.setdefault("spec", {}).setdefault("template", {})
    pod_spec(template.setdefault("spec", {}))


def _qos_class(spec: JsonObject) -> str:
    resources = [container.get("resources", {}) for container in spec.get("containers", [])]
    if not any(item.get("requests") or item.get("limits") for item in resources):
        return "BestEffort"
    wanted = ("cpu", "memory")
    guaranteed = all(
        name in item.get("limits", {}) and item.get("requests", {}).get(name) == item["limits"][name]
        for item in resources
        for name in wanted
    )
    return "Guaranteed" if guaranteed else "Burstable"


def _fill(target: JsonObject, **values: object) -> None:
    for name, value in values.items():
        if value is not None:
            target.setdefault(name, value)
