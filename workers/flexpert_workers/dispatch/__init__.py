"""The engine's side of expert dispatch: the newest routing table, and the client that computes a layer's experts."""

from flexpert_workers.dispatch.client import DispatchClient
from flexpert_workers.dispatch.statistics import LayerStatistics
from flexpert_workers.dispatch.tables import TableHolder

__all__ = ["DispatchClient", "LayerStatistics", "TableHolder"]
