"""The dashboard's layout, and the operator's own metrics. What its queries find: tests/observe/test_prometheus.py."""

import json
from typing import Any

from chart_release import CHART

from flexpert_operator.metrics import Metrics

DASHBOARD: dict[str, Any] = json.loads((CHART / "dashboards" / "flexpert.json").read_text())


def test_a_reconciliation_is_counted_by_object_and_timed_for_all() -> None:
    metrics = Metrics()
    for number in range(3):
        metrics.note_reconciled("default", f"m{number}", 0.1)
    value = metrics.registry.get_sample_value
    assert value("flexpert_reconcile_seconds_count") == 3
    assert value("flexpert_reconciliations_total", {"namespace": "default", "name": "m1"}) == 1
    metrics.forget("default", "m1")
    assert value("flexpert_reconciliations_total", {"namespace": "default", "name": "m1"}) is None
    assert value("flexpert_reconcile_seconds_count") == 3


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
