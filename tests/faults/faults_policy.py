"""A policy over the pool under bursts: it grows, goes to zero between them, wakes, and no request fails."""

import itertools
import threading
import time
import urllib.request
from typing import Any

import pytest
from faults_clients import MAX_TOKENS, PROMPTS, Clients
from faults_pool import NAME, NAMESPACE, PATIENCE_S
from faults_world import World

from flexpert_operator.api import names
from flexpert_operator.decide.status import from_rfc3339
from flexpert_operator.kube import POLICIES
from flexpert_proto.client import GenerationClient

BUDGET = 5
WINDOW_S = 5
BOUNDS = {"min": 0, "behavior": {"scaleDown": {"stabilizationWindowSeconds": WINDOW_S}}}
POLICY = {
    "apiVersion": names.API_VERSION,
    "kind": names.POLICY_KIND,
    "metadata": {"name": NAME},
    "spec": {
        "targetRef": {"name": NAME},
        "engines": {**BOUNDS, "max": 2},
        "experts": {**BOUNDS, "max": 3},
        "budget": {"devices": BUDGET},
        "objectives": {"tpotMilliseconds": 1},  # which no CPU keeps: under load the pool is as large as it may be
        "idle": {"afterSeconds": 8},
        "intervalSeconds": 1,
    },
}


class Sizes:
    """Which sizes were desired, one after the other, and the most members that there were."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.seen: list[tuple[int, int]] = []
        self.most = 0
        self._pause = threading.Event()

    def until(self, what: str, wanted: tuple[int, int]) -> None:
        """Wait until these sizes are desired."""
        deadline = time.monotonic() + PATIENCE_S
        while self.look() != wanted:
            if time.monotonic() > deadline:
                pytest.fail(f"never came: {what}\n{self._world.kube.get(POLICIES, NAMESPACE, NAME)}")

    def look(self) -> tuple[int, int]:
        self._pause.wait(0.3)  # the API runs in this process
        status = self._world.kube.get(POLICIES, NAMESPACE, NAME).get("status") or {}
        desired = status.get("desired") or {}
        found = (desired.get("engines", -1), desired.get("experts", -1))
        if self.seen[-1:] != [found] and found[0] >= 0:
            self.seen.append(found)
        members = len(self._world.processes("worker")) + len(self._world.processes("engine"))
        self.most = max(self.most, members)
        return found


def burst(world: World, sizes: Sizes) -> Clients:
    """Requests until the pool is as large as it may be, and serves with all of it."""
    clients = world.new_clients()
    clients.start()
    try:
        sizes.until("it wants all that it may have", (2, 3))
        world.pool.settle(3)
    finally:
        clients.stop()
    return clients


def first_token(world: World) -> float:
    """Seconds until the first token of a request that comes now."""
    began = time.monotonic()
    with GenerationClient(world.ingress_address, tries=1) as client:
        parameters = {"max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True}
        pieces = client.generate_stream(PROMPTS[0], timeout_s=300, **parameters)
        assert next(pieces).tokens
        taken = time.monotonic() - began
        assert [*pieces][-1].finish_reason
    return taken


def assert_calm(changes: list[dict[str, Any]]) -> None:
    """No pool shrinks within the window after it has grown, so that it turns at most once within a window."""
    for pool in ("engines", "experts"):
        grew_at = 0.0
        for change in changes:
            at = from_rfc3339(change["time"])
            if change[pool] < 0:
                assert at - grew_at >= WINDOW_S - 1, f"{pool}, in whole seconds: {changes}"
            grew_at = at if change[pool] > 0 else grew_at


def play_bursts(world: World) -> str:
    """Two bursts with a pause; what was seen, in words."""
    world.pool.clients.stop()
    warm_s, sizes = first_token(world), Sizes(world)
    world.kube.create(POLICIES, NAMESPACE, POLICY)
    one = burst(world, sizes)
    sizes.until("it sleeps", (0, 0))
    world.pool.until("nothing is left", lambda: not world.processes("worker") and not world.processes("engine"))
    with urllib.request.urlopen(f"http://{world.ingress_address('http_port')}/v1/models", timeout=60) as models:
        assert world.uid in models.read().decode(), "the model is listed while nobody serves it"
    idle_s = first_token(world)
    other = burst(world, sizes)
    assert one.wrong + other.wrong + world.pool.clients.take_wrong() == []
    assert min(one.completed, other.completed) > 0
    assert sizes.most <= BUDGET
    totals = [sum(pair) for pair in sizes.seen]
    turns = [after > before for before, after in itertools.pairwise(totals) if after != before]
    reversals = sum(one != other for one, other in itertools.pairwise(turns))
    assert reversals <= 2, f"up, down to zero, and up: {sizes.seen}"
    assert_calm(world.kube.get(POLICIES, NAMESPACE, NAME)["status"]["changes"])
    return f"first token: {warm_s:.2f} s while it serves, {idle_s:.1f} s after it idled; {sizes.seen}"
