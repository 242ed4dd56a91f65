from collections.abc import Iterator

import pytest
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
