"""What a policy's status says of a decision: conditions with reason and numbers, Events, and when it is written."""

from dataclasses import replace
from typing import Any

import pytest

from flexpert_operator.api.autoscaling import MoEAutoscalingPolicy, parse_policy
from flexpert_operator.api.reasons import AbleReason
from flexpert_operator.autoscale import Decision, Observation, Policy, PoolCount, Sizes, State
from flexpert_operator.autoscale.state import Limit
from flexpert_operator.decide import policy_status
from flexpert_operator.decide.policy_status import Outcome
from flexpert_operator.policies import events_of

Object = dict[str, Any]
NOW = 1000.0
POLICY = Policy("tiny", devices=6)
DECISION = Decision(Sizes(1, 4), Sizes(1, 4), "from 1 engine and 2 workers to 1 engine and 4 workers: because")
HELD = Observation(NOW, PoolCount(1, 1), PoolCount(2, 5), NOW)
ORDINARY = {"ScalingActive": "Deciding", "ScalingLimited": "DesiredWithinRange", "BudgetExhausted": "WithinBudget"}


def outcome(decision: Object, policy: Object, **changes: Any) -> Outcome:
    return replace(
        Outcome(NOW, None, replace(DECISION, **decision), State.initial(), replace(POLICY, **policy), HELD), **changes
    )


def read(status: Object | None = None) -> MoEAutoscalingPolicy:
    metadata = {"name": "p", "namespace": "n", "uid": "u", "generation": 3, "resourceVersion": "1"}
    spec = {"targetRef": {"name": "tiny"}}
    return parse_policy({"metadata": metadata, "spec": spec, "status": status or {}})


def conditions(found: Outcome) -> dict[str, tuple[str, str, str]]:
    status = policy_status.build_status(read(), found)
    assert all(one["observedGeneration"] == 3 for one in status["conditions"])
    return {one["type"]: (one["status"], one["reason"], one["message"]) for one in status["conditions"]}


WANTED = {"wanted": Sizes(2, 9)}


@pytest.mark.parametrize(
    ("decision", "policy", "other", "expected", "words"),
    [
        ({}, {}, {}, {}, "1 engine and 4 workers take 5 of 6 devices, 6 are held"),
        ({}, {"devices": None}, {}, {"BudgetExhausted": "NoBudget"}, "there is no budget"),
        *(
            (
                WANTED | {"limits": frozenset({limit})},
                {},
                {},
                {"ScalingLimited": reason} | more,
                "2 engines and 9 workers are asked for, 1 engine and 4 workers are desired",
            )
            for limit, reason, more in (
                (Limit.BOUNDS, "Bounds", {}),
                (Limit.BUDGET, "BudgetExhausted", {"BudgetExhausted": "BudgetExhausted"}),
                (Limit.RATE, "RateLimited", {}),
                (Limit.STABILISED, "Stabilised", {}),
                (Limit.STALE, "StaleMetrics", {"ScalingActive": "StaleMetrics"}),
            )
        ),
        (
            {"limits": frozenset({Limit.STALE})},
            {},
            {"serving": False},
            {"ScalingLimited": "StaleMetrics", "ScalingActive": "TargetNotServing"},
            "tiny does not serve its model yet: 1 engine and 4 workers",
        ),
        (
            {"limits": frozenset({Limit.STALE}), "sizes": Sizes(0, 0)},
            {},
            {"serving": False},
            {"ScalingLimited": "StaleMetrics", "ScalingActive": "StaleMetrics"},
            "from 1 engine and 2 workers",
        ),
        (
            {"limits": frozenset({Limit.PAUSED})},
            {"pause": True},
            {},
            {"ScalingLimited": "Paused", "ScalingActive": "Paused"},
            "spec.pause is true: 1 engine and 4 workers stay",
        ),
        ({}, {"dry_run": True}, {}, {"ScalingActive": "DryRun"}, "it would be: from 1 engine and 2 workers"),
        ({"sizes": Sizes(0, 0)}, {}, {}, {"ScalingActive": "Idle"}, "from 1 engine and 2 workers"),
    ],
)
def test_conditions_have_the_reason_and_the_numbers_of_the_decision(
    decision: Object, policy: Object, other: Object, expected: Object, words: str
) -> None:
    found = conditions(outcome(decision, policy, **other))
    assert {kind: reason for kind, (_, reason, _) in found.items()} == ORDINARY | {
        "AbleToScale": "ReadyForNewScale"
    } | expected
    assert any(words in message for _, _, message in found.values())
    active = found["ScalingActive"]
    assert active[0] == ("True" if active[1] in ("Deciding", "Idle") else "False")
    assert found["BudgetExhausted"][0] == ("True" if found["BudgetExhausted"][1] == "BudgetExhausted" else "False")
    assert found["ScalingLimited"][0] == ("False" if found["ScalingLimited"][1] == "DesiredWithinRange" else "True")


@pytest.mark.parametrize("reason", list(AbleReason)[1:])
def test_where_nothing_is_decided_the_reason_is_said_once(reason: AbleReason) -> None:
    found = Outcome(NOW, (reason, "spec.targetRef.name: why"))
    said = conditions(found)
    assert {kind: (status, why) for kind, (status, why, _) in said.items()} == {
        "ScalingActive": ("False", "UnableToScale"),
        "AbleToScale": ("False", str(reason)),
        "ScalingLimited": ("Unknown", "NothingDecided"),
        "BudgetExhausted": ("Unknown", "NothingDecided"),
    }
    body = read()
    new = policy_status.build_status(body, found)
    (event,) = events_of(body, new, found)
    assert (event.reason, event.message, event.warning) == (reason, "spec.targetRef.name: why", True)
    assert events_of(read(new), new, found) == ()


def test_sizes_stay_desired_unless_the_target_is_anothers_or_gone() -> None:
    old = {"desired": {"engines": 1, "experts": 4}}
    for reason in AbleReason:
        new = policy_status.build_status(read(old), Outcome(NOW, (reason, "why")))
        assert ("desired" in new) == (reason not in (AbleReason.TARGET_TAKEN, AbleReason.TARGET_NOT_FOUND))


def test_a_change_of_the_sizes_is_an_event_and_a_dry_run_says_what_would_be() -> None:
    body = read({"desired": {"engines": 1, "experts": 2}})
    acted = policy_status.build_status(body, outcome({}, {}))
    assert (acted["desired"], acted["devices"]) == ({"engines": 1, "experts": 4}, 5)
    (event,) = events_of(body, acted, outcome({}, {}))
    assert (event.reason, event.message, event.warning) == ("Rescaled", DECISION.reason, False)
    assert events_of(read(acted), acted, outcome({}, {})) == ()
    dry = outcome({}, {"dry_run": True})
    told = policy_status.build_status(body, dry)
    assert (told["wouldBe"], "desired" in told) == ({"engines": 1, "experts": 4}, False)
    (event,) = events_of(body, told, dry)
    assert event.reason == "WouldRescale"
    (event,) = events_of(read(told), acted, outcome({}, {}))
    assert event.reason == "Rescaled"
    paused = policy_status.build_status(body, outcome({}, {"pause": True}))
    assert paused["desired"] == {"engines": 1, "experts": 2}


def test_a_decision_that_only_repeats_itself_is_written_once_a_minute() -> None:
    old = policy_status.build_status(read(), outcome({}, {}))
    again = policy_status.build_status(read(old), outcome({"reason": "other numbers"}, {}))
    assert not policy_status.worth_writing(old, again, NOW + 1.0)
    assert policy_status.worth_writing(old, again, NOW + policy_status.TELL_S)
    limited = policy_status.build_status(read(old), outcome({"limits": frozenset({Limit.RATE})}, {}))
    assert policy_status.worth_writing(old, limited, NOW + 1.0)
