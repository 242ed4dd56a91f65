"""The attention engine: dense weights, KV cache, queue and loop; experts are asked for layer by layer.

The life of a request: `service` receives a `Submit` → `loop.Engine.add_request` checks (`request.check`) and queues it
→ `scheduler.Scheduler.schedule` chooses it for a pass → `runner.Runner.run` computes the pass through `seams`
(`attention` over `cache`, experts through the dispatcher) → `sampler.sample` draws → `service` sends the step's batch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from flexpert_workers.engine.config import EngineConfig

if TYPE_CHECKING:
    from flexpert_workers.engine.loop import Engine
    from flexpert_workers.engine.seams import ExpertDispatcher
    from flexpert_workers.engine.service import EngineService

__all__ = ["Engine", "EngineConfig", "EngineService", "ExpertDispatcher"]

_HOMES = {"Engine": "loop", "ExpertDispatcher": "seams", "EngineService": "service"}


def __getattr__(name: str) -> Any:
    """Import what computes when it is first used: it brings torch, which a pool controller does without."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
