"""Makes experts resident in the background while the worker serves: from a peer's memory, else from the file.

The control thread starts and asks; one thread of the `Preparer` copies, one operation after the other.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from flexpert_workers.errors import FlexpertError
from flexpert_workers.expert.store import ExpertKey, ExpertStore, ResidentExpert
from flexpert_workers.messages.control import Prepare, PrepareStatus

FetchFromPeer = Callable[[str, ExpertKey], bytearray]
"""(control endpoint, expert) → its page; raises FlexpertError or OSError when the peer cannot give it intact."""
_REMEMBERED_OPERATIONS = 32
_UNDO_TIMEOUT_S = 10.0


@dataclass
class _Operation:
    """A `Prepare` being carried out; guarded by the preparer's condition."""

    request: Prepare
    wanted: list[ExpertKey]
    brought: list[ExpertKey] = field(default_factory=list)
    from_peers: int = 0
    done: bool = False
    error: str = ""
    cancelled: bool = False


class Preparer:
    """Prepares operations for a store.

    Args:
        read_file: Reads an expert's page from the checkpoint.
        fetch_from_peer: Copies one from another worker.
        make_resident: Turns a page into a resident expert.
    """

    def __init__(
        self,
        store: ExpertStore,
        read_file: Callable[[int, int], bytearray],
        fetch_from_peer: FetchFromPeer,
        make_resident: Callable[[bytearray], ResidentExpert],
    ) -> None:
        self._store = store
        self._read_file = read_file
        self._fetch_from_peer = fetch_from_peer
        self._make_resident = make_resident
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
            num_brought = 0 if operation.error else len(operation.brought)
            return PrepareStatus(
                operation=operation_id,
                done=operation.done,
                copied_bytes=num_brought * self._store.page_bytes,
                copied_experts=num_brought,
                from_peers=operation.from_peers,
                error=operation.error,
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

    # ------------------------------------------------------------------ the thread that copies

    def _run(self) -> None:
        while (operation := self._queue.get()) is not None:
            error = self._carry_out(operation)
            self._store.release(set(operation.wanted) - set(operation.brought))
            if error:
                self._store.drop(operation.brought, timeout_s=_UNDO_TIMEOUT_S)
            with self._changed:
                operation.error = error
                operation.done = True
                if error:
                    operation.brought.clear()
                self._changed.notify_all()

    def _carry_out(self, operation: _Operation) -> str:
        """Bring every wanted expert; the reason in a sentence when that failed."""
        peers = {(layer, index): endpoints for layer, index, endpoints in operation.request.experts}
        for key in operation.wanted:
            if operation.cancelled:
                return ""
            try:
                page, from_peer = self._bring(key, peers[key])
                expert = self._make_resident(page)
            except (FlexpertError, OSError, ValueError, MemoryError) as error:
                return f"expert {key} could not be made resident: {error}"
            self._store.add(key, expert)
            with self._changed:
                operation.brought.append(key)
                operation.from_peers += from_peer
        return ""

    def _bring(self, key: ExpertKey, peers: tuple[str, ...]) -> tuple[bytearray, bool]:
        for endpoint in peers:
            try:
                return self._fetch_from_peer(endpoint, key), True
            except (FlexpertError, OSError):
                continue
        return self._read_file(*key), False
