"""The expert worker as a Ray actor of the pod it lands in. `ray_launcher` creates it."""

import os

import msgspec

from flexpert_proto import logs
from flexpert_workers import threads
from flexpert_workers.expert import WorkerConfig
from flexpert_workers.pool.owners import owner_socket
from flexpert_workers.serving.node import NodeFacts


class PodWorker:
    """An expert worker that takes names, addresses and threads from its pod's environment.

    Args:
        config: `WorkerConfig` as JSON; what only the pod knows is left empty in it.
        workers_per_pod: Workers that share the pod's cores.
        domain: Of the pod's page owner.
    """

    def __init__(self, config: str, workers_per_pod: int, domain: str) -> None:
        logs.configure(own=logs.of_pool("worker"))
        wanted = localised(msgspec.json.decode(config, type=WorkerConfig), NodeFacts.of(), workers_per_pod, domain)
        os.environ.update(threads.environment(wanted.threads))  # before torch reads it
        from flexpert_workers.expert.worker_actor import WorkerActor

        self._worker = WorkerActor(msgspec.json.encode(wanted).decode())

    def ready(self) -> dict[str, str | int]:
        """Where the worker is; see `WorkerActor.ready`."""
        return self._worker.ready()


def localised(config: WorkerConfig, node: NodeFacts, workers_per_pod: int, domain: str) -> WorkerConfig:
    """The configuration with what the pod knows."""
    return msgspec.structs.replace(
        config,
        pod=node.pod,
        node=node.node,
        bind_host=node.bind_host,
        socket_dir=node.socket_dir,
        poll_us=node.poll_us,
        threads=node.threads_each(config.threads, workers_per_pod),
        owner_socket=owner_socket(node.socket_dir, domain),
    )
