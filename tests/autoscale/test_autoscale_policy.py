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
        ({"experts": Bounds(-1, 2)}, "spec.experts.min"),
        ({"experts": Bounds(0, 2)}, "spec.experts.min: 0 needs spec.idle"),
        ({"devices": 1}, "spec.budget.devices"),
        ({"devices": 4, "experts": Bounds(4, 9)}, "spec.budget.devices: 4 is below 5"),
        ({"objectives": Objectives(ttft_s=0.0)}, "spec.objectives.ttftMilliseconds"),
        ({"objectives": Objectives(tpot_s=float("nan"))}, "spec.objectives.tpotMilliseconds"),
        ({"objectives": Objectives(percentile=99.0)}, "spec.objectives.percentile"),
        ({"objectives": Objectives(worker_utilisation=90.0)}, "spec.objectives.workerUtilisationPercent"),
        (
            {"experts_behavior": Behavior(up=Direction((Rate(Unit.PIECES, 0, 60.0),)))},
            "spec.experts.behavior.scaleUp.policies[0].value",
        ),
        (
            {"engines_behavior": Behavior(down=Direction(stabilisation_s=4000.0))},
            "spec.engines.behavior.scaleDown.stabilizationWindowSeconds",
        ),
        ({"schedule": (Window("61 * * * *", 60.0),)}, "spec.schedule[0].start"),
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
