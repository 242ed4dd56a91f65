"""Dashboard and metrics say the same words: each query is over metrics and labels that the operator exposes."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from chart_release import CHART

from flexpert_operator.metrics import Metrics

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
DASHBOARD: dict[str, Any] = json.loads((CHART / "dashboards" / "flexpert.json").read_text())


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """Labels of every series that the operator exposes, by its name."""
    found: dict[str, set[str]] = {}
    registry = Metrics().registry
    for collector in list(registry._collector_to_names):
        (family,) = collector.describe() or collector.collect()
        for suffix in SUFFIXES[family.type]:
            labels = set(collector._labelnames) | ({"le"} if suffix == "_bucket" else set())
            found[family.name + suffix] = labels
    return found


def queries() -> Iterator[str]:
    """Every query of the dashboard, those of its variables included."""
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def test_each_query_is_over_metrics_that_exist(exposed: dict[str, set[str]]) -> None:
    for query in queries():
        names = re.findall(r"\bflexpert_\w+", query)
        assert names, query
        for name in names:
            assert name in exposed, query


def test_each_query_is_over_labels_that_exist(exposed: dict[str, set[str]]) -> None:
    for query in queries():
        labels = set().union(*(exposed[name] for name in re.findall(r"\bflexpert_\w+", query)))
        used = set(re.findall(r"(\w+)=~?\"", query))
        for grouping in re.findall(r"by \(([^)]*)\)", query):
            used |= {label.strip() for label in grouping.split(",")}
        assert used <= labels, query


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
