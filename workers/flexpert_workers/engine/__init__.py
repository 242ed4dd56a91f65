"""The attention engine: dense weights, KV cache, queue and loop; experts are asked for layer by layer.

The life of a request: `service` receives a `Submit` → `loop.Engine.add_request` checks (`request.check`) and queues it
→ `scheduler.Scheduler.schedule` chooses it for a pass → `runner.Runner.run` computes the pass through `seams`
(`attention` over `cache`, experts through the dispatcher) → `sampler.sample` draws → `service` sends the step's batch.
"""

from flexpert_workers.engine.config import EngineConfig
from flexpert_workers.engine.loop import Engine
from flexpert_workers.engine.seams import ExpertDispatcher
from flexpert_workers.engine.service import EngineService

__all__ = ["Engine", "EngineConfig", "EngineService", "ExpertDispatcher"]
