"""Computes the experts of a layer on the workers that hold them. The engine calls it once per MoE layer and pass.

`DispatchClient.dispatch` is the whole life of a dispatch: assign the pairs by the newest table, send to every worker
concerned, then wait; whatever a worker could not do is assigned again, by the newest table of that moment, until every
pair is answered or the deadline has passed. The table may change at any instant and no pass notices.
"""

import math
import os
import select
import time
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
import torch

from flexpert_workers.dispatch.link import WorkerLink
from flexpert_workers.dispatch.refresh import Refresher
from flexpert_workers.dispatch.routes import NOWHERE, Routes, present
from flexpert_workers.dispatch.statistics import DispatchTimes, LayerStatistics
from flexpert_workers.dispatch.tables import TableHolder
from flexpert_workers.dispatch.work import LayerInput, Part, Work
from flexpert_workers.errors import PassAbandoned
from flexpert_workers.messages import UNREADABLE
from flexpert_workers.messages.dispatch import DispatchReply, DispatchRequest, Status
from flexpert_workers.routing import NO_EPOCH, Epoch
from flexpert_workers.transport import from_frame
from flexpert_workers.transport.frames import dtype_name

_decoder = msgspec.msgpack.Decoder(DispatchReply)
_encoder = msgspec.msgpack.Encoder()
_LACKING_S = 0.1
_POLL_S = 0.005


class DispatchClient:
    """Dispatches to the workers of one pool. Used from one thread; `statistics` from any.

    Args:
        pool: uid of the MoEDeployment.
        digest: Of the checkpoint.
        tables: Where the newest routing table is.
        deadline_s: After which a dispatch is given up.
        hang_timeout_s: After which a worker that holds its connection but does not answer counts as lost.
        refresh: Asks for a newer table to be published; it must not wait, and is not called again too soon.
        clock: Monotonic seconds.
        poll_s: For how long a dispatch polls for answers before it sleeps until one comes. Waking up takes a core a
            fraction of a millisecond; polling takes the core.
    """

    def __init__(
        self,
        pool: str,
        digest: str,
        tables: TableHolder,
        *,
        deadline_s: float,
        hang_timeout_s: float,
        refresh: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        poll_s: float = 0.0,
    ) -> None:
        self._pool = pool
        self._digest = digest
        self._tables = tables
        self._deadline_s = deadline_s
        self._hang_timeout_s = hang_timeout_s
        self._refresh = Refresher(refresh, clock)
        self._clock = clock
        self._poll_s = poll_s
        self._poller = select.poll()
        self._links: dict[str, WorkerLink] = {}
        self._routes: Routes | None = None
        self._lacking: dict[tuple[str, int, int], float] = {}
        self._any_lost = False
        self._num_requests = 0
        self._times = DispatchTimes()

    def dispatch(
        self, layer: int, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Compute the weighted sum of the chosen experts for every row.

        Args:
            layer: 0-based among the MoE layers.
            hidden: [rows, hidden].
            top_k_index: [rows, k] expert indices; the number of experts means no expert.
            top_k_weights: [rows, k].

        Returns:
            [rows, hidden] in the type and on the device of `hidden`, accumulated in float32.

        Raises:
            PassAbandoned: Some experts had no worker that answered before the deadline.
        """
        started = time.perf_counter_ns()
        work = self._begin(LayerInput.of(layer, hidden, top_k_index, top_k_weights))
        while True:
            self._send(work)
            if work.is_done:
                break
            self._wait(work)
        result = work.result() if hidden.is_cpu else work.result().to(hidden.device)
        self._times.add(layer, (time.perf_counter_ns() - started) / 1000, work.compute_us)
        return result

    def statistics(self) -> tuple[LayerStatistics, ...]:
        """Times of the recent dispatches, per layer."""
        return self._times.summary()

    @property
    def dispatch_s(self) -> float:
        """Seconds that dispatches have taken since the start; for the dispatching thread."""
        return self._times.total_s

    def keep_times(self) -> None:
        """From now on keep each dispatch's times for `take_times`."""
        self._times.kept = []

    def take_times(self) -> list[tuple[int, float, float, int]]:
        """What was kept since the last call; see `DispatchTimes.kept`."""
        kept = self._times.kept
        if not kept:
            return []
        self._times.kept = []
        return kept

    def clear_statistics(self) -> None:
        """Start counting anew."""
        self._times.clear()

    def close(self) -> None:
        """Close all connections."""
        self._close_links_except(set())

    # ------------------------------------------------------------------ send

    def _begin(self, layer_input: LayerInput) -> Work:
        self._num_requests += 1
        if self._routes is not None and len(self._links) > len(self._routes.table.workers):
            self._close_links_except({address.incarnation for address in self._routes.table.workers})
        everything = np.arange(len(layer_input.experts))
        return Work(self._num_requests, layer_input, self._clock() + self._deadline_s, everything)

    def _send(self, work: Work) -> None:
        """Ask workers for the pairs that are unsent, as far as the newest table names a worker that can be tried."""
        routes = self._newest_routes() if len(work.unsent) else None
        if routes is None:
            return
        self._leave_out_no_expert(work, routes.table.num_experts)
        pairs, layer = work.unsent, work.layer_input.layer
        lost, lacking = self._unusable(routes, work)
        rows = work.layer_input.rows_of(pairs)
        assigned = routes.assign(layer, work.layer_input.experts[pairs], rows, lost, lacking)
        work.unsent = pairs[assigned == NOWHERE]
        asked = present(assigned)
        for position in asked:
            theirs = pairs if len(asked) == 1 and not len(work.unsent) else pairs[assigned == position]
            self._send_part(work, routes, position, theirs)
        work.attempt += bool(asked)

    def _send_part(self, work: Work, routes: Routes, position: int, pairs: "np.typing.NDArray[np.int64]") -> None:
        address = routes.table.workers[position]
        part = Part.of(
            work.layer_input,
            pairs,
            attempt=work.attempt,
            position=position,
            incarnation=address.incarnation,
            hang_at=self._clock() + self._hang_timeout_s,
        )
        header = DispatchRequest(
            pool=self._pool,
            digest=self._digest,
            incarnation=address.incarnation,
            request=work.request,
            attempt=part.attempt,
            epoch=routes.table.epoch,
            layer=work.layer_input.layer,
            rows=part.num_rows,
            dtype=dtype_name(work.layer_input.hidden.dtype),
        )
        work.parts[address.incarnation] = part
        link = self._links[address.incarnation]
        link.send([_encoder.encode(header), *part.frames])
        if link.is_broken:
            self._lose(work, address.incarnation)

    def _newest_routes(self) -> Routes | None:
        """The routes of the newest table, read once; links follow it."""
        table = self._tables.current()
        if table is not None and (self._routes is None or self._routes.table is not table):
            self._routes = Routes(table)
            self._refresh.table_changed()
            self._lacking.clear()
            for address in table.workers:
                if address.incarnation not in self._links:
                    self._links[address.incarnation] = WorkerLink(self._poller, address)
        return self._routes

    def _unusable(self, routes: Routes, work: Work) -> tuple[frozenset[int], frozenset[tuple[int, int]]]:
        """Positions of workers that cannot be tried now, and (position, expert) of replicas that are not there.

        A worker that still computes a part of this dispatch gets no second one.
        """
        if not (self._lacking or work.attempt or self._any_lost):
            return frozenset(), frozenset()
        now = self._clock()
        self._lacking = {key: until for key, until in self._lacking.items() if until > now}
        self._any_lost = any(link.usable_at > now for link in self._links.values())
        incarnations = {address.incarnation: position for position, address in enumerate(routes.table.workers)}
        lost = frozenset(
            position
            for incarnation, position in incarnations.items()
            if self._links[incarnation].usable_at > now or incarnation in work.parts or incarnation in work.refused_by
        )
        lacking = frozenset(
            (incarnations[incarnation], index)
            for incarnation, layer, index in self._lacking
            if layer == work.layer_input.layer and incarnation in incarnations
        )
        return lost, lacking

    def _leave_out_no_expert(self, work: Work, num_experts: int) -> None:
        if work.attempt == 0 and work.layer_input.experts.max(initial=0) >= num_experts:
            work.unsent = work.unsent[work.layer_input.experts < num_experts]

    # ------------------------------------------------------------------ wait

    def _wait(self, work: Work) -> None:
        """Wait for something that lets the dispatch go on: a reply, a loss, a newer table, the end of a back-off."""
        now = self._clock()
        if now >= work.deadline:
            raise self._abandoned(work, "no worker answered in time")
        if len(work.unsent):
            self._refresh.ask()
        if not work.parts:
            epoch = self._routes.table.epoch if self._routes is not None else NO_EPOCH
            self._wait_for_table(work, epoch, now)
            return
        until = min(work.deadline, *(part.hang_at for part in work.parts.values()))
        timeout_s = min(until - now, _POLL_S) if len(work.unsent) else until - now
        ready = self._ready(timeout_s)
        if ready:
            self._receive(work, ready)
        else:
            self._lose_hung(work)

    def _ready(self, timeout_s: float) -> dict[int, int]:
        """What can be done without waiting, by descriptor; empty after `timeout_s`."""
        more = [descriptor for link in self._links.values() if (descriptor := link.has_more) is not None]
        if more:
            return {**dict.fromkeys(more, select.POLLIN), **dict(self._poller.poll(0))}
        polled_until = self._clock() + min(self._poll_s, timeout_s)
        while self._clock() < polled_until:
            ready = self._poller.poll(0)
            if ready:
                return dict(ready)
            os.sched_yield()
        return dict(self._poller.poll(math.ceil(max(timeout_s, 0) * 1000)))

    def _wait_for_table(self, work: Work, epoch: Epoch, now: float) -> None:
        """Nothing is under way: wait for a newer table, or until a worker may be tried again."""
        if work.refused_by and not self._others_may_come(work):
            raise self._abandoned(work, "; ".join(work.refused_by.values()))
        backs = [link.usable_at for link in self._links.values() if link.usable_at > now]
        wake_at = min([work.deadline, now + _LACKING_S, *backs])
        self._tables.wait_newer(epoch, max(wake_at - now, 0.001))

    def _others_may_come(self, work: Work) -> bool:
        """Whether the table names a worker for what is unsent that has not failed to compute in this dispatch."""
        if self._routes is None:
            return True
        incarnations = [address.incarnation for address in self._routes.table.workers]
        failed = frozenset(i for i, incarnation in enumerate(incarnations) if incarnation in work.refused_by)
        asked, rows = work.layer_input, work.layer_input.rows_of(work.unsent)
        assigned = self._routes.assign(asked.layer, asked.experts[work.unsent], rows, failed, frozenset())
        return bool((assigned != NOWHERE).any())

    def _receive(self, work: Work, ready: Mapping[int, int]) -> None:
        """Take one message of each worker; what else has arrived makes the next poll return at once."""
        for incarnation, link in self._links.items():
            frames = link.attend(ready)
            part = work.parts.get(incarnation)
            if frames is not None and part is not None:
                self._take_reply(work, part, frames)
            elif link.is_broken:
                self._lose(work, incarnation)

    def _take_reply(self, work: Work, part: Part, frames: list[memoryview]) -> None:
        try:
            reply = _decoder.decode(frames[0])
            sums = self._sums(part, reply, frames, work.layer_input.hidden.shape[1])
        except (*UNREADABLE, ValueError, IndexError):
            self._lose(work, part.incarnation)  # it speaks another language
            return
        if (reply.request, reply.attempt) != (work.request, part.attempt):
            return  # of an attempt that was given up
        if sums is not None:
            work.answers.append((part, sums))
            work.compute_us = max(work.compute_us, reply.compute_us)
            self._links[part.incarnation].succeeded()
            del work.parts[part.incarnation]
            return
        work.take_back(part)
        now = self._clock()
        match reply.status:
            case Status.NOT_RESIDENT:
                lacking = ((part.incarnation, work.layer_input.layer, index) for index in reply.missing)
                self._lacking.update(dict.fromkeys(lacking, now + _LACKING_S))
            case Status.REFUSED:
                self._leave_alone(part.incarnation)
            case _:
                work.refused_by[part.incarnation] = reply.reason
        self._refresh.ask()

    @staticmethod
    def _sums(part: Part, reply: DispatchReply, frames: list[memoryview], hidden_size: int) -> torch.Tensor | None:
        """The sums that a reply to this very attempt carries."""
        if reply.status is not Status.OK or reply.attempt != part.attempt:
            return None
        return from_frame(frames[1], torch.float32, (part.num_rows, hidden_size))

    def _lose_hung(self, work: Work) -> None:
        now = self._clock()
        for part in tuple(work.parts.values()):
            if part.hang_at <= now:
                self._lose(work, part.incarnation)

    def _lose(self, work: Work, incarnation: str) -> None:
        """What was sent to this worker will not be answered: take it back."""
        self._leave_alone(incarnation)
        part = work.parts.get(incarnation)
        if part is not None:
            work.take_back(part)
        self._refresh.ask()

    def _leave_alone(self, incarnation: str) -> None:
        self._links[incarnation].failed(self._clock())
        self._any_lost = True

    def _close_links_except(self, incarnations: set[str]) -> None:
        for incarnation in self._links.keys() - incarnations:
            self._links.pop(incarnation).close()

    def _abandoned(self, work: Work, why: str) -> PassAbandoned:
        experts = work.unanswered()
        named = ", ".join(map(str, experts[:8])) + (", …" if len(experts) > 8 else "")
        return PassAbandoned(f"experts {named} were not computed: {why}", experts)
