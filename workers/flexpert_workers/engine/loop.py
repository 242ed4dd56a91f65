"""The engine's core: requests in, tokens out, one forward pass a step. No sockets, no threads; called by `service`.

A step reads as schedule, run, postprocess. What goes wrong in a pass stays with whom it concerns: an abandoned pass
leaves its requests as they were, to be computed again; an exception makes each request of the pass go alone, and the
one that fails alone is refused.
"""

import logging
from collections import defaultdict
from typing import NamedTuple

from flexpert_workers.checkpoint import Checkpoint
from flexpert_workers.engine import probe
from flexpert_workers.engine.blocks import BlockPool
from flexpert_workers.engine.cache import bytes_per_token, plan_cache
from flexpert_workers.engine.config import EngineConfig
from flexpert_workers.engine.dense import DenseModel, load_dense
from flexpert_workers.engine.linear import quicken
from flexpert_workers.engine.memory import cgroup_memory_limit, derive_kv_bytes
from flexpert_workers.engine.meter import EngineMeter
from flexpert_workers.engine.paged import paged_attentions
from flexpert_workers.engine.recorder import RoutingRecorder
from flexpert_workers.engine.request import Limits, Request, RequestKey, check
from flexpert_workers.engine.runner import Runner
from flexpert_workers.engine.sampler import Draw, sample
from flexpert_workers.engine.scheduler import Scheduled, Scheduler
from flexpert_workers.engine.seams import ExpertDispatcher
from flexpert_workers.errors import InvalidRequest, PassAbandoned
from flexpert_workers.messages.generation import Finish, GenerationReply, Rejected, Submit, TokenOutput

logger = logging.getLogger(__name__)

Outbox = dict[bytes, list[GenerationReply]]
"""What each source gets from a step."""


class EngineStatistics(NamedTuple):
    """Counts for status.

    Attributes:
        waiting_tokens: Known tokens of the waiting requests.
        kv_use: Fraction of the cache's blocks that requests hold.
        expert_bytes: Expert weights resident in this process.
    """

    running: int
    waiting: int
    waiting_tokens: int
    kv_bytes: int
    kv_use: float
    dense_bytes: int
    expert_bytes: int
    generated_tokens: int
    passes: int
    abandoned_passes: int
    preemptions: int


class Engine:
    """Requests over one model. Used from one thread.

    Attributes:
        meter: What it measures; whoever calls `step` tells it how long that took.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EngineConfig,
        dispatcher: ExpertDispatcher,
        meter: EngineMeter | None = None,
    ) -> None:
        """Load the dense weights, ask the model what it caches, allocate the cache.

        Raises:
            UnsupportedArchitecture: The model cannot be served.
            CapacityError: The KV cache does not fit.
        """
        dense = load_dense(checkpoint)
        quicken(dense.model, max(1, config.threads))
        shapes = probe.probe(dense.model, checkpoint)
        context_length = probe.context_length(checkpoint)
        budget = config.kv_cache_bytes or _derived_kv_bytes(
            checkpoint, config, dense, context_length, bytes_per_token(shapes)
        )
        plan = plan_cache(shapes, budget, config.block_tokens, context_length)
        self._dense = dense
        self._runner = Runner(
            dense.model,
            checkpoint.moe_layer_modules,
            shapes,
            plan,
            config.block_tokens,
            dispatcher,
            paged_attentions(shapes, config.block_tokens, max(1, config.threads)),
        )
        limits = Limits(
            context_length=context_length,
            cache_tokens=(plan.num_blocks - 1) * config.block_tokens,
            vocab_size=int(dense.model.config.get_text_config().vocab_size),
            max_batch_tokens=config.max_batch_tokens,
            max_running=min(config.max_running, config.max_batch_tokens),
            max_waiting=config.max_waiting,
        )
        self._scheduler = Scheduler(limits, BlockPool(plan.num_blocks, config.block_tokens))
        self.meter = meter or EngineMeter()
        self._requests: dict[RequestKey, Request] = {}
        self._generated_tokens = 0
        self._passes = 0
        self._abandoned_passes = 0

    def add_request(self, submit: Submit, source: bytes = b"") -> None:
        """Let a request in.

        Raises:
            InvalidRequest: It can never be served, or its number is in use.
            Overloaded: The waiting queue is full.
        """
        key = RequestKey(source, submit.request)
        if key in self._requests:
            raise InvalidRequest("request", f"{submit.request} is in use")
        check(submit, self._scheduler.limits)
        request = Request(key, submit)
        self._scheduler.add(request)
        self._requests[key] = request
        self.meter.arrived(request)

    def cancel(self, number: int, source: bytes = b"") -> None:
        """Forget a request and free its blocks at once; unknown ones are ignored, they may just have ended."""
        request = self._requests.pop(RequestKey(source, number), None)
        if request is not None:
            self._scheduler.remove(request)
            self.meter.left(request)

    def cancel_source(self, source: bytes) -> None:
        """Forget all requests of a source."""
        for key in [key for key in self._requests if key.source == source]:
            self.cancel(key.number, source)

    def record(self, recorder: RoutingRecorder | None) -> None:
        """Note which experts the router chooses from the next pass on; None ends that."""
        if recorder is not self._runner.recorder:
            self._runner.record(recorder)

    @property
    def recorder(self) -> RoutingRecorder | None:
        """What notes them now."""
        return self._runner.recorder

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something."""
        return bool(self._requests)

    def step(self) -> Outbox:
        """One forward pass; every token it gave, and every request it ended.

        Raises:
            PassAbandoned: Experts did not answer. All requests are as before; step again.
        """
        scheduled = self._scheduler.schedule()
        self.meter.scheduled(scheduled)
        if not scheduled:
            return {}
        try:
            requests, draws = self._run(scheduled)
        except PassAbandoned:
            self._abandoned_passes += 1
            raise
        except Exception as error:  # noqa: BLE001 - whatever a request's numbers broke, the other requests go on
            return self._isolate(scheduled, error)
        return self._postprocess(scheduled, requests, draws)

    def statistics(self) -> EngineStatistics:
        """Counts for status."""
        blocks = self._scheduler.blocks
        return EngineStatistics(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            waiting_tokens=self._scheduler.waiting_tokens,
            kv_bytes=self._runner.cache.num_bytes,
            kv_use=blocks.num_used / blocks.num_blocks,
            dense_bytes=self._dense.dense_bytes,
            expert_bytes=self._dense.expert_bytes,
            generated_tokens=self._generated_tokens,
            passes=self._passes,
            abandoned_passes=self._abandoned_passes,
            preemptions=self._scheduler.num_preemptions,
        )

    def _run(self, scheduled: list[Scheduled]) -> tuple[list[Request], list[Draw | None]]:
        """The requests that reached their last token, and what each drew."""
        batch, logits = self._runner.run(scheduled)
        return batch.sampled, sample(logits, batch.sampled) if batch.sampled else []

    def _postprocess(self, scheduled: list[Scheduled], requests: list[Request], draws: list[Draw | None]) -> Outbox:
        self._passes += 1
        self._note_routing()
        self._scheduler.commit(scheduled)
        outbox: defaultdict[bytes, list[GenerationReply]] = defaultdict(list)
        for request, draw in zip(requests, draws, strict=True):
            if draw is None:
                outbox[request.key.source].append(self._refuse_numbers(request))
                continue
            self._generated_tokens += 1
            output = _advance(request, draw)
            outbox[request.key.source].append(output)
            if request.first_at is None:
                self.meter.first_token(request)
            if output.finish is not None:
                self.meter.finished(request)
                self._forget(request)
        return dict(outbox)

    def _note_routing(self) -> None:
        recorder = self._runner.recorder
        if recorder is not None:
            recorder.commit()
            if recorder.remaining == 0:
                self._runner.record(None)

    def _isolate(self, scheduled: list[Scheduled], error: Exception) -> Outbox:
        """Try the requests of a broken pass one by one; end the one that was alone."""
        if len(scheduled) > 1:
            logger.warning("a pass of %d requests broke and is tried one by one: %r", len(scheduled), error)
            for request, _ in scheduled:
                request.suspect = True
            return {}
        request = scheduled[0].request
        logger.error("request %d (%s) broke its pass", request.key.number, request.request_id, exc_info=error)
        self._forget(request)
        return {request.key.source: [_broken(request, f"{type(error).__name__}: {error}")]}

    def _refuse_numbers(self, request: Request) -> Rejected:
        """End a request whose logits are not finite, and let nobody read what it left in the cache."""
        self._scheduler.blocks.withdraw(request.blocks)
        self._runner.cache.scrub(request.blocks)
        self._forget(request)
        return _broken(request, "the model gave logits that are not finite")

    def _forget(self, request: Request) -> None:
        self.meter.left(request)
        self._scheduler.remove(request)
        del self._requests[request.key]


def _advance(request: Request, draw: Draw) -> TokenOutput:
    """Add the token drawn to the request, and say so."""
    position = request.num_output
    request.append(draw.token)
    finish = None
    if draw.token in request.stop_token_ids:
        finish = Finish.STOP
    elif request.num_output == request.sampling.max_tokens:
        finish = Finish.LENGTH
    return TokenOutput(
        request=request.key.number,
        token_ids=(draw.token,),
        position=position,
        logprobs=() if draw.logprob is None else (draw.logprob,),
        top=() if draw.logprob is None else (draw.top,),
        finish=finish,
        cached_tokens=request.num_cached or 0,
    )


def _broken(request: Request, message: str) -> Rejected:
    return Rejected(request.key.number, "error", message)


def _derived_kv_bytes(
    checkpoint: Checkpoint, config: EngineConfig, dense: DenseModel, context_length: int, token_bytes: int
) -> int:
    hidden = int(dense.model.config.get_text_config().hidden_size)
    return derive_kv_bytes(
        limit_bytes=cgroup_memory_limit(),
        dense_bytes=dense.dense_bytes,
        # Per row some dozen hidden-sized intermediates are alive at once; logits exist for sampled rows only.
        pass_bytes=config.max_batch_tokens * hidden * 16 * 4,
        bytes_per_token=token_bytes,
        useful_tokens=config.max_running * context_length,
    )
