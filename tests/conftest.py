"""What all tests share: a folder of their own for what is remembered of checkpoints, inherited by their processes."""

import os

import pytest

from flexpert_proto import names


@pytest.fixture(scope="session", autouse=True)
def _own_checkpoint_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(names.ENV_CHECKPOINT_CACHE, os.fspath(tmp_path_factory.mktemp("checkpoints")))
        yield
