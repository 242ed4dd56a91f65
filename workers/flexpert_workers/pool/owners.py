"""Which page owner a worker borrows from: one for every pod, checkpoint and memory, shared by the workers there.

The memory is that of one of the pod's GPUs, or the host's where it has none.

Both launchers start owners by it, before the workers; an owner is never a child of a worker.
"""

import hashlib
import tempfile
from pathlib import Path

from flexpert_workers.memory.devices import CPU, cuda_device
from flexpert_workers.memory.owner import OwnerConfig
from flexpert_workers.pool.state import PoolSpec, Slot


def device_of(slot: Slot) -> str:
    """Name of the device that a worker in a slot computes on, and in whose memory its experts are."""
    return CPU if slot.gpu is None else cuda_device(slot.gpu)


def owner_place(pod: str, slot: Slot) -> str:
    """Where the owner of a slot's workers is, within a pod (or Ray node): one for each of its GPUs."""
    return pod if slot.gpu is None else f"{pod}:{slot.gpu}"


def owner_domain(place: str, spec: PoolSpec) -> str:
    """Id of the owner at a place for the checkpoint that `spec` serves."""
    parts = (spec.uid, place, spec.source, spec.revision, spec.dtype)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def owner_socket(socket_dir: str, domain: str) -> str:
    """Path of an owner's socket; without a folder for sockets it is in the system's for temporary files."""
    folder = Path(socket_dir) if socket_dir else Path(tempfile.gettempdir()) / "flexpert-owners"
    return str(folder / domain)


def owner_config(domain: str, spec: PoolSpec, slot: Slot, bind_host: str = "", socket_dir: str = "") -> OwnerConfig:
    """What an owner is told; whoever starts it in a pod fills in what only the pod knows."""
    return OwnerConfig(
        domain=domain,
        pool=spec.uid,
        source=spec.source,
        dtype=spec.dtype,
        budget_bytes=spec.memory_per_worker_bytes * -(-spec.workers_per_pod // max(1, slot.gpus)),
        socket=owner_socket(socket_dir, domain),
        bind_host=bind_host,
        socket_dir=socket_dir,
        copy_bytes_per_s=spec.copy_bytes_per_s,
        device=device_of(slot),
    )
