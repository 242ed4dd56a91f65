"""Which nodes are to be emptied, as the watch of Nodes has told; `handlers` writes it, reconcilers read it.

No reconciliation asks the API server for Nodes.
"""

from collections.abc import Collection, Mapping
from typing import Any

from flexpert_operator.decide.leaving import LEAVING_TAINTS, why_node_leaves


class NodeNotices:
    """Notices by node. Written by one thread, read by many."""

    def __init__(self, taints: Collection[str] = LEAVING_TAINTS) -> None:
        self._taints = frozenset(taints)
        self._notices: dict[str, str] = {}

    def note(self, node: Mapping[str, Any]) -> bool:
        """Take a Node in as it is now; whether that changes anything."""
        name, notice = node["metadata"]["name"], why_node_leaves(node, self._taints)
        before = self._notices.get(name, "")
        if notice:
            self._notices[name] = notice
        else:
            self._notices.pop(name, None)
        return notice != before

    def forget(self, name: str) -> None:
        """A Node is gone; its pods tell that themselves."""
        self._notices.pop(name, None)

    def why_leaving(self, name: str) -> str:
        """Why a node is to be emptied; empty where it is not."""
        return self._notices.get(name, "")
