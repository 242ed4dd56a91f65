"""Tests on a cluster made by kind; skipped unless `make kind-test` asks for them, where Docker is."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

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
