"""The ingress: holds each client's stream, and finds it an engine, as often as it takes (docs/architecture.md).

A request passes `service` → `validate` → `balancer` → `fleet` → `link`, and its tokens come back the same way through
`streams`, which keeps the record that a resubmission needs. No torch, no Ray.
"""

from flexpert_workers.ingress.config import IngressConfig
from flexpert_workers.ingress.server import Ingress, running

__all__ = ["Ingress", "IngressConfig", "running"]
