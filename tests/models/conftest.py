"""The walk may try architectures that are not recorded as served; transformers says nothing while it does."""

import pytest
from transformers.utils import logging as transformers_logging

from flexpert_workers.checkpoint import architectures


@pytest.fixture(autouse=True)
def _try_every_architecture(monkeypatch):
    monkeypatch.setenv(architectures.ENV_UNLISTED, "try")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
