"""The operator under its chart's service account: what it asks of the API, and what the chart lets it, are the same."""

from pathlib import Path

import pytest
from chart_life import RELEASES, granted, live_a_whole_life
from chart_operator import LOG, USER, EmbeddedServer, run_release
from chart_release import NAMESPACE, Chart


@pytest.mark.parametrize("case", RELEASES)
def test_the_operator_may_do_what_it_does_and_no_more(chart: Chart, tmp_path: Path, case: str) -> None:
    values = RELEASES[case]
    with EmbeddedServer() as server:
        with run_release(chart, values, tmp_path, server) as world:
            live_a_whole_life(world, lambda: server.asked_by(USER))
        assert server.asked_by(USER) == granted(chart.objects(values))
    log = (tmp_path / LOG).read_text()
    assert "forbidden" not in log.lower(), log


def test_secrets_are_none_of_its_business(chart: Chart) -> None:
    for values in RELEASES.values():
        assert not [one for one in granted(chart.objects(values)) if one[1].startswith("secrets") or "*" in one]


def test_the_roles_are_the_service_accounts(chart: Chart) -> None:
    account = chart.one("ServiceAccount")["metadata"]["name"]
    bindings = [one for one in chart.objects({"watchNamespaces": ["a"]}) if one["kind"].endswith("Binding")]
    for binding in (*bindings, chart.one("ClusterRoleBinding")):
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]
