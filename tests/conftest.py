"""What all tests share: which of them run beside each other, and a folder for what is remembered of checkpoints."""

import os

import pytest

from flexpert_proto import names

HEAVY = "heavy"
"""Files with tests that start whole clusters: one after the other, and first."""


def pytest_collection_modifyitems(items):
    """With several test processes a file stays together, and what starts clusters has one process for itself."""
    heavy = {item.path for item in items if item.get_closest_marker("local")}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(HEAVY if item.path in heavy else str(item.path)))
    items.sort(key=lambda item: item.path not in heavy)


@pytest.fixture(scope="session", autouse=True)
def _own_checkpoint_cache(tmp_path_factory):
    """Inherited by the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(names.ENV_CHECKPOINT_CACHE, os.fspath(tmp_path_factory.mktemp("checkpoints")))
        yield
