"""Policies in the operator, end to end: embedded API, a simulated KubeRay and pool, and traffic that is played.

Policies are decided by a clock that runs faster than others, so that windows of minutes pass in seconds.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from played_traffic import PlayedTraffic
from prometheus_client.parser import text_string_to_metric_families
from prometheus_servers import SmallPrometheus, answering
from simulated_cluster import NAMESPACE
from simulated_world import SETTINGS, Operator, World, pool_pods, run_world

from flexpert_operator.api import names
from flexpert_operator.errors import KubeConflict
from flexpert_operator.kube import MOE_DEPLOYMENTS, POLICIES, SCALERS
from flexpert_operator.settings import PrometheusAt
from flexpert_proto.measuring import figures_of
from flexpert_proto.metrics import ENGINE, INGRESS, WORKER
from flexpert_workers.exposition import families_of, render

Object = dict[str, Any]
SPEED = 20.0
BEGAN = time.time()
BUDGET = 7
PROMPTLY = {"scaleDown": {"stabilizationWindowSeconds": 60}}
PATIENT = {"afterSeconds": 300, "safeAfterSeconds": 300}
"""By the fast clock figures are old where the machine stops for a moment."""


def fast_clock() -> float:
    return BEGAN + (time.time() - BEGAN) * SPEED


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with run_world(tmp_path_factory.mktemp("policies"), clock=fast_clock) as found:
        yield found


@pytest.fixture(autouse=True)
def _clean(world: World) -> Iterator[None]:
    yield
    for resource in (POLICIES, SCALERS):
        for body in world.kube.list(resource, NAMESPACE, ""):
            world.kube.delete(resource, NAMESPACE, body["metadata"]["name"])
    world.clean()


def policy(name: str, target: str, **spec: Any) -> Object:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.POLICY_KIND,
        "metadata": {"name": name},
        "spec": {
            "targetRef": {"name": target},
            "engines": {"max": 2, "behavior": PROMPTLY},
            "experts": {"max": 6, "behavior": PROMPTLY},
            "objectives": {"tpotMilliseconds": 50, "percentile": 90},
            "intervalSeconds": 1,
            "stale": PATIENT,
        }
        | spec,
    }


def status_of(world: World, name: str) -> Object:
    found: Object = world.kube.get(POLICIES, NAMESPACE, name).get("status") or {}
    return found


def reason(world: World, name: str, kind: str) -> tuple[str, str]:
    for one in status_of(world, name).get("conditions", ()):
        if one["type"] == kind:
            return one["status"], one["reason"]
    return "", ""


def desired(world: World, name: str) -> tuple[int, int]:
    found = status_of(world, name).get("desired") or {}
    return found.get("engines", -1), found.get("experts", -1)


def under_traffic(world: World, name: str) -> PlayedTraffic:
    pool = world.serve(name)
    pool.figures = PlayedTraffic(fast_clock)
    return pool.figures


def autoscaled(world: World, name: str, replicas: int) -> bool:
    """What HorizontalPodAutoscaler does: it writes the whole Scale that it read, and reads it again on a conflict."""
    path = MOE_DEPLOYMENTS.path(NAMESPACE, name, "scale")
    scale = world.kube.request("GET", path)
    assert scale["status"]["replicas"] == 2, "that it counts with"
    scale["spec"]["replicas"] = replicas
    try:
        world.kube.request("PUT", path, scale)
    except KubeConflict:
        return False
    return True


class Watcher:
    """Looks at how many pods there are, and which sizes were desired, each time that it is asked."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name
        self.most = 0
        self.devices: list[int] = []

    def look(self) -> int:
        pods = sum(len(pool_pods(self._world, self._name, role)) for role in ("experts", "engines"))
        self.most = max(self.most, pods)
        engines, experts = desired(self._world, self._name)
        if experts >= 0 and self.devices[-1:] != [engines + experts]:
            self.devices.append(engines + experts)
        return experts


def test_a_pool_grows_under_load_within_its_budget_and_shrinks(world: World) -> None:
    traffic, seen = under_traffic(world, "busy"), Watcher(world, "busy")
    world.kube.create(POLICIES, NAMESPACE, policy("busy", "busy", budget={"devices": BUDGET}))
    world.until("it decides", lambda: reason(world, "busy", "ScalingActive") == ("True", "Deciding"))
    traffic.rate = 12.0
    world.until("it grows", lambda: seen.look() >= 4)
    message = status_of(world, "busy")["lastDecision"]["message"]
    assert "need" in message or "stay" in message
    world.until("pods follow", lambda: seen.look() >= 4 and world.is_settled("busy"))
    traffic.rate = 40.0
    world.until("it wants too much", lambda: seen.look() and reason(world, "busy", "BudgetExhausted")[0] == "True")
    world.until("all that it may have", lambda: seen.look() + desired(world, "busy")[0] == BUDGET)
    traffic.rate = 0.0
    world.until("it shrinks", lambda: seen.look() == 1 and world.is_settled("busy"))
    assert seen.most <= BUDGET, "also while it changes"
    shrinks = [one < other for one, other in zip(seen.devices[1:], seen.devices, strict=False)]
    assert shrinks == sorted(shrinks), f"{seen.devices}: it grew, and then it shrank"
    assert world.condition("busy", "ScaledByPolicy") == ("True", "ScaledByPolicy")
    assert "Rescaled" in world.reasons("busy")
    assert world.get("busy")["spec"]["experts"]["workers"] == 2, "a policy writes no spec"


def test_a_rollout_and_another_head_keep_the_budget(world: World) -> None:
    traffic, seen = under_traffic(world, "exact"), Watcher(world, "exact")
    traffic.rate = 1.0
    one, two = ({"min": number, "max": number} for number in (1, 2))
    world.kube.create(POLICIES, NAMESPACE, policy("exact", "exact", engines=one, experts=two, budget={"devices": 3}))
    world.until("it decides", lambda: desired(world, "exact") == (1, 2))
    before = {pod["metadata"]["name"] for pod in pool_pods(world, "exact")}
    world.patch("exact", {"experts": {"resources": {"limits": {"cpu": "2"}}}})

    def is_replaced() -> bool:
        now = {pod["metadata"]["name"] for pod in pool_pods(world, "exact")}
        return seen.look() == 2 == len(now) and before.isdisjoint(now) and world.is_settled("exact")

    world.until("all pods are new", is_replaced)
    assert seen.most == 3, "an older one made place for each"
    assert not world.cluster.pools["exact"].killed_holders
    world.patch("exact", {"head": {"env": [{"name": "SOME", "value": "thing"}]}})
    world.until("it is said", lambda: world.condition("exact", "Degraded") == ("True", "RolloutBlocked"))
    assert "6 devices in all, and the policy's budget has 3" in str(world.get("exact")["status"]["conditions"])
    assert (seen.look(), seen.most) == (2, 3)
    world.kube.patch(POLICIES, NAMESPACE, "exact", {"spec": {"budget": {"devices": 6}}})
    world.until(
        "a second RayCluster has followed", lambda: any(one.startswith("exact-") for one in world.cluster.pools)
    )
    world.until("it serves", lambda: world.condition("exact", "Degraded")[0] == "False" and world.is_settled("exact"))


def test_what_an_autoscaler_writes_does_not_count_while_a_policy_decides(world: World) -> None:
    traffic = under_traffic(world, "ruled")
    traffic.rate = 1.0
    world.kube.create(POLICIES, NAMESPACE, policy("ruled", "ruled", experts={"min": 2, "max": 2}))
    world.until("it decides", lambda: desired(world, "ruled") == (1, 2))
    world.until("an autoscaler wants five", lambda: autoscaled(world, "ruled", 5))
    world.until("the condition has both", lambda: "spec.experts.workers 5" in str(world.get("ruled")["status"]))
    assert world.condition("ruled", "ScaledByPolicy") == ("True", "ScaledByPolicy")
    assert len(pool_pods(world, "ruled")) == 2
    world.kube.delete(POLICIES, NAMESPACE, "ruled")
    world.until("the spec counts again", lambda: len(pool_pods(world, "ruled")) == 5)
    world.until("and nothing says otherwise", lambda: world.condition("ruled", "ScaledByPolicy") == ("", ""))


def test_sizes_are_held_without_figures_and_after_a_restart_of_the_operator(world: World) -> None:
    traffic = under_traffic(world, "held")
    traffic.rate = 12.0
    world.kube.create(POLICIES, NAMESPACE, policy("held", "held"))
    world.until("it grows", lambda: desired(world, "held")[1] >= 4)
    world.until("settled", lambda: world.is_settled("held"))
    world.operator.stop()
    before = desired(world, "held")
    world.operator = Operator(world.kubeconfig, clock=world.clock)
    world.until("it decides again", lambda: reason(world, "held", "ScalingActive") == ("True", "Deciding"))
    assert desired(world, "held")[1] >= before[1], "an operator that knows nothing yet shrinks nothing"
    assert status_of(world, "held")["changes"], "what grew lately stands in the status"
    world.cluster.pools["held"].figures = None
    world.kube.patch(POLICIES, NAMESPACE, "held", {"spec": {"stale": {"afterSeconds": 45, "safeAfterSeconds": 60}}})
    world.until("figures are stale", lambda: reason(world, "held", "ScalingActive") == ("False", "StaleMetrics"))
    stood = desired(world, "held")
    assert status_of(world, "held")["learnt"]["workerTokenNanoseconds"] > 500_000, "and what was fitted"
    world.until("they stay so", lambda: "safe floor" in str(status_of(world, "held")["lastDecision"]))
    assert desired(world, "held") == stood
    world.kube.patch(POLICIES, NAMESPACE, "held", {"spec": {"stale": {"engines": 2, "experts": 6}}})
    world.until("a safe floor that is above holds", lambda: desired(world, "held") == (2, 6))
    world.until("pods follow", lambda: len(pool_pods(world, "held")) == 6)


def test_a_pool_that_idles_goes_to_zero_and_a_request_that_waits_wakes_it(world: World) -> None:
    traffic = under_traffic(world, "sleepy")
    bounds = {"min": 0, "max": 2, "behavior": PROMPTLY}
    spec = {"engines": bounds, "experts": bounds, "idle": {"afterSeconds": 60}}
    world.kube.create(POLICIES, NAMESPACE, policy("sleepy", "sleepy", **spec))
    world.until("it sleeps", lambda: desired(world, "sleepy") == (0, 0))
    world.until(
        "no pod is left",
        lambda: not pool_pods(world, "sleepy") and not pool_pods(world, "sleepy", "engines"),
    )
    world.until("it says so", lambda: world.condition("sleepy", "Ready") == ("False", "Idle"))
    assert reason(world, "sleepy", "ScalingActive") == ("True", "Idle")
    world.operator.stop()
    world.operator = Operator(world.kubeconfig, clock=world.clock)
    looks = world.reconciliations("sleepy")
    world.until("an operator that starts anew has looked", lambda: world.reconciliations("sleepy") > looks)
    assert desired(world, "sleepy") == (0, 0), "and lets it sleep"
    traffic.waiting = 1.0
    world.until("it wakes", lambda: min(desired(world, "sleepy")) >= 1)
    world.until("it serves", lambda: world.condition("sleepy", "Ready")[0] == "True")


def test_a_policy_that_cannot_be_carried_out_says_which_field_and_leaves_sizes_alone(world: World) -> None:
    world.serve("plain")
    for name, changes, words in (
        ("cron", {"schedule": [{"start": "0 25 * * *", "durationSeconds": 60}]}, "spec.schedule[0].start"),
        ("small", {"budget": {"devices": 1}}, "spec.budget.devices"),
    ):
        world.kube.create(POLICIES, NAMESPACE, policy(name, "plain", **changes))
        world.until(name, lambda name=name: reason(world, name, "AbleToScale") == ("False", "InvalidPolicy"))
        (able,) = [one for one in status_of(world, name)["conditions"] if one["type"] == "AbleToScale"]
        assert able["message"].startswith(words)
        assert "desired" not in status_of(world, name)
        world.kube.delete(POLICIES, NAMESPACE, name)
    assert len(pool_pods(world, "plain")) == 2


def test_of_two_policies_the_older_decides_and_a_dry_run_only_tells(world: World) -> None:
    world.serve("shared").figures = PlayedTraffic(fast_clock)
    world.kube.create(POLICIES, NAMESPACE, policy("first", "shared", dryRun=True, experts={"min": 3, "max": 4}))
    world.until("it tells", lambda: status_of(world, "first").get("wouldBe", {}).get("experts") == 3)
    assert "desired" not in status_of(world, "first")
    assert reason(world, "first", "ScalingActive") == ("False", "DryRun")
    world.until("an Event, too", lambda: "WouldRescale" in world.reasons("first"))
    assert world.condition("shared", "ScaledByPolicy") == ("", "")
    world.kube.create(POLICIES, NAMESPACE, policy("second", "shared"))
    world.until("the younger may not", lambda: reason(world, "second", "AbleToScale") == ("False", "TargetTaken"))
    world.until("it is told", lambda: "TargetTaken" in world.reasons("second"))
    assert "first" in status_of(world, "second")["conditions"][0]["message"], "which one may"
    world.kube.patch(POLICIES, NAMESPACE, "first", {"spec": {"dryRun": False}})
    world.until("now it acts", lambda: desired(world, "first")[1] == 3 and len(pool_pods(world, "shared")) == 3)
    world.kube.patch(POLICIES, NAMESPACE, "first", {"spec": {"pause": True, "experts": {"min": 4}}})
    world.until("it pauses", lambda: reason(world, "first", "ScalingActive") == ("False", "Paused"))
    assert desired(world, "first")[1] == 3
    world.kube.delete(POLICIES, NAMESPACE, "first")
    world.until("the younger decides", lambda: reason(world, "second", "AbleToScale") == ("True", "ReadyForNewScale"))


class PlayedPrometheus(SmallPrometheus):
    """Has scraped played traffic of a pool, by the fast clock."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(["played"])
        self.traffic = PlayedTraffic(fast_clock)
        self._world, self._name = world, name

    def evaluate(self, query: str) -> list[Object]:
        self.scraped_at = fast_clock()
        return super().evaluate(query)

    def scrape(self, target: str) -> list[Any]:
        sizes = (len(pool_pods(self._world, self._name, role)) for role in ("engines", "experts"))
        figures, labels = figures_of(self.traffic(*sizes)), {"namespace": NAMESPACE, "name": self._name}
        text, _ = render(families_of(figures, (*ENGINE, *WORKER, *INGRESS), labels), "")
        return [one for family in text_string_to_metric_families(text.decode()) for one in family.samples]


@pytest.fixture
def prometheus(world: World) -> Iterator[PlayedPrometheus]:
    """The operator reads figures from it."""
    with answering(PlayedPrometheus(world, "scraped")) as server:
        assert isinstance(server, PlayedPrometheus)
        world.operator.stop()
        world.operator = Operator(
            world.kubeconfig, replace(SETTINGS, prometheus=PrometheusAt(server.url)), clock=world.clock
        )
        yield server
        world.operator.stop()
        world.operator = Operator(world.kubeconfig, clock=world.clock)


def test_a_prometheus_has_the_figures_but_a_pool_that_sleeps_is_woken_without_it(
    world: World, prometheus: PlayedPrometheus
) -> None:
    told = under_traffic(world, "scraped")
    prometheus.traffic.rate = 12.0
    spec = {
        "engines": {"min": 0, "max": 2, "behavior": PROMPTLY},
        "experts": {"min": 0, "max": 6, "behavior": PROMPTLY},
    }
    world.kube.create(POLICIES, NAMESPACE, policy("scraped", "scraped", idle={"afterSeconds": 60}, **spec))
    world.until("it grows by what was scraped", lambda: desired(world, "scraped")[1] >= 4)
    prometheus.traffic.rate = 0.0
    world.until("it sleeps", lambda: desired(world, "scraped") == (0, 0))
    world.kube.patch(POLICIES, NAMESPACE, "scraped", {"spec": {"stale": {"afterSeconds": 45}}})
    prometheus.down = {"played"}
    world.until("it is blind", lambda: reason(world, "scraped", "ScalingActive") == ("False", "StaleMetrics"))
    told.waiting = 1.0
    world.until("it wakes", lambda: min(desired(world, "scraped")) >= 1)


def test_engines_are_scaled_by_a_scaler(world: World) -> None:
    world.serve("many")
    scaler = {
        "apiVersion": names.API_VERSION,
        "kind": names.SCALER_KIND,
        "metadata": {"name": "many-engines"},
        "spec": {"targetRef": {"name": "many"}},
    }
    world.kube.create(SCALERS, NAMESPACE, scaler)
    world.kube.patch(SCALERS, NAMESPACE, "many-engines", {"spec": {"replicas": 2}}, subresource="scale")
    world.until("two engines", lambda: len(pool_pods(world, "many", "engines")) == 2 and world.is_settled("many"))
    found = world.kube.request("GET", SCALERS.path(NAMESPACE, "many-engines", "scale"))
    world.until(
        "the subresource says so",
        lambda: world.kube.request("GET", SCALERS.path(NAMESPACE, "many-engines", "scale"))["status"]["replicas"] == 2,
    )
    assert found["status"]["selector"] == names.selector("many", names.ENGINES_ROLE)
    assert world.condition("many", "ScaledByPolicy") == ("True", "ScaledByScaler")
