"""Secrets of `spec.security` as volumes, mounts and environment of the pods that need them; all builders use it."""

from dataclasses import dataclass
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.spec import MoEDeployment
from flexpert_proto import names as pool_names

FOLDER = "/etc/flexpert"
READABLE = 0o440
"""By the pod's user, through its group."""

TLS_KEYS = (pool_names.CERTIFICATE_KEY, pool_names.PRIVATE_KEY_KEY)
POOL_KEYS = (*TLS_KEYS, pool_names.AUTHORITIES_KEY, pool_names.POOL_KEY_KEY)


@dataclass(frozen=True)
class Part:
    """One Secret of a pod: its volume, its keys, and the variable that says where they are."""

    volume: str
    secret: str
    keys: tuple[str, ...]
    variable: str
    file: str = ""

    @property
    def place(self) -> str:
        """What the variable says."""
        folder = f"{FOLDER}/{self.volume}"
        return f"{folder}/{self.file}" if self.file else folder


def parts(deployment: MoEDeployment, role: str) -> list[Part]:
    """The Secrets of a role's pods."""
    said = deployment.security
    found = []
    if said.pool is not None:
        found.append(Part("pool-credentials", said.pool.secret_name, POOL_KEYS, pool_names.ENV_POOL_CREDENTIALS))
    if role != names.INGRESS_ROLE:
        return found
    if said.tls is not None:
        found.append(Part("certificate", said.tls.secret_name, TLS_KEYS, pool_names.ENV_SERVING_CERTIFICATE))
    if said.client_certificates is not None:
        secret, keys = said.client_certificates.secret_name, (pool_names.AUTHORITIES_KEY,)
        found.append(Part("client-authorities", secret, keys, pool_names.ENV_CLIENT_AUTHORITIES))
    if said.tokens is not None:
        file = pool_names.TOKENS_KEY
        found.append(Part("tokens", said.tokens.secret_name, (file,), pool_names.ENV_TOKENS_FILE, file))
    return found


def volumes(deployment: MoEDeployment, role: str) -> list[dict[str, Any]]:
    """Their volumes. A pod waits until its Secrets are there: without them it would be open, or could not talk."""
    return [
        {
            "name": part.volume,
            "secret": {
                "secretName": part.secret,
                "defaultMode": READABLE,
                "items": [{"key": key, "path": key} for key in part.keys],
            },
        }
        for part in parts(deployment, role)
    ]


def mounts(deployment: MoEDeployment, role: str) -> list[dict[str, Any]]:
    """Where a container finds them; whole folders, since a file that is mounted alone is never renewed."""
    return [
        {"name": part.volume, "mountPath": f"{FOLDER}/{part.volume}", "readOnly": True}
        for part in parts(deployment, role)
    ]


def environment(deployment: MoEDeployment, role: str) -> list[dict[str, Any]]:
    """Variables that say so."""
    return [{"name": part.variable, "value": part.place} for part in parts(deployment, role)]


def control_address(deployment: MoEDeployment, cluster: str = "") -> str:
    """Where the pool controller is, as processes of the pool are told; `cluster` as for `names.control_address_of`."""
    metadata = {"name": deployment.name, "namespace": deployment.namespace}
    spec: dict[str, Any] = {} if deployment.security.pool is None else {"security": {"pool": {}}}
    return names.control_address_of({"metadata": metadata, "spec": spec}, cluster)
