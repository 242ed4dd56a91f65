"""Fixtures of the transfer tests."""

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def socket_dir():
    with tempfile.TemporaryDirectory(prefix="fx") as folder:
        yield folder
