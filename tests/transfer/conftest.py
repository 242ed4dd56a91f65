"""Fixtures of the transfer tests."""

import tempfile

import pytest


@pytest.fixture
def socket_dir():
    with tempfile.TemporaryDirectory(prefix="fx") as folder:
        yield folder
