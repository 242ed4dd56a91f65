"""Makes experts resident in the background while the worker serves: borrows their pages from the page owner.

The control thread starts and asks; one thread of the `Preparer` maps what the owner lends, one operation after the
other. The owner attaches what it has, and copies the rest from peers, else from the file.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from flexpert_proto import logs
from flexpert_workers import threads
from flexpert_workers.errors import FlexpertError
from flexpert_workers.expert.store import ExpertStore
from flexpert_workers.memory.backend import ExpertKey
from flexpert_workers.memory.loans import Loan, Origin, PageLender, Want
from flexpert_workers.messages.control import Prepare, PrepareStatus

_log = logging.getLogger(__name__)

_REMEMBERED_OPERATIONS = 32
_UNDO_TIMEOUT_S = 10.0
_STEPS = ("copy", "verify", "map", "populate", "warm-up")
"""Copying and checksums, over all readers; the compute thread's standstill; beside it, populating mappings, and one
row through each expert."""


@dataclass
class _Operation:
    """A `Prepare` being carried out; guarded by the preparer's condition."""

    request: Prepare
    wanted: list[ExpertKey]
    brought: list[ExpertKey] = field(default_factory=list)
    origins: dict[Origin, int] = field(default_factory=lambda: dict.fromkeys(Origin, 0))
    step_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_STEPS, 0.0))
    done: bool = False
    error: str = ""
    cancelled: bool = False


class Preparer:
    """Prepares operations for a store, with pages of `lender`."""

    def __init__(self, store: ExpertStore, lender: PageLender) -> None:
        self._store = store
        self._lender = lender
        self._operations: dict[str, _Operation] = {}
        self._unsettled: set[str] = set()
        self._changed = threading.Condition()
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="prepare", daemon=True)

    def start(self) -> None:
        """Start the thread that copies."""
        self._thread.start()

    def stop(self) -> None:
        """Cancel what runs and end the thread."""
        with self._changed:
            for operation in self._operations.values():
                operation.cancelled = True
        self._queue.put(None)
        self._thread.join()

    def prepare(self, request: Prepare) -> None:
        """Begin an operation; one that is known already, and has not failed, goes on as it is.

        Raises:
            CapacityError: The experts do not fit in the budget.
            ValueError: The model has no such expert.
        """
        known = self._operations.get(request.operation)
        if known is not None and not known.error:
            return
        for layer, index, _ in request.experts:
            if not (0 <= layer < self._store.num_layers and 0 <= index < self._store.num_experts):
                raise ValueError(f"the model has no expert ({layer}, {index})")
        wanted = self._store.reserve((layer, index) for layer, index, _ in request.experts)
        operation = _Operation(request, wanted)
        with self._changed:
            self._operations.pop(request.operation, None)
            self._operations[request.operation] = operation
            self._unsettled.add(request.operation)
            while len(self._operations) > _REMEMBERED_OPERATIONS:
                del self._operations[next(iter(self._operations))]
        self._queue.put(operation)

    def status(self, operation_id: str) -> PrepareStatus | None:
        """How far an operation is; None when it is not known."""
        with self._changed:
            operation = self._operations.get(operation_id)
            if operation is None:
                return None
            num_copied = operation.origins[Origin.PEER] + operation.origins[Origin.FILE]
            return PrepareStatus(
                operation=operation_id,
                done=operation.done,
                copied_bytes=num_copied * self._store.page_bytes,
                copied_experts=len(operation.brought),
                from_peers=operation.origins[Origin.PEER],
                error=operation.error,
                attached_experts=operation.origins[Origin.ATTACHED],
                step_seconds=dict(operation.step_seconds),
            )

    def cancel(self, operation_id: str, timeout_s: float) -> tuple[ExpertKey, ...] | None:
        """Stop an operation and forget it; the experts it brought, or None when it did not stop in time."""
        with self._changed:
            operation = self._operations.get(operation_id)
            if operation is None:
                return ()
            operation.cancelled = True
            if not self._changed.wait_for(lambda: operation.done, timeout_s):
                return None
            self._operations.pop(operation_id, None)
            self._unsettled.discard(operation_id)
            return tuple(operation.brought)

    def settle(self) -> None:
        """A newer table was stored: from now on it alone says which of the experts prepared so far are to be kept."""
        with self._changed:
            running = {name for name, operation in self._operations.items() if not operation.done}
            self._unsettled &= running

    def unsettled(self) -> frozenset[ExpertKey]:
        """Experts of operations that no table speaks of yet."""
        with self._changed:
            known = (self._operations[name] for name in self._unsettled if name in self._operations)
            return frozenset((layer, index) for operation in known for layer, index, _ in operation.request.experts)

    # ------------------------------------------------------------------ the thread that maps

    def _run(self) -> None:
        threads.yield_to_serving()
        while (operation := self._queue.get()) is not None:
            with logs.saying(operation=operation.request.operation):
                self._finish(operation, self._carry_out(operation))

    def _finish(self, operation: _Operation, error: str) -> None:
        """It is done; an error leaves nothing of it."""
        self._store.unreserve(set(operation.wanted) - set(operation.brought))
        if error:
            _log.warning("%s", error)
            self._store.drop(operation.brought, timeout_s=_UNDO_TIMEOUT_S)
        else:
            origins = (operation.origins[origin] for origin in (Origin.ATTACHED, Origin.PEER, Origin.FILE))
            _log.info("prepared experts: %d attached, %d copied from peers, %d read from the file", *origins)
        with self._changed:
            operation.error = error
            operation.done = True
            if error:
                operation.brought.clear()
                operation.origins = dict.fromkeys(Origin, 0)
            self._changed.notify_all()

    def _carry_out(self, operation: _Operation) -> str:
        """Bring every wanted expert; the reason in a sentence when that failed."""
        peers = {(layer, index): endpoints for layer, index, endpoints in operation.request.experts}
        wants = [Want(key, peers[key]) for key in operation.wanted]
        try:
            with contextlib.closing(self._lender.acquire(wants, lambda: operation.cancelled)) as loans:
                for loan in _until_cancelled(loans, operation):
                    self._hold(operation, loan)
        except (FlexpertError, OSError, ValueError, MemoryError) as error:
            return f"experts could not be made resident: {error}"
        return ""

    def _hold(self, operation: _Operation, loan: Loan) -> None:
        try:
            held = self._store.hold(loan)
        except BaseException:
            self._lender.release([loan.key])
            raise
        with self._changed:
            operation.brought.append(loan.key)
            operation.origins[loan.origin] += 1
            for step, seconds in zip(_STEPS, (loan.copy_s, loan.verify_s, *held), strict=True):
                operation.step_seconds[step] += seconds


def _until_cancelled(loans: Iterator[Loan], operation: _Operation) -> Iterator[Loan]:
    while not operation.cancelled:
        loan = next(loans, None)
        if loan is None:
            return
        yield loan
