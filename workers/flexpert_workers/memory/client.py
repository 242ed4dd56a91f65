"""A worker's connection to the page owner of its domain: borrows pages, and survives the owner.

The preparing thread of a worker calls `acquire`, any thread `release`. A thread of the client's own watches the
connection: when the owner dies, what is mapped stays mapped, and as soon as another owner serves at the same path the
descriptors are handed back to it, so that it has the pages without reading a byte.
"""

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

from flexpert_workers.errors import CapacityError, CheckpointError, FlexpertError, PageError
from flexpert_workers.memory.backend import ExpertKey, PageBackend
from flexpert_workers.memory.loans import Loan, Origin, Want
from flexpert_workers.memory.passing import MOST_DESCRIPTORS, Link
from flexpert_workers.messages import UNREADABLE
from flexpert_workers.messages import owner as messages

_log = logging.getLogger(__name__)
_decoder: msgspec.msgpack.Decoder[messages.OwnerReply] = msgspec.msgpack.Decoder(messages.OwnerReply)
_ERRORS: dict[str, type[FlexpertError]] = {"capacity": CapacityError, "checkpoint": CheckpointError, "page": PageError}
_Reply = TypeVar("_Reply", bound=msgspec.Struct)
_BEAT_S = 0.1
_SHORTEST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0
_TELL_S = 0.25
_TELL_AGAIN_S = 1.0
_WORTH_TELLING = 0.05
_GREETING_S = 10.0
_SILENCE_S = 10.0
"""Without a sign of life for that long an owner is taken for one that hangs; it gives one every few seconds."""
_HAND_BACK_S = 60.0
_HAND_BACK_BYTES = 1 << 30
"""Pages handed back at a time, and how long the owner may take to read them: it checks their checksums."""


class OwnerClient:
    """A `PageLender` over a UNIX socket.

    Args:
        path: Of the owner's socket.
        hello: Who borrows, and pages of what.
        busy: How busy the borrower is with serving, from 0 to 1; the owner is told.
        greeting_s: An owner that has accepted a borrower answers within this time, or is taken for one that hangs.
    """

    def __init__(
        self,
        path: str,
        hello: messages.Hello,
        backend: PageBackend,
        busy: Callable[[], float] = lambda: 0.0,
        greeting_s: float = _GREETING_S,
    ) -> None:
        self._path = path
        self._greeting_s = greeting_s
        self._hello = hello
        self._backend = backend
        self._busy = busy
        self._lock = threading.Lock()  # of the connection
        self._holding = threading.Lock()  # of what is held; taken after the other
        self._link: Link | None = None
        self._refusal = "it was not tried"
        self._welcome = messages.Welcome("", "", 0)
        self._held: dict[ExpertKey, Loan] = {}
        self._released: deque[ExpertKey] = deque()
        self._descriptors: deque[int] = deque()
        self._ended = threading.Event()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watcher = threading.Thread(target=self._watch, name="owner-watch", daemon=True)

    @property
    def domain(self) -> str:
        """See `PageLender`."""
        return self._welcome.domain

    @property
    def transfer_endpoint(self) -> str:
        """See `PageLender`."""
        return self._welcome.transfer_endpoint

    @property
    def owner_pid(self) -> int:
        """Process id of the owner that was last connected to."""
        return self._welcome.pid

    def connect(self, timeout_s: float) -> None:
        """Connect, waiting for an owner that is still being started.

        Raises:
            ConnectionError: None serves at the path within `timeout_s`.
            FlexpertError: It does not lend pages of this checkpoint.
        """
        deadline, pause = time.monotonic() + timeout_s, _SHORTEST_PAUSE_S
        while not self._try_to_connect():
            if time.monotonic() > deadline:
                raise ConnectionError(f"no page owner serves at {self._path}: {self._refusal}; is its process running?")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        self._watcher.start()

    def acquire(
        self, wants: Sequence[Want], cancelled: Callable[[], bool] = lambda: False
    ) -> Generator[Loan, None, None]:
        """See `PageLender`; may be stopped early by closing the iterator."""
        try:
            with self._lock, self._hanging_up():
                yield from self._acquire(wants, cancelled)
        finally:
            self._tell_released()

    def release(self, keys: Iterable[ExpertKey]) -> None:
        """See `PageLender`; while pages are being acquired it is told with the next acknowledgement."""
        with self._holding:
            for loan in [self._held.pop(key) for key in keys if key in self._held]:
                loan.page.close()
                self._released.append(loan.key)
        self._tell_released()

    def drop_idle(self) -> int:
        """Have the owner drop every page that nobody borrows; returns the bytes freed."""
        with self._lock, self._hanging_up():
            return self._ask(messages.DropIdle(), messages.Done).freed

    def owner_state(self) -> messages.OwnerState:
        """What the owner has."""
        with self._lock, self._hanging_up():
            return self._ask(messages.AskOwner(), messages.OwnerState)

    def close(self) -> None:
        """See `PageLender`; the connection ends, and with it every lease."""
        if self._ended.is_set():
            return
        self._ended.set()
        os.eventfd_write(self._bell, 1)
        if self._watcher.ident is not None:
            self._watcher.join()
        with self._lock, self._holding:
            self._disconnect()
            for loan in self._held.values():
                loan.page.close()
            self._held.clear()
        os.close(self._bell)

    # ------------------------------------------------------------------ one exchange after the other, under the lock

    def _acquire(self, wants: Sequence[Want], cancelled: Callable[[], bool]) -> Generator[Loan, None, None]:
        self._send_released()
        self._send(messages.Acquire(tuple((*want.key, want.peers) for want in wants)))
        while not isinstance(lent := self._next_lent(cancelled), messages.Done):
            waiting = deque(self._borrowed(lent))
            try:
                while waiting:
                    loan = waiting.popleft()
                    with self._holding:
                        self._held[loan.key] = loan
                    yield loan
            except GeneratorExit:
                self._stop_early(waiting)
                raise
            self._send(messages.Received(True, self._take_released()))

    def _next_lent(self, cancelled: Callable[[], bool]) -> messages.OwnerReply:
        """What comes next of a request; it ends when it is cancelled while nothing comes."""
        deadline = time.monotonic() + _SILENCE_S
        while self._link is not None and not self._link.readable(_BEAT_S):
            if cancelled():
                self._stop_early(())
                return messages.Done()
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing for {_SILENCE_S:.0f} s")
        return self._receive()

    def _borrowed(self, lent: messages.OwnerReply) -> Iterator[Loan]:
        """The pages of a reply; each descriptor becomes a page's own."""
        if not isinstance(lent, messages.Lent) or len(lent.pages) != len(self._descriptors):
            raise ConnectionError(f"the page owner answered Acquire with {type(lent).__name__}")
        for page in lent.pages:
            adopted = self._backend.adopt(self._descriptors.popleft(), self._hello.page_bytes)
            origin = Origin(page.origin)
            yield Loan((page.layer, page.index), adopted, page.checksum, origin, page.copy_s, page.verify_s)

    def _stop_early(self, unused: Iterable[Loan]) -> None:
        """End a request under way, and give back what it brought and nobody took."""
        self._refuse(unused)
        self._send(messages.Received(False, self._take_released()))
        while not isinstance(lent := self._receive(), messages.Done):
            self._refuse(self._borrowed(lent))  # it was on its way

    def _refuse(self, loans: Iterable[Loan]) -> None:
        for loan in loans:
            loan.page.close()
            self._released.append(loan.key)

    def _send_released(self) -> None:
        if self._released:
            self._send(messages.Release(self._take_released()))

    def _take_released(self) -> tuple[ExpertKey, ...]:
        return tuple(self._released.popleft() for _ in range(len(self._released)))

    def _ask(self, request: messages.OwnerRequest, expected: type[_Reply], pages: Sequence[Loan] = ()) -> _Reply:
        self._send(request, [loan.page.descriptor() for loan in pages])
        reply = self._receive()
        if not isinstance(reply, expected):
            raise ConnectionError(f"the page owner answered {type(request).__name__} with {type(reply).__name__}")
        return reply

    def _send(self, request: messages.OwnerRequest, descriptors: Sequence[int] = ()) -> None:
        if self._link is None:
            raise ConnectionError(f"the page owner at {self._path} is gone")
        self._link.send(msgspec.msgpack.encode(request), descriptors)

    def _receive(self) -> messages.OwnerReply:
        """The next reply; its descriptors are in `_descriptors`. What the owner refused is raised."""
        if self._link is None:
            raise ConnectionError(f"the page owner at {self._path} is gone")
        payload, descriptors = self._link.receive()
        self._descriptors.extend(descriptors)
        reply = _decoder.decode(payload)
        if isinstance(reply, messages.Failed):
            raise _ERRORS.get(reply.kind, FlexpertError)(reply.reason)
        return reply

    # ------------------------------------------------------------------ the connection

    def _tell_released(self) -> None:
        """Tell the owner now, unless a request is under way: then whoever makes it tells."""
        while self._released and self._lock.acquire(blocking=False):
            try:
                with self._hanging_up():
                    self._send_released()
            except OSError:
                return  # the leases end with the connection
            finally:
                self._lock.release()

    @contextlib.contextmanager
    def _hanging_up(self) -> Iterator[None]:
        """What goes wrong with a connection is its end; the watcher makes another."""
        try:
            yield
        except (OSError, *UNREADABLE) as error:
            while self._descriptors:
                os.close(self._descriptors.popleft())
            if self._link is not None:
                with contextlib.suppress(OSError):
                    self._link.socket.shutdown(socket.SHUT_RDWR)
            if isinstance(error, TimeoutError):
                raise ConnectionError(f"the page owner at {self._path} has been silent for too long") from error
            if isinstance(error, OSError):
                raise
            raise ConnectionError(f"the page owner at {self._path} says what is no reply: {error}") from error

    def _watch(self) -> None:
        pause = _SHORTEST_PAUSE_S
        while not self._ended.is_set():
            if self._link is not None:
                self._wait_for_end(self._link)
                with self._lock:
                    self._disconnect()
            elif self._reconnect():
                pause = _SHORTEST_PAUSE_S
            else:
                self._ended.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _wait_for_end(self, link: Link) -> None:
        """Wait until the connection is broken, or this client is closed; tell how busy the borrower is meanwhile."""
        poll = select.poll()
        poll.register(link.socket, select.POLLRDHUP)
        poll.register(self._bell, select.POLLIN)
        told, told_at = 0.0, 0.0
        while not poll.poll(_TELL_S * 1000):
            share, now = round(self._busy(), 2), time.monotonic()
            if abs(share - told) >= _WORTH_TELLING or (share and now >= told_at + _TELL_AGAIN_S):
                with contextlib.suppress(OSError):  # it is seen above that the owner is gone
                    link.send(msgspec.msgpack.encode(messages.Busy(share)))
                told, told_at = share, now

    def _reconnect(self) -> bool:
        try:
            return self._try_to_connect()
        except FlexpertError as refused:
            _log.warning("the page owner at %s lends nothing: %s", self._path, refused)
            return False

    def _try_to_connect(self) -> bool:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self._greeting_s)
        try:
            sock.connect(self._path)
        except OSError as absent:
            self._refusal = absent.strerror or str(absent)
            sock.close()
            return False
        with self._lock:
            self._link = Link(sock)
            try:
                with self._hanging_up():
                    self._greet(sock)
            except OSError as silent:
                self._refusal = f"it accepts, but does not answer ({silent})"
                self._disconnect()
                return False
            except FlexpertError:
                self._disconnect()
                raise
        return True

    def _greet(self, sock: socket.socket) -> None:
        """Say who borrows, and hand back what is held; an owner that hangs is left within bounded time."""
        self._released.clear()  # those leases ended with the connection before
        self._welcome = self._ask(self._hello, messages.Welcome)
        sock.settimeout(_HAND_BACK_S)
        at_once = max(1, min(MOST_DESCRIPTORS, _HAND_BACK_BYTES // self._hello.page_bytes))
        with self._holding:
            held = list(self._held.values())
            for start in range(0, len(held), at_once):
                batch = held[start : start + at_once]
                experts = tuple((*loan.key, loan.checksum) for loan in batch)
                self._ask(messages.HandBack(experts), messages.HandedBack, batch)
        sock.settimeout(_SILENCE_S)

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
