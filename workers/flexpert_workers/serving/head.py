"""`python -m flexpert_workers.serving.head`: the container beside the Ray head that creates the pool controller.

It joins the local Ray, creates the detached controller actor where there is none, and keeps watch: a head that came
back without its tables gets a new one. The controller itself outlives this process.
"""

import json
import logging
import os
import signal
import sys
import threading

import ray

from flexpert_proto import logs, names
from flexpert_workers.pool import controller_actor

log = logging.getLogger(__name__)

_WATCH_S = 2.0
_RETRY_S = 0.5
_ANSWER_S = 30.0
_PAGE_HOST = "127.0.0.1"  # of the pod: who may forward its ports, and nobody else, gets at the page


def main() -> int:
    """Keep a controller until SIGTERM."""
    logs.configure(own=logs.of_pool("pool-launcher"))
    ending = threading.Event()
    _end_on_signals(ending)
    pool = json.loads(os.environ[names.ENV_POOL])
    bind_host = os.environ.get(names.ENV_BIND_HOST, "127.0.0.1")
    control = f"{bind_host}:{names.port_number(names.POOL_CONTROL_PORT_NAME, names.POOL_CONTROL_PORT)}"
    page = f"{_PAGE_HOST}:{names.port_number(names.UI_PORT_NAME, names.UI_PORT)}"
    metrics = f"{bind_host}:{names.port_number(names.METRICS_PORT_NAME, names.METRICS_PORT)}"
    listen = controller_actor.Listen(control, page, metrics)
    while not ending.is_set():
        try:
            _join(pool["uid"])
            _end_on_signals(ending)  # joining puts Ray's own handlers in place
            _watch(pool, listen, ending)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as failure:
            log.info("no Ray here (yet): %s", failure)
            ray.shutdown()
            ending.wait(_RETRY_S)
    ray.shutdown()
    return 0


def _end_on_signals(ending: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())


def _join(uid: str) -> None:
    """Join the Ray node of this pod; raises `ConnectionError` while there is none."""
    if not ray.is_initialized():
        ray.init(address="auto", namespace=names.ray_namespace(uid), log_to_driver=False, logging_level=logging.WARNING)


def _watch(pool: dict[str, str], listen: controller_actor.Listen, ending: threading.Event) -> None:
    """Create the controller and see that it stays; returns when this process is to end, raises when Ray is away."""
    control = os.environ.get(names.ENV_POOL_CONTROL) or names.pool_control_address(pool["name"], pool["namespace"])
    known = None
    while not ending.is_set():
        controller = controller_actor.create(pool["uid"], control, listen)
        try:
            port = ray.get(controller.port.remote(), timeout=_ANSWER_S)
        except ray.exceptions.GetTimeoutError:
            log.info("the pool controller does not serve yet")
            continue
        if port != known:
            log.info("the pool controller serves port %d", port)
            known = port
        ending.wait(_WATCH_S)


if __name__ == "__main__":
    sys.exit(main())
