"""One operator leads: a Lease that is held before kopf starts to watch, renewed meanwhile, and given up in the end.

`__main__` takes it and ends the process when it is lost. The Lease is read and written by the Kubernetes client's
`LeaseLock`. Its `LeaderElection` is not used: it measures by the wall clock, lets errors of the connection escape, and
never gives a lease up. How long another's lease lasts is counted from when this process saw it change, by a clock that
goes on while the host sleeps and is not set; clocks of hosts are never compared.

It is the fence: past the renewal deadline this process writes no more, also when it was stopped in between and does
not know yet that another one leads. What is on its way then is refused by the pool controllers, which know the highest
number of a leadership (the Lease's transitions). A number lower than theirs, which a leader has too whose Lease was
deleted meanwhile, closes the fence until the Lease was written once more, with a higher number.
"""

import datetime
import json
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import urllib3
from kubernetes import client
from kubernetes.client.rest import ApiException
from kubernetes.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

from flexpert_operator.errors import KubeUnavailable

log = logging.getLogger(__name__)

JITTER = 0.2


def boot_time() -> float:
    """Seconds of a clock that nobody sets and that goes on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Times:
    """Times of the election, in seconds.

    Attributes:
        lease_s: Others may lead when the lease was not renewed for so long.
        deadline_s: The leader gives up when it could not renew for so long; shorter than the lease.
        retry_s: Between two attempts.
    """

    lease_s: float = 15.0
    deadline_s: float = 10.0
    retry_s: float = 2.0

    @classmethod
    def of_lease(cls, seconds: float) -> Self:
        """Times in the usual proportion."""
        return cls(seconds, seconds * cls.deadline_s / cls.lease_s, seconds * cls.retry_s / cls.lease_s)

    def __post_init__(self) -> None:
        if not self.lease_s > self.deadline_s > (1 + JITTER) * self.retry_s > 0:
            raise ValueError("the lease has to be longer than the deadline, and that longer than a retry")


class TimedApi(client.CoordinationV1Api):  # type: ignore[misc]
    """The API of Leases with a time-out on each call, whose every failure is an `ApiException`."""

    def __init__(self, api: client.ApiClient, timeout_s: float) -> None:
        super().__init__(api)
        self._timeout_s = timeout_s

    def read_namespaced_lease(self, name: str, namespace: str, **_: Any) -> client.V1Lease:
        """Read one."""
        return self._call(super().read_namespaced_lease, name, namespace)

    def create_namespaced_lease(self, namespace: str, body: client.V1Lease, **_: Any) -> client.V1Lease:
        """Make one."""
        return self._call(super().create_namespaced_lease, namespace, body)

    def replace_namespaced_lease(self, name: str, namespace: str, body: client.V1Lease, **_: Any) -> client.V1Lease:
        """Write one, if it is as it was read."""
        return self._call(super().replace_namespaced_lease, name, namespace, body)

    def _call(self, method: Callable[..., client.V1Lease], *arguments: Any) -> client.V1Lease:
        try:
            return method(*arguments, _request_timeout=(self._timeout_s, self._timeout_s))
        except (urllib3.exceptions.HTTPError, OSError) as failure:
            raise ApiException(status=503, reason=str(failure)) from failure


class CountingLock(LeaseLock):  # type: ignore[misc]
    """The client's lock, which also counts transitions and remembers what it has written.

    Attributes:
        least: The next lease that is written has at least so many transitions.
    """

    def __init__(self, api: client.ApiClient, name: str, namespace: str, identity: str, timeout_s: float) -> None:
        super().__init__(name, namespace, identity)
        self.least = 0
        self.lease_reference: client.V1Lease = None
        self.api_instance = TimedApi(api, timeout_s)

    @property
    def transitions(self) -> int:
        """Of the lease as it was read or written last."""
        return self.lease_reference.spec.lease_transitions or 0

    def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        """Write a record, if nobody has written since; whether that worked."""
        lease: client.V1Lease = self.lease_reference
        lease.spec = self.get_lease_spec(updated_record, lease.spec)
        try:
            self.lease_reference = self.api_instance.replace_namespaced_lease(name, namespace, lease)
        except ApiException as refusal:
            log.info("the lease was not written: %s %s", refusal.status, refusal.reason)
            return False
        return True

    def get_lease_spec(
        self, leader_election_record: LeaderElectionRecord, current_spec: client.V1LeaseSpec | None = None
    ) -> client.V1LeaseSpec:
        """The lease's spec for a record."""
        before = current_spec.holder_identity if current_spec is not None else None
        transitions = (current_spec.lease_transitions or 0) if current_spec is not None else 0
        spec = super().get_lease_spec(leader_election_record, current_spec)
        spec.lease_transitions = max(transitions + (spec.holder_identity not in ("", before)), self.least)
        for moment in ("acquire_time", "renew_time"):  # written without a fraction, the API server refuses them
            value = getattr(spec, moment)
            setattr(spec, moment, value.replace(microsecond=value.microsecond or 1))
        return spec


class Leadership:
    """This process's part in the election.

    Args:
        lock: The lease.
        times: Of the election.
        clock: Seconds that never go back, also while the process is stopped.
    """

    def __init__(self, lock: CountingLock, times: Times, clock: Callable[[], float] = boot_time) -> None:
        self._lock = lock
        self._times = times
        self._clock = clock
        self._seen: tuple[Any, ...] | None = None
        self._seen_at = 0.0
        self._valid_until = float("-inf")
        self._number = 0
        self._doubted = False
        self._released = threading.Event()
        self._acquired_at = ""

    def check(self) -> int:
        """The number of this leadership; raises `KubeUnavailable` where this process may not write."""
        if self._released.is_set() or self._clock() >= self._valid_until:
            raise KubeUnavailable("this operator does not lead any more")
        if self._doubted:
            raise KubeUnavailable("a pool has heard from a later leader; the lease will tell")
        return self._number

    def outdone(self, newest: int) -> None:
        """A pool has heard from leader `newest`: nothing is written until the lease was, with a higher number."""
        if newest > self._number:
            log.warning("leader %d is told of leader %d", self._number, newest)
            self._lock.least = max(self._lock.least, newest + 1)
            self._doubted = True

    def acquire(self, stopped: threading.Event) -> bool:
        """Wait until this process leads; False when it is to end before."""
        log.info("%s waits for the lease %s/%s", self._lock.identity, self._lock.namespace, self._lock.name)
        while not stopped.is_set():
            if self._attempt():
                log.info("%s leads", self._lock.identity)
                return True
            stopped.wait(self._pause())
        return False

    def keep(self, lost: Callable[[str], None]) -> None:
        """Renew the lease until it is released; calls `lost` with the reason once it cannot be, whatever that is."""
        try:
            reason = self._renew()
        except Exception as error:
            log.exception("renewing the lease broke")
            reason = f"renewing the lease broke: {error!r}"
        if reason is not None:
            lost(reason)

    def _renew(self) -> str | None:
        """Renew until the lease is released (None), or cannot be held any more: why."""
        while not self._released.wait(self._pause()):
            if self._attempt() or self._released.is_set():
                continue
            if self._seen is not None and self._seen[0] not in (None, self._lock.identity):
                return f"{self._seen[0]} leads"
            if self._clock() >= self._valid_until:
                return f"the lease could not be renewed for {self._times.deadline_s:.0f} s"
        return None

    def release(self) -> None:
        """Lead no longer; another one need not wait for the end of the lease."""
        if self._released.is_set():
            return
        self._released.set()
        now = str(datetime.datetime.now(datetime.UTC))
        if self._holds_it():
            self._lock.update(self._lock.name, self._lock.namespace, LeaderElectionRecord("", "1", now, now))

    def _holds_it(self) -> bool:
        found, record = self._lock.get(self._lock.name, self._lock.namespace)
        return bool(found) and record.holder_identity == self._lock.identity

    def _pause(self) -> float:
        return self._times.retry_s * random.uniform(1.0, 1.0 + JITTER)

    def _attempt(self) -> bool:
        """Take the lease, or renew it; whether it is held now."""
        began = self._clock()
        lock = self._lock
        found, record = lock.get(lock.name, lock.namespace)
        if not found:
            written = is_absent(record) and lock.create(lock.name, lock.namespace, self._record(renews=False))
            return self._held(began) if written else False
        self._observe(record)
        ours = record.holder_identity == lock.identity
        if not ours and record.holder_identity and began < self._seen_at + float(record.lease_duration or 0):
            return False
        written = lock.update(lock.name, lock.namespace, self._record(renews=ours))
        return self._held(began) if written else False

    def _observe(self, record: LeaderElectionRecord) -> None:
        """Note when a record was first seen."""
        seen = (record.holder_identity, record.acquire_time, record.renew_time)
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()

    def _held(self, began: float) -> bool:
        """The lease was written by a request that began then: others may take it so long after that, not before."""
        self._seen = (self._lock.identity, None, None)
        self._valid_until = began + self._times.deadline_s
        self._number = self._lock.transitions
        self._doubted = self._number < self._lock.least
        return True

    def _record(self, renews: bool) -> LeaderElectionRecord:
        now = str(datetime.datetime.now(datetime.UTC))
        if not renews:
            self._acquired_at = now
        seconds = str(max(round(self._times.lease_s), 1))
        return LeaderElectionRecord(self._lock.identity, seconds, self._acquired_at or now, now)


def is_absent(refusal: ApiException) -> bool:
    """Whether the API server says that there is no such object."""
    try:
        return bool(refusal.status == 404) and bool(json.loads(refusal.body)["code"] == 404)
    except (TypeError, ValueError, KeyError):
        return False
