"""The fetch of a model's files as a Ray actor of the node whose cache they go to. `ray_fetcher` creates it."""

from flexpert_proto import logs
from flexpert_workers.pool.fetch_process import FetchProcess
from flexpert_workers.pool.state import FetchState


class NodeFetch:
    """One fetch, in a process that ends with this actor; token, cache and endpoint are those of the pod's environment.

    Args:
        source: What is fetched, pinned.
    """

    def __init__(self, source: str) -> None:
        logs.configure(own=logs.of_pool("fetch"))
        self._fetch = FetchProcess(source)

    def state(self) -> FetchState:
        """How far it is."""
        return self._fetch.state
