import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # what several tests share lies beside them

from observed_pool import ObservedPool


@pytest.fixture(scope="session")
def pool() -> Iterator[ObservedPool]:
    """One pool for every test here that needs one."""
    made = ObservedPool()
    try:
        made.start()
        yield made
    finally:
        made.close()
