"""Lends pages over a UNIX socket: one thread a connection, and the connection is the lease of all lent over it."""

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from flexpert_workers.errors import CapacityError, CheckpointError, FlexpertError, PageError
from flexpert_workers.memory.loans import Loan, Want
from flexpert_workers.memory.owner.domain import PageDomain
from flexpert_workers.memory.owner.pages import PageOwner
from flexpert_workers.memory.owner.reception import Reception
from flexpert_workers.memory.passing import MOST_DESCRIPTORS, Link
from flexpert_workers.messages import UNREADABLE
from flexpert_workers.messages import owner as messages

_log = logging.getLogger(__name__)
_decoder: msgspec.msgpack.Decoder[messages.OwnerRequest] = msgspec.msgpack.Decoder(messages.OwnerRequest)
_ACCEPT_PAUSE_S = 0.1
_DYING_S = 2.0
_KINDS: dict[type[Exception], str] = {CapacityError: "capacity", CheckpointError: "checkpoint", PageError: "page"}


class OwnerServer:
    """Accepts borrowers on the socket's path that the configuration names.

    Raises:
        OSError: The path cannot be bound, or another owner serves there.
    """

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._path = reception.config.socket
        self._socket = _listen(self._path)
        self._links: set[Link] = set()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="accept", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def stop(self) -> None:
        """End every connection; the path is free again."""
        self._ending.set()
        Path(self._path).unlink(missing_ok=True)
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        with self._lock:
            for link in self._links:
                with contextlib.suppress(OSError):
                    link.socket.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                connected, _ = self._socket.accept()
            except OSError as refused:
                if not self._ending.is_set():  # out of descriptors, say: whoever comes next may be served again
                    _log.warning("a borrower could not be accepted: %s", refused)
                self._ending.wait(_ACCEPT_PAUSE_S)
                continue
            link = Link(connected)
            with self._lock:
                self._links.add(link)
            threading.Thread(target=self._serve, args=(link,), name="borrower", daemon=True).start()

    def _serve(self, link: Link) -> None:
        try:
            _Borrower(link, self._reception).serve()
        except (OSError, *UNREADABLE) as gone:
            _log.info("a borrower's connection ended: %s", gone)
        finally:
            with self._lock:
                self._links.discard(link)
            link.close()


class _Borrower:
    """One connection, from its `Hello` to its end."""

    def __init__(self, link: Link, reception: Reception) -> None:
        self._link = link
        self._reception = reception
        self._note_busy: Callable[[float], None] = lambda _: None  # until it is welcomed

    def serve(self) -> None:
        """Answer until the borrower is gone; then its leases end.

        Raises:
            OSError: It is gone.
        """
        hello, _ = self._receive()
        if not isinstance(hello, messages.Hello):
            raise ConnectionError(f"a borrower began with {type(hello).__name__}")
        welcomed: list[PageDomain] = []
        self._answering(lambda: welcomed.append(self._reception.welcome(hello)))
        for domain in welcomed:
            self._converse(domain, f"{hello.borrower}/{secrets.token_hex(4)}")

    def _converse(self, domain: PageDomain, borrower: str) -> None:
        """Lend to a borrower by a name of this connection's own: the end of an earlier one ends only its own leases."""
        owner = domain.owner
        self._note_busy = partial(self._reception.serving.note, borrower)
        try:
            self._send(messages.Welcome(self._reception.config.domain, domain.transfer_endpoint, os.getpid()))
            while True:
                self._answer(owner, borrower, *self._receive())
        finally:
            owner.end(borrower)
            self._reception.serving.end(borrower)

    def _answer(self, owner: PageOwner, borrower: str, request: messages.OwnerRequest, descriptors: list[int]) -> None:
        match request:
            case messages.Acquire(experts):
                wants = [Want((layer, index), peers) for layer, index, peers in experts]
                self._answering(lambda: self._lend(owner, borrower, wants))
            case messages.Release(experts) | messages.Received(_, experts):  # the latter when all had been lent
                owner.release(borrower, experts)
            case messages.HandBack(experts):
                self._send(messages.HandedBack(_adopt(owner, borrower, experts, descriptors)))
            case messages.DropIdle():
                self._send(messages.Done(owner.drop_idle()))
            case messages.AskOwner():
                status = owner.status()
                self._send(
                    messages.OwnerState(
                        status.experts,
                        status.used_bytes,
                        status.budget_bytes,
                        status.lent,
                        status.idle,
                        self._reception.serving.busy(),
                    )
                )
            case _:
                raise ConnectionError(f"{type(request).__name__} at this point of a conversation")

    def _lend(self, owner: PageOwner, borrower: str, wants: list[Want]) -> None:
        wanted = partial(self._is_wanted, owner, borrower)
        with contextlib.closing(owner.acquire(borrower, wants, MOST_DESCRIPTORS, wanted)) as batches:
            for loans in batches:
                lent = messages.Lent(tuple(_lent_page(loan) for loan in loans))
                self._send(lent, [loan.page.descriptor() for loan in loans])
                if not self._receive_received(owner, borrower):
                    break
        self._send(messages.Done())

    def _is_wanted(self, owner: PageOwner, borrower: str) -> bool:
        """Whether the borrower still waits for pages: it is there, and has not said that it has enough."""
        while self._link.readable():
            request, _ = self._receive_any()
            if not isinstance(request, messages.Busy):
                return self._wants_more(owner, borrower, request)
            self._note_busy(request.share)
        return True

    def _receive_received(self, owner: PageOwner, borrower: str) -> bool:
        """Whether the borrower wants more."""
        return self._wants_more(owner, borrower, self._receive()[0])

    def _wants_more(self, owner: PageOwner, borrower: str, received: messages.OwnerRequest) -> bool:
        if not isinstance(received, messages.Received):
            raise ConnectionError(f"{type(received).__name__} instead of Received")
        owner.release(borrower, received.released)
        return received.more

    def _answering(self, act: Callable[[], None]) -> None:
        """Do something; what goes wrong with it is answered with `Failed`."""
        try:
            act()
        except FlexpertError as error:
            kind = next((name for known, name in _KINDS.items() if isinstance(error, known)), "internal")
            self._send(messages.Failed(kind, str(error)))
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001  whatever one request does, the owner serves the next
            _log.warning("a borrower's request failed", exc_info=True)
            self._send(messages.Failed("internal", f"{type(error).__name__}: {error}"))

    def _receive(self) -> tuple[messages.OwnerRequest, list[int]]:
        """The next request but those that tell how busy the borrower is, which are noted."""
        while isinstance((received := self._receive_any())[0], messages.Busy):
            self._note_busy(received[0].share)
        return received

    def _receive_any(self) -> tuple[messages.OwnerRequest, list[int]]:
        payload, descriptors = self._link.receive()
        try:
            request = _decoder.decode(payload)
            expected = len(request.experts) if isinstance(request, messages.HandBack) else 0
            if len(descriptors) != expected:
                raise ConnectionError(f"{type(request).__name__} came with {len(descriptors)} descriptors")
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return request, descriptors

    def _send(self, reply: messages.OwnerReply, descriptors: list[int] | None = None) -> None:
        self._link.send(msgspec.msgpack.encode(reply), descriptors or [])


def _lent_page(loan: Loan) -> messages.LentPage:
    return messages.LentPage(*loan.key, loan.checksum, loan.origin, loan.copy_s, loan.verify_s)


def _adopt(
    owner: PageOwner, borrower: str, experts: tuple[tuple[int, int, int], ...], descriptors: list[int]
) -> tuple[messages.Expert, ...]:
    """Adopt the pages that a borrower hands back; those that were not adopted."""
    refused: list[messages.Expert] = []
    for (layer, index, checksum), descriptor in zip(experts, descriptors, strict=True):
        try:
            if not owner.adopt(borrower, (layer, index), descriptor, checksum):
                refused.append((layer, index))
        except PageError as error:
            _log.warning("not adopted: %s", error)
            refused.append((layer, index))
    return tuple(refused)


def _listen(path: str) -> socket.socket:
    """A listening socket at `path`, in place of one whose owner is dead.

    Raises:
        OSError: Somebody else listens there, or the path is longer than 107 bytes.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _stays_alive(path):
            raise FileExistsError(f"a page owner serves at {path} already")
        Path(path).unlink(missing_ok=True)
        listening.bind(path)
        os.chmod(path, 0o600)
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening


def _stays_alive(path: str) -> bool:
    """Whether somebody listens at `path`, and goes on: the kernel listens a little longer than a dying owner lives."""
    deadline = time.monotonic() + _DYING_S
    while is_alive := _is_alive(path):
        if time.monotonic() > deadline:
            break
        time.sleep(_ACCEPT_PAUSE_S)
    return is_alive


def _is_alive(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # more borrowers wait than it may have waiting
        except OSError:
            return False
    return True
