"""Posts Events beside the reconciling: `handlers` makes one writer for the process, reconcilers tell it what happens.

Telling never waits. A thread of its own posts what `correlation` lets through; while the API server does not answer, a
bounded number of Events waits, and what does not fit is left out and counted.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from flexpert_operator.backoff import Backoff
from flexpert_operator.correlation import Correlator, Reference, Told
from flexpert_operator.decide.observation import Event
from flexpert_operator.decide.status import rfc3339
from flexpert_operator.errors import KubeConflict, KubeError, KubeNotFound, KubeUnavailable
from flexpert_operator.kube import Kube, Object, Resource

log = logging.getLogger(__name__)

EVENTS = Resource("", "v1", "events")
COMPONENT = "flexpert-operator"
MOST_WAITING = 1000
ATTEMPTS = 6
STOP_S = 5.0


class EventWriter:
    """Posts Events in the order in which they were told.

    Attributes:
        left_out: How many were not posted: too many of an object, too many at once, or refused.
    """

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.time, most_waiting: int = MOST_WAITING) -> None:
        self._kube = kube
        self._clock = clock
        self._correlator = Correlator()
        self._waiting: queue.Queue[tuple[Reference, Event, float] | None] = queue.Queue(most_waiting)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.left_out = 0

    def tell(self, body: Mapping[str, Any], event: Event) -> None:
        """Post an Event about an object, soon, and write it to the log."""
        fields = {"reason": str(event.reason)} | ({"operation": event.operation} if event.operation else {})
        metadata = body["metadata"]
        log.log(
            logging.WARNING if event.warning else logging.INFO,
            "%s/%s: %s: %s",
            *(metadata["namespace"], metadata["name"], event.reason, event.message),
            extra=fields,
        )
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()
        try:
            self._waiting.put_nowait((reference(body), event, self._clock()))
        except queue.Full:
            self._leave_out("too many wait")

    def close(self) -> None:
        """Post what waits, unless the API server does not answer; then end."""
        self._closing.set()
        thread = self._thread
        if thread is None:
            return
        try:
            self._waiting.put(None, timeout=STOP_S)
        except queue.Full:
            log.warning("%d Events are left out at the end", self._waiting.qsize())
        thread.join(STOP_S)

    def _run(self) -> None:
        while True:
            try:
                item = self._waiting.get(timeout=STOP_S)
            except queue.Empty:
                if self._closing.is_set():
                    return
                continue
            if item is None:
                return
            told = self._correlator.note(*item)
            if told is None:
                self._leave_out(f"{item[0].kind} {item[0].namespace}/{item[0].name} has said too much")
            else:
                self._post(told)

    def _post(self, told: Told) -> None:
        """Post one, again and again while nobody answers, but not for ever."""
        backoff = Backoff(0.2, 5.0)
        for _ in range(ATTEMPTS):
            try:
                write(self._kube, told)
                return
            except KubeUnavailable as failure:
                log.debug("an Event waits: %s", failure)
                if self._closing.wait(backoff.next()):
                    break
            except KubeError as refusal:
                self._leave_out(str(refusal))
                return
        self._leave_out("the API server does not answer")

    def _leave_out(self, why: str) -> None:
        self.left_out += 1
        log.warning("an Event is left out: %s", why)


def write(kube: Kube, told: Told) -> None:
    """Make the Event, or raise its count; one that the API server has forgotten is made anew."""
    namespace = told.about.namespace
    if told.count > 1:
        counted = {"count": told.count, "lastTimestamp": rfc3339(told.last_at), "message": told.message}
        try:
            kube.patch(EVENTS, namespace, told.name, counted)
            return
        except KubeNotFound:
            log.debug("%s is gone", told.name)
    try:
        kube.create(EVENTS, namespace, event_body(told))
    except KubeConflict:
        log.debug("%s was made by an attempt that seemed to fail", told.name)


def event_body(told: Told) -> Object:
    """The Event as the API has it."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": told.name, "namespace": told.about.namespace},
        "involvedObject": {
            "apiVersion": told.about.api_version,
            "kind": told.about.kind,
            "namespace": told.about.namespace,
            "name": told.about.name,
            "uid": told.about.uid,
        },
        "reason": told.reason,
        "message": told.message,
        "type": "Warning" if told.warning else "Normal",
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
        "firstTimestamp": rfc3339(told.first_at),
        "lastTimestamp": rfc3339(told.last_at),
        "count": told.count,
    }


def reference(body: Mapping[str, Any]) -> Reference:
    """What an Event says of the object that it is about."""
    metadata = body["metadata"]
    return Reference(body["apiVersion"], body["kind"], metadata["namespace"], metadata["name"], metadata["uid"])
