"""Where Services lead, as `flexpert_proto.names.resolve` reads it: what kube-proxy does, for processes of one host.

Pure; the runtime writes the table to its file whenever it changes.
"""

from collections.abc import Mapping

from flexpert_operator.local.runtime.objects import is_ready, key_of, uid_of
from flexpert_operator.local.runtime.values import HOST, LocalPod, Object

_DOMAIN = "cluster.local"


def service_table(
    services: tuple[Object, ...], pods: tuple[Object, ...], local: Mapping[str, LocalPod]
) -> dict[str, str]:
    """Address `name.namespace.svc:port` of each Service to `host:port` of a ready pod behind it.

    A Service without a ready pod is left out. Of several ready pods the oldest takes all connections, so that the
    table changes only when it must.
    """
    table = {}
    for service in services:
        selector = service["spec"].get("selector") or {}
        namespace, name = key_of(service)
        backends = [pod for pod in pods if selector and _is_behind(pod, namespace, selector) and uid_of(pod) in local]
        for port in service["spec"].get("ports") or []:
            targets = [_target(pod, local[uid_of(pod)], port) for pod in sorted(backends, key=_age)]
            found = next((target for target in targets if target is not None), None)
            if found is not None:
                table[f"{name}.{namespace}.svc:{port['port']}"] = f"{HOST}:{found}"
                table[f"{name}.{namespace}.svc.{_DOMAIN}:{port['port']}"] = f"{HOST}:{found}"
    return table


def _is_behind(pod: Object, namespace: str, selector: Mapping[str, str]) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return key_of(pod)[0] == namespace and selector.items() <= labels.items() and is_ready(pod)


def _age(pod: Object) -> tuple[str, str]:
    return str(pod["metadata"].get("creationTimestamp", "")), key_of(pod)[1]


def _target(pod: Object, local: LocalPod, port: Object) -> int | None:
    target = port.get("targetPort", port["port"])
    for container in pod["spec"]["containers"]:
        for declared in container.get("ports") or []:
            if target in (declared.get("name"), declared["containerPort"]):
                return local.ports.get(declared.get("name", ""))
    return None
