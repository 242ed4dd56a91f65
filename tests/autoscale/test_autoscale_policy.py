"""Policies that contradict themselves are refused with the field."""

from dataclasses import replace

import pytest

from flexpert_operator.autoscale.policy import (
    Behavior,
    Bounds,
    Direction,
    Forecast,
    Idle,
    InvalidPolicy,
    Objectives,
    Policy,
    Rate,
    Stale,
    Unit,
    Window,
    check,
)

GOOD = Policy("tiny", devices=8, objectives=Objectives(ttft_s=0.5))


def test_a_good_policy_passes():
    assert check(GOOD) is GOOD


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"engines": Bounds(3, 2)}, "spec.engines.max"),
        ({"engines": Bounds(0, 0), "idle": Idle()}, "spec.engines.max: 0 is below min, or below 1"),
        ({"experts": Bounds(-1, 2)}, "spec.experts.min"),
        ({"engines": Bounds(0, 2)}, "spec.engines.min: 0 needs spec.idle"),
        ({"experts": Bounds(0, 2)}, "spec.experts.min: 0 needs spec.idle"),
        ({"devices": 1}, "spec.budget.devices"),
        ({"worker_devices": -1}, "spec.budget"),
        ({"devices": 4, "experts": Bounds(4, 9)}, "spec.budget.devices: 4 is below 5"),
        ({"objectives": Objectives(ttft_s=0.0)}, "spec.objectives.ttftMilliseconds"),
        ({"objectives": Objectives(tpot_s=float("nan"))}, "spec.objectives.tpotMilliseconds"),
        ({"objectives": Objectives(queue_wait_s=-1.0)}, "spec.objectives.queueWaitMilliseconds"),
        ({"objectives": Objectives(percentile=99.0)}, "spec.objectives.percentile"),
        ({"objectives": Objectives(kv_utilisation=0.0)}, "spec.objectives.kvUtilisationPercent"),
        ({"objectives": Objectives(worker_utilisation=90.0)}, "spec.objectives.workerUtilisationPercent"),
        (
            {"experts_behavior": Behavior(up=Direction((Rate(Unit.PIECES, 0, 60.0),)))},
            "spec.experts.behavior.scaleUp.policies[0].value",
        ),
        (
            {"engines_behavior": Behavior(down=Direction(stabilisation_s=4000.0))},
            "spec.engines.behavior.scaleDown.stabilizationWindowSeconds",
        ),
        (
            {"experts_behavior": Behavior(down=Direction((Rate(Unit.PIECES, 1, 9.0), Rate(Unit.PERCENT, 1, 1801.0))))},
            "spec.experts.behavior.scaleDown.policies[1].periodSeconds",
        ),
        ({"engines_behavior": Behavior(up=Direction(tolerance=1.0))}, "spec.engines.behavior.scaleUp.tolerance"),
        ({"schedule": (Window("61 * * * *", 60.0),)}, "spec.schedule[0].start"),
        ({"schedule": (Window("0 9 * * *", 60.0), Window("0 9 * * *", 0.0))}, "spec.schedule[1].durationSeconds"),
        ({"schedule": (Window("0 9 * * *", 60.0, engines=17),)}, "spec.schedule[0].engines: 17 is not 0 to"),
        ({"schedule": (Window("0 9 * * *", 60.0, time_zone="Mars/Base"),)}, "spec.schedule[0].timeZone"),
        ({"schedule": (Window("0 9 * * *", 60.0, experts=99),)}, "spec.schedule[0].experts"),
        ({"schedule": (Window("0 9 * * *", 60.0, engines=4, experts=8),)}, "spec.schedule[0].engines: this floor"),
        ({"forecast": Forecast(0.0)}, "spec.forecast.seasonSeconds"),
        ({"idle": Idle(0.0)}, "spec.idle.afterSeconds"),
        ({"stale": Stale(60.0, 30.0)}, "spec.stale.afterSeconds"),
    ],
)
def test_what_is_refused_names_the_field(changed, field):
    with pytest.raises(InvalidPolicy) as refused:
        check(replace(GOOD, **changed))
    assert str(refused.value).startswith(field)
