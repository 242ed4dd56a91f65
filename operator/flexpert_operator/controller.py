"""The threads that reconcile: they take objects of a kind from a queue, one thread one object at a time.

There is one for MoEDeployments, one for policies and one for scalers; `handlers` feeds them with what kopf and the
informers see. Nothing is kept of an object that is gone.
"""

import logging
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from flexpert_operator.api.spec import InvalidObject
from flexpert_operator.cached import CachedKube
from flexpert_operator.errors import KubeConflict, KubeError, KubeUnavailable
from flexpert_operator.kube import MOE_DEPLOYMENTS, Resource
from flexpert_operator.metrics import Metrics
from flexpert_operator.object_store import Key, key_of
from flexpert_operator.work_queue import WorkQueue
from flexpert_proto import logs

log = logging.getLogger(__name__)

STOP_S = 10.0


class Tender(Protocol):
    """What keeps one object as it should be."""

    def reconcile(self) -> float | None:
        """Act once; the seconds until the next time, None when it is gone. Raises `KubeError`, `InvalidObject`."""
        ...

    def close(self) -> None:
        """The object is gone, or another's."""
        ...


MakeReconciler = Callable[[str, str], Tender]
"""(namespace, name) → a reconciler."""


@dataclass(frozen=True)
class Tended:
    """The reconciler of the object with a uid."""

    uid: str
    reconciler: Tender


class Controller:
    """Reconciles every object of a kind that was seen, when something about it changes and when its time has come.

    Args:
        kube: What was seen.
        make: Makes a reconciler.
        threads: How many reconcile at once.
        metrics: Count what went wrong, and how many MoEDeployments wait.
        resource: The kind.
        called: What logs call it.
    """

    def __init__(
        self,
        kube: CachedKube,
        make: MakeReconciler,
        threads: int,
        metrics: Metrics,
        resource: Resource = MOE_DEPLOYMENTS,
        called: str = "moedeployment",
    ) -> None:
        self.queue = WorkQueue()
        self._metrics = metrics
        if resource == MOE_DEPLOYMENTS:
            metrics.watch_queue(lambda: len(self.queue))
        self._called = called
        self._store = kube.stores[resource]
        self._make = make
        self._tended: dict[Key, Tended] = {}
        self._threads = [
            threading.Thread(target=self._work, name=f"{called}-{number}", daemon=True) for number in range(threads)
        ]

    def start(self) -> None:
        """Begin to reconcile."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is being done, for a bounded time, and begin nothing new."""
        self.queue.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(STOP_S)
        for tended in self._tended.values():
            tended.reconciler.close()

    def note(self, body: Mapping[str, Any], gone: bool) -> None:
        """An object as kopf has seen it."""
        if self._store.drop(body) if gone else self._store.put(body):
            self.queue.wake(key_of(body))

    def wake(self, namespace: str, name: str) -> None:
        """Something that belongs to an object has changed; of those that are not known nothing is done."""
        if self._store.uid(namespace, name) is not None:
            self.queue.wake((namespace, name))

    def wake_all(self) -> None:
        """Something that may concern everybody has changed."""
        for key in self._store.names():
            self.queue.wake(key)

    def _work(self) -> None:
        while (key := self.queue.get()) is not None:
            self._handle(key)

    def _handle(self, key: Key) -> None:
        """One reconciliation; whatever goes wrong is logged, counted, and tried again."""
        with logs.saying(**{"namespace": key[0], self._called: key[1]}):
            self._try(key)

    def _try(self, key: Key) -> None:
        try:
            reconciler = self._reconciler(key)
            wait_s = reconciler.reconcile() if reconciler is not None else None
        except KubeConflict as conflict:
            self._metrics.note_error(*key, "Conflict")
            log.debug("%s/%s: seen too late, observing again: %s", *key, conflict)
            self.queue.failed(key)
        except KubeUnavailable as failure:
            self._metrics.note_error(*key, "Unavailable")
            self.queue.hold(failure.retry_after_s or 0.0)
            log.warning("%s/%s: again in %.1f s: %s", *key, self.queue.failed(key), failure)
        except (KubeError, InvalidObject) as failure:
            self._metrics.note_error(*key, "InvalidObject" if isinstance(failure, InvalidObject) else "Refused")
            log.warning("%s/%s: again in %.1f s: %s", *key, self.queue.failed(key), failure)
        except Exception:
            self._metrics.note_error(*key, "Broken")
            log.exception("%s/%s: again in %.1f s: a reconciliation broke", *key, self.queue.failed(key))
        else:
            if wait_s is None:
                self._forget(key)
                self.queue.forget(key)
            else:
                self.queue.done(key, wait_s * random.uniform(0.9, 1.0))

    def _reconciler(self, key: Key) -> Tender | None:
        """The reconciler of the object that has the name now, None where there is none."""
        uid, tended = self._store.uid(*key), self._tended.get(key)
        if tended is not None and tended.uid != uid:
            self._forget(key)
            tended = None
        if uid is None:
            return None
        if tended is None:
            tended = self._tended[key] = Tended(uid, self._make(*key))
        return tended.reconciler

    def _forget(self, key: Key) -> None:
        tended = self._tended.pop(key, None)
        if tended is not None:
            tended.reconciler.close()
