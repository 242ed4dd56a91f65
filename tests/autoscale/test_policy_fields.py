"""Each field of a MoEAutoscalingPolicy's spec has its effect: what is decided with one value, and with another."""

from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from datetime import UTC, datetime
from typing import Any, get_args, get_origin

import pytest

from flexpert_operator.api import Engines, Experts, Model, MoEDeployment, PlacementSpec, Serving
from flexpert_operator.api.autoscaling import PolicySpec
from flexpert_operator.api.fields import members, read
from flexpert_operator.autoscale import Policy, PoolCount, Sizes
from flexpert_operator.autoscale.policy import Window
from flexpert_operator.autoscale.schedule import floors
from flexpert_operator.decide.scaling import policy_of

Object = dict[str, Any]
TARGET = MoEDeployment(
    name="tiny",
    namespace="default",
    uid="u",
    generation=1,
    resource_version="1",
    model=Model("file:///models/tiny"),
    engines=Engines(),
    experts=Experts(workers=2),
    placement=PlacementSpec(),
    serving=Serving(),
)
BASE: Object = {
    "targetRef": {"name": "tiny"},
    "engines": {"max": 40},
    "experts": {"max": 60},
    "objectives": {"ttftMilliseconds": 5000, "tpotMilliseconds": 50},
}
AT_ONCE = {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}
PROMPTLY: Object = {"engines": AT_ONCE, "experts": AT_ONCE}
NINE = 1_767_258_000.0  # 2026-01-01 09:00 UTC, a Thursday
DAY = {"start": "0 9 * * *", "durationSeconds": 3600, "engines": 12, "experts": 12}
SEASON = [10.0] * 10 + [60.0] * 10 + [10.0] * 20
SEASONAL = {"mode": "Seasonal", "seasonSeconds": 600, "bins": 40}

Follow = Callable[..., Any]
Play = Callable[[Follow, Policy], float]


def merged(one: Object, other: Object) -> Object:
    """`other` over `one`, object by object."""
    found = dict(one)
    for name, value in other.items():
        both = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = merged(found[name], value) if both else value
    return found


def policy(*changes: Object) -> Policy:
    body = BASE
    for one in changes:
        body = merged(body, one)
    return policy_of(read(PolicySpec, body), TARGET, None)


def busy(follow: Follow, policy: Policy) -> float:
    """Devices under a load."""
    pool = follow(policy)
    list(pool.looks([1.0, 60.0, 60.0, 60.0]))
    return float(pool.sizes.devices(policy))


def workers(follow: Follow, policy: Policy) -> float:
    """Workers under a load."""
    pool = follow(policy)
    list(pool.looks([1.0, 60.0, 60.0, 60.0]))
    return float(pool.sizes.experts)


def quiet(follow: Follow, policy: Policy) -> float:
    """Devices of a pool that was large, after five minutes of nothing."""
    pool = follow(policy, Sizes(4, 8))
    list(pool.looks([5.0, *[0.0] * 20]))
    return float(pool.sizes.devices(policy))


def full(follow: Follow, policy: Policy) -> float:
    """Engines wanted where their KV memory is rather full."""
    looked = follow(policy, Sizes(4, 8)).look(1.0, kv_used=0.8, engines=PoolCount(4, 4))
    return float(looked.decision.wanted.engines)


def morning(follow: Follow, policy: Policy) -> float:
    """Devices at half past nine."""
    return float(follow(policy, start=NINE + 1800.0).look(0.0).decision.sizes.devices(policy))


def rush(follow: Follow, policy: Policy) -> float:
    """To what both pools have grown a minute after a floor was raised."""
    pool = follow(policy, Sizes(7, 7), start=NINE)
    list(pool.looks([0.0] * 4))
    return float(pool.sizes.engines + pool.sizes.experts)


def fall(follow: Follow, policy: Policy) -> float:
    """What is left of both pools a minute after nothing more is needed."""
    pool = follow(policy, Sizes(20, 20))
    list(pool.looks([0.0] * 4))
    return float(pool.sizes.engines + pool.sizes.experts)


def seasons(follow: Follow, policy: Policy) -> float:
    """Workers wanted shortly before the rate rises as it did in the seasons before."""
    pool = follow(policy, start=600.0 * 1000)
    list(pool.looks(SEASON * 3 + SEASON[:8]))
    return float(pool.look(10.0, scale_up_s=60.0).decision.wanted.experts)


def late(follow: Follow, policy: Policy) -> float:
    """Devices where figures come a minute late, and say that much more comes."""
    pool = follow(policy)
    list(pool.looks([1.0] * 4))
    for _ in range(8):
        pool.look(100.0, measured_at=pool.at + 15.0 - 60.0)
    return float(pool.sizes.devices(policy))


def blind(follow: Follow, policy: Policy) -> float:
    """Devices ten minutes after the last figures."""
    pool = follow(policy)
    list(pool.looks([1.0] * 4))
    for _ in range(40):
        pool.look(0.0, measured_at=None)
    return float(pool.sizes.devices(policy))


def rated(way: str, **rate: Any) -> Object:
    """One rate for both pools, in a direction."""
    return each(way, policies=[{"value": 1, "periodSeconds": 60, **rate}])


def each(way: str, **behavior: Any) -> Object:
    """A behavior of both pools, in a direction."""
    return {pool: {"behavior": {way: behavior}} for pool in ("engines", "experts")}


UP: Object = merged(PROMPTLY, {"schedule": [DAY]})
TWO = [{"value": 1, "periodSeconds": 60}, {"value": 4, "periodSeconds": 60}]
BEHAVIOR: tuple[tuple[str, Play, Object, Object, Object], ...] = (
    ("scaleUp.selectPolicy", rush, UP, each("scaleUp", selectPolicy="Disabled"), {}),
    (
        "scaleUp.selectPolicy",
        rush,
        UP,
        each("scaleUp", policies=TWO, selectPolicy="Min"),
        each("scaleUp", policies=TWO),
    ),
    ("scaleUp.policies.value", rush, UP, rated("scaleUp", value=1), rated("scaleUp", value=3)),
    ("scaleUp.policies.periodSeconds", rush, UP, rated("scaleUp"), rated("scaleUp", periodSeconds=15)),
    ("scaleUp.policies.type", rush, UP, rated("scaleUp", type="Percent", value=5), rated("scaleUp", value=5)),
    ("scaleUp.tolerancePercent", rush, UP, each("scaleUp", tolerancePercent=99), {}),
    ("scaleUp.stabilizationWindowSeconds", rush, UP, each("scaleUp", stabilizationWindowSeconds=3600), {}),
    ("scaleDown.selectPolicy", fall, PROMPTLY, {}, each("scaleDown", selectPolicy="Disabled")),
    ("scaleDown.policies.value", fall, PROMPTLY, rated("scaleDown", value=9), rated("scaleDown", value=1)),
    ("scaleDown.policies.periodSeconds", fall, PROMPTLY, rated("scaleDown", periodSeconds=15), rated("scaleDown")),
    (
        "scaleDown.policies.type",
        fall,
        PROMPTLY,
        rated("scaleDown", value=50),
        rated("scaleDown", value=50, type="Percent"),
    ),
    ("scaleDown.tolerancePercent", fall, PROMPTLY, {}, each("scaleDown", tolerancePercent=99)),
    ("scaleDown.stabilizationWindowSeconds", fall, PROMPTLY, {}, each("scaleDown", stabilizationWindowSeconds=600)),
)
"""(field of both pools' behavior, what is played, what both have, what gives fewer, what gives more)."""

ZERO = {"idle": {"afterSeconds": 60}, "engines": {"min": 0}, "experts": {"min": 0}}
CASES: tuple[tuple[str, Play, Object, Object, Object], ...] = (
    ("engines.min", quiet, PROMPTLY, {}, {"engines": {"min": 3}}),
    ("engines.max", morning, {"schedule": [DAY | {"engines": 1}]}, {}, {"schedule": [DAY]}),
    ("experts.min", quiet, PROMPTLY, {}, {"experts": {"min": 6}}),
    ("experts.max", workers, {}, {"experts": {"max": 3}}, {}),
    ("budget.devices", busy, {}, {"budget": {"devices": 4}}, {}),
    ("objectives.ttftMilliseconds", busy, {}, {}, {"objectives": {"ttftMilliseconds": 25}}),
    ("objectives.tpotMilliseconds", busy, {}, {}, {"objectives": {"tpotMilliseconds": 18}}),
    ("objectives.percentile", busy, {"objectives": {"tpotMilliseconds": 20}}, {"objectives": {"percentile": 50}}, {}),
    ("objectives.queueWaitMilliseconds", busy, {}, {}, {"objectives": {"queueWaitMilliseconds": 5}}),
    ("objectives.workerUtilisationPercent", busy, {}, {}, {"objectives": {"workerUtilisationPercent": 10}}),
    ("objectives.kvUtilisationPercent", full, {}, {}, {"objectives": {"kvUtilisationPercent": 40}}),
    ("schedule.start", morning, {}, {"schedule": [DAY | {"start": "0 11 * * *"}]}, {"schedule": [DAY]}),
    ("schedule.durationSeconds", morning, {}, {"schedule": [DAY | {"durationSeconds": 900}]}, {"schedule": [DAY]}),
    ("schedule.timeZone", morning, {}, {"schedule": [DAY | {"timeZone": "Europe/Zurich"}]}, {"schedule": [DAY]}),
    ("schedule.engines", morning, {}, {"schedule": [DAY | {"engines": 0}]}, {"schedule": [DAY]}),
    ("schedule.experts", morning, {}, {"schedule": [DAY | {"experts": 0}]}, {"schedule": [DAY]}),
    ("forecast.mode", seasons, {"forecast": SEASONAL}, {"forecast": {"mode": "Off"}}, {}),
    ("forecast.seasonSeconds", seasons, {"forecast": SEASONAL}, {"forecast": {"seasonSeconds": 86400}}, {}),
    ("forecast.bins", seasons, {"forecast": SEASONAL}, {"forecast": {"bins": 2}}, {}),
    ("idle.afterSeconds", quiet, merged(PROMPTLY, ZERO), {}, {"idle": {"afterSeconds": 600}}),
    ("stale.afterSeconds", late, {}, {}, {"stale": {"afterSeconds": 120}}),
    ("stale.safeAfterSeconds", blind, {"stale": {"experts": 9}}, {"stale": {"safeAfterSeconds": 3600}}, {}),
    ("stale.engines", blind, {}, {}, {"stale": {"engines": 9}}),
    ("stale.experts", blind, {}, {}, {"stale": {"experts": 9}}),
    ("pause", busy, {}, {"pause": True}, {}),
    ("dryRun", busy, {}, {"dryRun": True}, {}),
    *((f"{pool}.behavior.{case[0]}", *case[1:]) for pool in ("engines", "experts") for case in BEHAVIOR),
)
ELSEWHERE = {
    "targetRef.name": "tests/operator/test_policies.py",
    "targetRef.apiVersion": "tests/operator/test_policy_models.py",
    "targetRef.kind": "tests/operator/test_policy_models.py",
    "intervalSeconds": "tests/operator/test_policies.py",
}


@pytest.mark.parametrize(("path", "play", "both", "fewer", "more"), CASES, ids=[case[0] for case in CASES])
def test_a_field_has_its_effect(
    follow: Follow, path: str, play: Play, both: Object, fewer: Object, more: Object
) -> None:
    pools = [path.split(".")[0]] if ".behavior." in path else []
    one, other = (
        merged(both, {name: value for name, value in change.items() if not pools or name in pools})
        for change in (fewer, more)
    )
    assert play(follow, policy(one)) < play(follow, policy(other))


def paths(model: type, prefix: str = "") -> Iterator[str]:
    """Paths of the fields that hold values."""
    for member in members(model):
        kind = get_args(member.type)[0] if get_origin(member.type) is tuple else member.type
        path = f"{prefix}{member.name}"
        yield from paths(kind, f"{path}.") if is_dataclass(kind) else (path,)


def test_no_field_is_left_out() -> None:
    assert set(paths(PolicySpec)) == {case[0] for case in CASES} | set(ELSEWHERE)


def test_the_horizon_of_a_forecast_is_the_time_that_members_take_to_come(follow: Follow) -> None:
    def workers(scale_up_s: float) -> int:
        pool = follow(policy({"forecast": SEASONAL}), start=600.0 * 1000)
        list(pool.looks(SEASON * 3 + SEASON[:6]))
        wanted: Sizes = pool.look(10.0, scale_up_s=scale_up_s).decision.wanted
        return wanted.experts

    assert workers(20.0) < workers(90.0)


def test_windows_are_read_in_their_time_zone_whatever_the_season() -> None:
    window = Window("0 8 * * 1-5", 36000.0, engines=1, experts=4, time_zone="Europe/Zurich")

    def holds(*at: int) -> bool:
        return floors((window,), datetime(*at, tzinfo=UTC).timestamp()) == Sizes(1, 4)  # type: ignore[arg-type,misc]

    assert [holds(2026, 1, 15, 6, 59), holds(2026, 1, 15, 7, 1), holds(2026, 1, 15, 17, 1)] == [False, True, False]
    assert [holds(2026, 7, 15, 5, 59), holds(2026, 7, 15, 6, 1), holds(2026, 7, 15, 16, 1)] == [False, True, False]
    assert not holds(2026, 1, 17, 9, 0), "a Saturday"


@pytest.mark.parametrize(
    ("begins", "start"),
    [
        (datetime(2026, 3, 28, 21, tzinfo=UTC), "0 22 * * *"),  # 22:00 in Zurich; at 02:00 it is 03:00
        (datetime(2026, 10, 24, 20, tzinfo=UTC), "0 22 * * *"),  # at 03:00 it is 02:00 once more
    ],
)
def test_a_window_is_as_long_as_it_says_also_where_clocks_are_changed_within_it(begins: datetime, start: str) -> None:
    window, began = Window(start, 8 * 3600.0, engines=2, time_zone="Europe/Zurich"), begins.timestamp()
    held = [floors((window,), began + hours * 3600.0).engines == 2 for hours in (-0.1, 0.1, 5, 7.9, 8.1)]
    assert held == [False, True, True, True, False]


def test_the_highest_floor_of_windows_that_overlap_holds() -> None:
    windows = (Window("0 8 * * *", 7200.0, 1, 8), Window("0 9 * * *", 7200.0, 3, 2))
    assert floors(windows, NINE + 60.0) == Sizes(3, 8)


def test_a_pool_that_no_size_makes_quick_enough_shrinks_once_nothing_comes(follow: Follow) -> None:
    pool = follow(policy(PROMPTLY, {"objectives": {"tpotMilliseconds": 1}, "budget": {"devices": 9}}))
    list(pool.looks([20.0] * 5))
    assert pool.sizes.devices(pool.policy) == 9
    list(pool.looks([0.0] * 8))
    assert pool.sizes == Sizes(1, 1)
