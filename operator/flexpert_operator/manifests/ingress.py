"""The ingress: a Deployment of its own, which needs no Ray, and its Service."""

from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.spec import Ingress, MoEDeployment
from flexpert_operator.manifests import containers, pods, security
from flexpert_operator.manifests.metadata import child_metadata
from flexpert_proto import names as pool_names

INGRESS_MEMORY_BYTES = 2 * 2**30


def ingress_deployment(deployment: MoEDeployment, image: str, replicas: int) -> dict[str, Any]:
    """The Deployment; a new ingress is ready before an old one goes."""
    template = {
        "metadata": {"labels": names.labels(deployment.name, names.INGRESS_ROLE)},
        "spec": {
            **containers.POD_SECURITY,
            "terminationGracePeriodSeconds": 60,
            "containers": [ingress_container(deployment, image)],
            "volumes": [*containers.model_volumes(deployment), *security.volumes(deployment, names.INGRESS_ROLE)],
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": child_metadata(deployment, names.ingress(deployment.name), names.INGRESS_ROLE),
        "spec": {
            "replicas": replicas,
            "selector": {
                "matchLabels": {names.DEPLOYMENT_LABEL: deployment.name, names.ROLE_LABEL: names.INGRESS_ROLE}
            },
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": pods.with_settings(deployment, names.INGRESS_ROLE, template),
        },
    }


def ingress_container(deployment: MoEDeployment, image: str) -> dict[str, Any]:
    """The container: both ports, and probes on the HTTP one."""
    grpc, http = pool_names.GRPC_PORT_NAME, pool_names.HTTP_PORT_NAME
    ports = {grpc: deployment.serving.grpc_port, http: deployment.serving.http_port}
    over = {"port": http} if deployment.security.tls is None else {"port": http, "scheme": "HTTPS"}
    return {
        "name": "ingress",
        "image": image,
        "command": ["python", "-m", "flexpert_workers.ingress"],
        "env": [
            *containers.pool_environment(deployment, threads=1),
            *containers.variables(
                {
                    pool_names.ENV_POOL_CONTROL: security.control_address(deployment),
                    **{pool_names.port_variable(name): str(number) for name, number in ports.items()},
                    **waiting(deployment.ingress),
                }
            ),
            *security.environment(deployment, names.INGRESS_ROLE),
        ],
        "ports": [{"name": name, "containerPort": number, "protocol": "TCP"} for name, number in ports.items()],
        "readinessProbe": {"httpGet": {"path": "/ready", **over}, "periodSeconds": 2, "failureThreshold": 3},
        "livenessProbe": {
            "httpGet": {"path": "/health", **over},
            "initialDelaySeconds": 30,
            "periodSeconds": 10,
            "failureThreshold": 6,
        },
        "resources": containers.resources(deployment.ingress.resources, cores=1, memory_bytes=INGRESS_MEMORY_BYTES),
        "securityContext": dict(containers.SECURITY_CONTEXT),
        "volumeMounts": [*containers.model_mounts(deployment), *security.mounts(deployment, names.INGRESS_ROLE)],
        **containers.model_credentials(deployment.model),
    }


def waiting(ingress: Ingress) -> dict[str, str]:
    """Variables that say for how long and how many requests wait for an engine, where the spec does."""
    said = {pool_names.ENV_ENGINE_WAIT: ingress.wait_s, pool_names.ENV_MAX_WAITING: ingress.max_waiting}
    return {name: str(value) for name, value in said.items() if value is not None}


def ingress_service(deployment: MoEDeployment) -> dict[str, Any]:
    """The Service that clients talk to."""
    ports = {
        pool_names.GRPC_PORT_NAME: deployment.serving.grpc_port,
        pool_names.HTTP_PORT_NAME: deployment.serving.http_port,
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": child_metadata(deployment, names.ingress(deployment.name), names.INGRESS_ROLE),
        "spec": {
            "selector": {names.DEPLOYMENT_LABEL: deployment.name, names.ROLE_LABEL: names.INGRESS_ROLE},
            "ports": [
                {"name": name, "port": number, "targetPort": name, "protocol": "TCP"} for name, number in ports.items()
            ],
        },
    }
