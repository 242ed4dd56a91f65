"""Tests on a cluster made by kind; skipped unless `make kind-test` asks for them, where Docker is."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [
    str(HERE),
    str(HERE.parent / "faults"),
]  # clients that never stop streaming are those of the fault tests

if TYPE_CHECKING:
    from kind_cluster import Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Cluster]":
    """A cluster with the chart's images loaded."""
    from kind_cluster import build_images, kind_cluster, missing

    reason = missing()
    if reason:
        pytest.skip(reason)
    build_images()
    with kind_cluster(tmp_path_factory.mktemp("kind")) as cluster:
        yield cluster
