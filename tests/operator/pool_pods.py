"""The pods of a pool, and the Pod Security Standard *restricted*, rule by rule; tests of manifests share them."""

from collections.abc import Iterator
from typing import Any

from flexpert_operator import manifests
from flexpert_operator.api import MoEDeployment, names
from flexpert_operator.decide.sizing import GroupSize
from flexpert_operator.decide.sizing_state import Sizing

Object = dict[str, Any]
VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected"),
    "secret",
}
SYSCTLS = {
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"),
    *("net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"),
    *("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl"),
    "net.ipv4.tcp_keepalive_probes",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SECCOMP = {"RuntimeDefault", "Localhost"}


def templates(deployment: MoEDeployment) -> Iterator[tuple[str, Object]]:
    """Role and pod template of all pods."""
    body = manifests.ray_cluster(deployment, "operator:1", GroupSize(1), GroupSize(2), Sizing(), None)
    yield names.HEAD_ROLE, body["spec"]["headGroupSpec"]["template"]
    for group in body["spec"]["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    yield names.INGRESS_ROLE, manifests.ingress_deployment(deployment, "operator:1", 2)["spec"]["template"]


def with_kuberays_container(template: Object) -> Object:
    """A worker's template with the init container that KubeRay adds, secured as the first container is."""
    first = template["spec"]["containers"][0]
    waiting = {key: first[key] for key in ("image", "securityContext", "env", "volumeMounts") if key in first}
    added = {**waiting, "name": "wait-gcs-ready", "command": ["/bin/bash", "-c", "--"]}
    return {**template, "spec": {**template["spec"], "initContainers": [added]}}


def violations(template: Object) -> list[str]:
    """What the standards *baseline* and *restricted* forbid in a pod template, in their order.

    Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/
    """
    spec = template["spec"]
    of_all = [*spec.get("initContainers", ()), *spec.get("containers", ()), *spec.get("ephemeralContainers", ())]
    annotations = template.get("metadata", {}).get("annotations", {})
    found = [field for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    found += [key for key in annotations if key.startswith("container.apparmor.security.beta.kubernetes.io/")]
    found += [f"sysctl {one['name']}" for one in of_pod(spec).get("sysctls", ()) if one["name"] not in SYSCTLS]
    found += [f"volume {one['name']}" for one in spec.get("volumes", ()) if not VOLUMES & one.keys()]
    found += [f"pod: {wrong}" for wrong in wrong_anywhere(of_pod(spec))]
    for container in of_all:
        found += [f"{container['name']}: {wrong}" for wrong in wrong_in_container(container, of_pod(spec))]
    return found


def of_pod(spec: Object) -> Object:
    """The security context of a pod."""
    context: Object = spec.get("securityContext") or {}
    return context


def wrong_anywhere(context: Object) -> Iterator[str]:
    """What neither a pod nor a container may say."""
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type", "") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield "seLinuxOptions"
    if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") == "Unconfined":
        yield "appArmorProfile"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "hostProcess"
    if context.get("runAsUser") == 0:
        yield "runAsUser"
    if context.get("runAsNonRoot") is False:
        yield "runAsNonRoot"
    if "seccompProfile" in context and context["seccompProfile"]["type"] not in SECCOMP:
        yield "seccompProfile"


def wrong_in_container(container: Object, pod: Object) -> Iterator[str]:
    """What a container may not say, and what it has to say where its pod does not."""
    own = container.get("securityContext") or {}
    merged = {**pod, **own}
    yield from wrong_anywhere(own)
    if merged.get("runAsNonRoot") is not True:
        yield "runAsNonRoot"
    if (merged.get("seccompProfile") or {}).get("type") not in SECCOMP:
        yield "seccompProfile"
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in capabilities.get("drop", ()) or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "capabilities"
    if own.get("procMount", "Default") != "Default":
        yield "procMount"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield "hostPort"
    hooks = [*(container.get("lifecycle") or {}).values()]
    hooks += [container[probe] for probe in ("livenessProbe", "readinessProbe", "startupProbe") if probe in container]
    if any((hook.get(kind) or {}).get("host") for hook in hooks for kind in ("httpGet", "tcpSocket")):
        yield "host of a probe or hook"
