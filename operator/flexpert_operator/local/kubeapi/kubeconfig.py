"""The kubeconfig of an embedded API: what kubectl, the operator and the tests connect with."""

import base64
import json
import os
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from flexpert_operator.local.kubeapi.objects import JsonObject

CONTEXT = "flexpert-local"


def kubeconfig(url: str, token: str, ca: str, *, namespace: str = "default") -> JsonObject:
    """A kubeconfig with one context, `flexpert-local`; `ca` is the server's certificate, PEM."""
    cluster = {"server": url, "certificate-authority-data": base64.b64encode(ca.encode()).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CONTEXT, "cluster": cluster}],
        "users": [{"name": CONTEXT, "user": {"token": token}}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": CONTEXT, "namespace": namespace}}],
        "current-context": CONTEXT,
    }


def write_kubeconfig(
    path: Path | str, url: str, token: str, *, ca: str | None = None, namespace: str = "default"
) -> Path:
    """Write a kubeconfig that only its owner can read; returns its path.

    Without `ca` the certificate that the server at `url` shows now is the one to trust from then on.

    Raises:
        OSError: there is no `ca`, and no server answers at `url`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    config = kubeconfig(url, token, ca or shown_certificate(url), namespace=namespace)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(config, file, indent=1)
    return target


def shown_certificate(url: str) -> str:
    """The certificate that the server at `url` shows, PEM."""
    parts = urlsplit(url)
    return ssl.get_server_certificate((parts.hostname or "", parts.port or 443), timeout=10)
