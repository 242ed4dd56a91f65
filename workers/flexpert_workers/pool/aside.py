"""Pure computations beside the pool controller's event loop, which must answer while a large plan is worked out."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")
_FEW_EXPERTS = 512


async def aside(num_experts: int, compute: Callable[[], _Result]) -> _Result:
    """What `compute` returns, which touches nothing that changes; for few experts it is computed at once."""
    return compute() if num_experts <= _FEW_EXPERTS else await asyncio.to_thread(compute)
