"""Tests against a real kube-apiserver; skipped where KUBEBUILDER_ASSETS does not name a folder with its binaries."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from chart_release import Chart
    from real_api_server import RealApiServer


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[RealApiServer]":
    """A real API server for a module's tests, which also asks who may block an owner's deletion."""
    from real_api_server import RealApiServer, missing_assets

    reason = missing_assets()
    if reason:
        pytest.skip(reason)
    option = "--enable-admission-plugins=OwnerReferencesPermissionEnforcement"
    with RealApiServer(tmp_path_factory.mktemp("apiserver"), option) as api:
        yield api


@pytest.fixture(scope="session")
def chart() -> "Iterator[Chart]":
    """The chart of this checkout, as in `tests/chart`."""
    from chart_release import open_chart

    with open_chart() as chart:
        yield chart
