"""The chart as Helm renders it. Where Helm's engine (helm-python-sdk) has no wheel the tests are skipped."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from chart_release import Chart


@pytest.fixture(scope="session")
def chart() -> "Iterator[Chart]":
    """The chart of this checkout."""
    from chart_release import open_chart

    with open_chart() as chart:
        yield chart


@pytest.fixture
def container(chart: "Chart") -> Callable[..., dict[str, Any]]:
    """The operator's container for some values."""

    def get(values: dict[str, Any] | None = None) -> dict[str, Any]:
        (found,) = chart.one("Deployment", values)["spec"]["template"]["spec"]["containers"]
        return dict(found)

    return get
