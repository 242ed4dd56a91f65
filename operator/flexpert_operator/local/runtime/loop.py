"""The runtime's main loop: look, decide, act."""

import asyncio
import contextlib
import logging
import random
import time

from flexpert_operator.local.runtime import containers, probes
from flexpert_operator.local.runtime.actuator import Actuator
from flexpert_operator.local.runtime.books import Books
from flexpert_operator.local.runtime.containers import Host
from flexpert_operator.local.runtime.decide import decide
from flexpert_operator.local.runtime.kube import KINDS, NODE, Kube, KubeError
from flexpert_operator.local.runtime.objects import uid_of
from flexpert_operator.local.runtime.service_table import service_table
from flexpert_operator.local.runtime.values import NODE_NAME, Object, Observed
from flexpert_operator.local.runtime.watching import Mirror

TICK_S = 0.25
_AFTER_REFUSAL_S = 1.0
_STEADY_PROBE_S = 2.0
_log = logging.getLogger(__name__)


class Runtime:
    """Everything that plays the cluster on this host."""

    def __init__(self, kube: Kube, books: Books, host: Host, rng: random.Random) -> None:
        self._wake = asyncio.Event()
        self._kube = kube
        self._mirrors = {name: Mirror(kind, self._wake.set) for name, kind in KINDS.items()}
        self._books = books
        self._host = host
        self._rng = rng
        self._actuator = Actuator(kube, self._mirrors, books, host)
        self._registered = False
        self._next_probe: dict[tuple[str, str], float] = {}

    async def run(self) -> None:
        """Run until cancelled; the containers go on then."""
        watches = [asyncio.create_task(mirror.keep(self._kube)) for mirror in self._mirrors.values()]
        try:
            while True:
                await self._wait(TICK_S)
                if all(mirror.synced for mirror in self._mirrors.values()):
                    await self._step()
                for watch in watches:
                    if watch.done():
                        watch.result()
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    async def _wait(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), timeout_s)
        self._wake.clear()

    async def _step(self) -> None:
        self._books.look(time.time())
        await self._register()
        await self._probe()
        for action in decide(self._observe(), self._rng):
            try:
                await self._actuator.carry_out(action, self._observe())
            except KubeError as error:
                _log.warning("%s: %s", type(action).__name__, error)
                await asyncio.sleep(_AFTER_REFUSAL_S)
                return
        observed = self._observe()
        self._actuator.publish(service_table(observed.services, observed.pods, observed.local))

    async def _register(self) -> None:
        """Make the Node object of this host, once; one that was made before stays as it is, cordoned or not."""
        if self._registered:
            return
        labels = {"kubernetes.io/hostname": NODE_NAME}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME, "labels": labels}}
        try:
            self._mirrors["Node"].put(await self._kube.create(NODE, node))
        except KubeError as error:
            if error.status != 409:
                _log.warning("cannot register the node: %s", error)
                return
        self._registered = True

    def _observe(self) -> Observed:
        objects = {name: mirror.objects() for name, mirror in self._mirrors.items()}
        return Observed(
            clusters=objects["RayCluster"],
            deployments=objects["Deployment"],
            services=objects["Service"],
            pods=objects["Pod"],
            nodes=objects["Node"],
            secrets=objects["Secret"],
            config_maps=objects["ConfigMap"],
            local=self._books.pods,
            now=time.time(),
            max_starting=self._host.num_cores + 1,
        )

    async def _probe(self) -> None:
        now = time.monotonic()
        pods = {uid_of(pod): pod for pod in self._mirrors["Pod"].objects()}
        due = [
            (pods[uid], item.name)
            for uid, local in self._books.pods.items()
            for item in local.containers
            if uid in pods and item.running and now >= self._next_probe.get((uid, item.name), 0)
        ]
        await asyncio.gather(*(self._ask(pod, name) for pod, name in due))

    async def _ask(self, pod: Object, name: str) -> None:
        local = self._books.pods[uid_of(pod)]
        spec = containers.container_spec(pod, name)
        ready = await probes.is_ready(spec, local, containers.container_log(self._host.layout, local, name))
        self._books.note_ready(local.uid, name, ready)
        self._next_probe[local.uid, name] = time.monotonic() + (_STEADY_PROBE_S if ready else 0)
