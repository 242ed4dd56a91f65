"""Which page owner a worker borrows from: one for every pod and checkpoint, shared by the workers of the pod.

Both launchers start owners by it, before the workers; an owner is never a child of a worker.
"""

import hashlib
import tempfile
from pathlib import Path

from flexpert_workers.memory.owner import OwnerConfig
from flexpert_workers.pool.state import PoolSpec


def owner_domain(place: str, spec: PoolSpec) -> str:
    """Id of the owner at a place (a pod, or a Ray node) for the checkpoint that `spec` serves."""
    parts = (spec.uid, place, spec.source, spec.revision, spec.dtype)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def owner_socket(socket_dir: str, domain: str) -> str:
    """Path of an owner's socket; without a folder for sockets it is in the system's for temporary files."""
    folder = Path(socket_dir) if socket_dir else Path(tempfile.gettempdir()) / "flexpert-owners"
    return str(folder / domain)


def owner_config(domain: str, spec: PoolSpec, bind_host: str = "", socket_dir: str = "") -> OwnerConfig:
    """What an owner is told; whoever starts it in a pod fills in what only the pod knows."""
    return OwnerConfig(
        domain=domain,
        pool=spec.uid,
        source=spec.source,
        dtype=spec.dtype,
        budget_bytes=spec.memory_per_worker_bytes * spec.workers_per_pod,
        socket=owner_socket(socket_dir, domain),
        bind_host=bind_host,
        socket_dir=socket_dir,
    )
