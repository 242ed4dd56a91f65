"""Which requests go through the next pass, with how many tokens: decode first, prefill in chunks, under a budget.

Blocks are lent here. When they run out the newest running request is preempted: it gives its blocks back and is
computed again later (what nobody overwrote meanwhile is found by its content).
"""

from collections import deque
from typing import NamedTuple

from flexpert_workers.engine.blocks import ROOT, BlockPool, block_digest
from flexpert_workers.engine.request import Limits, Request
from flexpert_workers.errors import Overloaded


class Scheduled(NamedTuple):
    """`num_tokens` tokens of a request, from `request.num_computed` on, in the next pass."""

    request: Request
    num_tokens: int

    @property
    def stop(self) -> int:
        """Tokens of the request that are computed once the pass is."""
        return self.request.num_computed + self.num_tokens

    @property
    def samples(self) -> bool:
        """Whether the pass reaches the request's last known token, so that its logits give the next one."""
        return self.num_tokens == self.request.num_remaining


class Scheduler:
    """Running requests in order of admission, waiting ones in order of arrival (preempted ones before them)."""

    def __init__(self, limits: Limits, blocks: BlockPool) -> None:
        self.limits = limits
        self.blocks = blocks
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self.num_preemptions = 0

    @property
    def waiting_tokens(self) -> int:
        """Known tokens of the waiting requests."""
        return sum(request.num_tokens for request in self.waiting)

    def add(self, request: Request, retry_after_s: float = 1.0) -> None:
        """Queue a checked request.

        Raises:
            Overloaded: The waiting queue is full.
        """
        if len(self.waiting) >= self.limits.max_waiting:
            raise Overloaded(f"{len(self.waiting)} requests are waiting", retry_after_s)
        self.waiting.append(request)

    def schedule(self) -> list[Scheduled]:
        """The next pass: decoding requests first, then running prefills, then newly admitted requests."""
        suspect = next((request for request in self.running if request.suspect), None)
        if suspect is not None:
            return self._schedule_alone(suspect)
        chosen: dict[Request, int] = {}
        budget = self._schedule_decodes(chosen)
        budget = self._schedule_prefills(chosen, budget)
        self._admit(chosen, budget)
        return [Scheduled(request, num_tokens) for request, num_tokens in chosen.items()]

    def commit(self, scheduled: list[Scheduled]) -> None:
        """The pass was computed: its tokens are in the cache, and full blocks can be found by their content."""
        size = self.blocks.block_tokens
        for request, num_tokens in scheduled:
            request.num_computed += num_tokens
            request.suspect = False
            for index in range(len(request.digests), request.num_computed // size):
                parent = request.digests[-1] if request.digests else ROOT
                digest = block_digest(parent, request.tokens[index * size : (index + 1) * size])
                request.digests.append(digest)
                self.blocks.publish(request.blocks[index], digest)

    def remove(self, request: Request) -> None:
        """Forget a running or waiting request and free its blocks at once."""
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._give_back(request)

    def _schedule_alone(self, request: Request) -> list[Scheduled]:
        if not self._hold_blocks(request, {}):
            return []
        return [Scheduled(request, min(request.num_remaining, self.limits.max_batch_tokens))]

    def _schedule_decodes(self, chosen: dict[Request, int]) -> int:
        budget = self.limits.max_batch_tokens
        for request in [request for request in self.running if request.num_remaining == 1]:
            if budget == 0:
                break
            if request.blocks and self._hold_blocks(request, chosen):
                chosen[request] = 1
                budget -= 1
        return self.limits.max_batch_tokens - len(chosen)

    def _schedule_prefills(self, chosen: dict[Request, int], budget: int) -> int:
        for request in self.running:
            if budget and request.num_remaining > 1:
                chosen[request] = min(request.num_remaining, budget)
                budget -= chosen[request]
        return budget

    def _admit(self, chosen: dict[Request, int], budget: int) -> None:
        while budget and self.waiting and len(self.running) < self.limits.max_running:
            request = self.waiting[0]
            if (request.suspect and chosen) or not self._lend_prompt(request):
                return
            self.running.append(self.waiting.popleft())
            chosen[request] = min(request.num_remaining, budget)
            budget -= chosen[request]
            if request.suspect:
                return

    def _lend_prompt(self, request: Request) -> bool:
        """Lend a waiting request the blocks of all its known tokens, cached ones first; False where they lack."""
        # The last known token always goes through the model: its logits are wanted.
        cached, digests = self.blocks.match(request.tokens[: request.num_tokens - 1])
        num_new = self.blocks.blocks_for(request.num_tokens) - len(cached)
        # One block for each running request stays free, or the next decodes would preempt this request again.
        if num_new + self.blocks.num_free_of(cached) + len(self.running) > self.blocks.num_free:
            return False
        self.blocks.take(cached)
        request.blocks = cached + self.blocks.allocate(num_new)
        request.digests = digests
        request.num_computed = len(cached) * self.blocks.block_tokens
        if request.num_cached is None:
            request.num_cached = min(request.num_computed, request.num_prompt)
        return True

    def _hold_blocks(self, request: Request, chosen: dict[Request, int]) -> bool:
        """Make sure that the request has a block for each known token, preempting newer ones, at worst itself."""
        missing = self.blocks.blocks_for(request.num_tokens) - len(request.blocks)
        while missing > self.blocks.num_free:
            victim = self.running[-1]
            self._preempt(victim, chosen)
            if victim is request:
                return False
        request.blocks += self.blocks.allocate(missing)
        return True

    def _preempt(self, victim: Request, chosen: dict[Request, int]) -> None:
        self.running.remove(victim)
        chosen.pop(victim, None)
        self._give_back(victim)
        self.waiting.appendleft(victim)
        self.num_preemptions += 1

    def _give_back(self, request: Request) -> None:
        self.blocks.release(request.blocks)
        request.blocks = []
        request.digests = []
        request.num_computed = 0
