"""Fixtures of the tests on a real GPU. Without one they are skipped; nothing here needs Ray."""

import pytest

from flexpert_workers.memory.cuda import open_cuda
from flexpert_workers.memory.devices import open_device
from flexpert_workers.memory.driver import CudaDriver, CudaError


def _why_not():
    try:
        CudaDriver().close()
        import cupy
        import torch
    except (CudaError, ImportError) as error:
        return str(error)
    return "" if torch.cuda.is_available() and cupy.cuda.is_available() else "torch or CuPy sees no CUDA device"


@pytest.fixture(scope="session")
def gpu():
    """The backend of the first device."""
    if why := _why_not():
        pytest.skip(why)
    return open_cuda(computes=True)


@pytest.fixture
def backend(gpu):
    return gpu


@pytest.fixture
def world(gpu):
    """The first device by its UUID, as workers and page owners are told it."""
    from test_worker_on_device import World

    return World(f"cuda:{gpu.name}", open_device)


@pytest.fixture(scope="session")
def device():
    return "cuda:0"
