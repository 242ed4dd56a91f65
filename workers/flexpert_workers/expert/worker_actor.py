"""The Ray shell of an expert worker: an ordinary class that the pool makes a detached, named actor when it launches it.

Ray decides where the worker runs and notices its death; everything else goes over the worker's own sockets.
"""

import os
import threading

import msgspec
import ray

from flexpert_workers import threads
from flexpert_workers.expert import ExpertWorker, WorkerConfig


class WorkerActor:
    """An actor that runs one `ExpertWorker`.

    Args:
        config: `WorkerConfig` as JSON.
    """

    def __init__(self, config: str) -> None:
        decoded = msgspec.json.decode(config, type=WorkerConfig)
        threads.configure(decoded.threads)
        self._worker = ExpertWorker(decoded)
        self._worker.start()
        threading.Thread(target=self._end_when_asked, name="end", daemon=True).start()

    def ready(self) -> dict[str, str | int]:
        """Where the worker is, as a process of its own prints it, and the id of the Ray node it runs on."""
        return {
            "endpoint": self._worker.endpoint,
            "control_endpoint": self._worker.control_endpoint,
            "incarnation": self._worker.incarnation,
            "pid": os.getpid(),
            "ray_node_id": ray.get_runtime_context().get_node_id(),
        }

    def _end_when_asked(self) -> None:
        """End the process once a `Stop` message came; `exit_actor` would work only inside a method that Ray called."""
        self._worker.wait()
        self._worker.stop()
        os._exit(0)
