"""Looks at a checkpoint beside the reconciliations, since that takes many seconds. `reconciler` owns one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from flexpert_operator.api.spec import Model
from flexpert_operator.decide.observation import Inspection
from flexpert_operator.errors import ModelRefused, PoolError
from flexpert_operator.pool_client import PoolClient

PENDING = Inspection(pending=True)


@dataclass(frozen=True)
class Look:
    """A look at `model` by a controller's `incarnation`, begun at `at` (the caller's clock)."""

    incarnation: str
    model: Model
    at: float
    answer: "Future[Inspection | None]"


class ModelInspector:
    """One look at a time; what was found is kept, what was refused is looked at again after `retry_s`.

    Args:
        make_client: Makes a client of its own, since a look may last while reconciliations go on.
        retry_s: Seconds from one refused look to the next.
    """

    def __init__(self, make_client: Callable[[], PoolClient], retry_s: float) -> None:
        self._make_client = make_client
        self._retry_s = retry_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inspect")
        self._last: Look | None = None
        self._known: Inspection = PENDING

    def close(self) -> None:
        """Wait for nothing any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def look(self, incarnation: str, model: Model, now: float) -> Inspection:
        """What is known of a checkpoint; begins to look where that is nothing, or was refused some time ago."""
        last = self._last
        if last is None or (last.incarnation, last.model) != (incarnation, model):
            self._known = PENDING
            self._begin(incarnation, model, now)
        elif last.answer.done():
            self._known = last.answer.result() or self._known
            if self._known.facts is None and now - last.at >= self._retry_s:
                self._begin(incarnation, model, now)
        return self._known

    def _begin(self, incarnation: str, model: Model, now: float) -> None:
        self._last = Look(incarnation, model, now, self._thread.submit(self._ask, model))

    def _ask(self, model: Model) -> Inspection | None:
        """None when the controller did not answer."""
        client = self._make_client()
        try:
            return Inspection(facts=client.inspect_model(model))
        except ModelRefused as refusal:
            return Inspection(reason=refusal.reason, message=f"spec.model.source: {refusal}")
        except PoolError:
            return None
        finally:
            client.close()
