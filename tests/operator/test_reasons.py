"""What conditions and Events say is documented, and ModelLoaded says where the model is."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import flexpert_operator
from flexpert_operator.api import Model, MoEDeployment, Resources
from flexpert_operator.api.conditions import MODEL_LOADED
from flexpert_operator.api.reasons import CONDITIONS, POLICY_CONDITIONS, EventReason, PolicyEventReason
from flexpert_operator.api.words import Reason
from flexpert_operator.decide.loading import loaded_condition
from flexpert_operator.decide.observation import Engine, Inspection, MemberState, Observation, Pool
from flexpert_operator.decide.requests import requests_problem

SAYING = ("Condition", "Problem", "Event", "ModelRefused")
ALL = {**CONDITIONS, **POLICY_CONDITIONS}
KNOWN = {reason for _, reasons in ALL.values() for reason in reasons}
KNOWN |= {str(one) for one in (*EventReason, *PolicyEventReason)}


def said() -> Iterator[tuple[str, str]]:
    """Where the operator says a reason, and which, as far as it stands there in letters."""
    for file in sorted(Path(flexpert_operator.__file__).parent.rglob("*.py")):
        if "local" in file.parts or "cli" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SAYING:
                position = 2 if node.func.id == "Condition" else 0
                if len(node.args) > position and isinstance(node.args[position], ast.Constant):
                    yield f"{file.name}:{node.lineno}", str(node.args[position].value)


def test_every_reason_is_documented() -> None:
    found = list(said())
    assert len(found) > 5, "it would find none"
    assert [(where, reason) for where, reason in found if reason not in KNOWN] == [], "write it into api/reasons.py"


def test_every_reason_has_a_meaning_and_is_one_word() -> None:
    for _, (about, reasons) in ALL.items():
        assert about
        for reason, meaning in reasons.items():
            assert reason.isalnum()
            assert reason[0].isupper()
            assert meaning.endswith(".")
    assert set(Reason) <= set(CONDITIONS["Rebalancing"][1])


READY_ENGINE = Engine("e", "engine", MemberState.READY)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("False", "LoadingEngines")),
        ({"engines": (READY_ENGINE,)}, ("True", "Loaded")),
        ({"placement": {}}, ("False", "LoadingExperts")),
        ({"engines": (READY_ENGINE,), "lost": ("an expert",)}, ("False", "ExpertsLost")),
    ],
)
def test_the_model_is_loaded(
    deployment: MoEDeployment,
    observed: Callable[..., Observation],
    pool: Callable[..., Pool],
    changes: dict[str, object],
    expected: tuple[str, str],
) -> None:
    found = loaded_condition(deployment, observed(pool(**changes)))
    assert found.type == MODEL_LOADED
    assert (str(found.status), str(found.reason)) == expected


def test_a_model_that_cannot_be_served_is_not_loaded(
    deployment: MoEDeployment, observed: Callable[..., Observation], pool: Callable[..., Pool]
) -> None:
    elsewhere = replace(deployment, model=Model("file:///models/other"))
    assert loaded_condition(elsewhere, observed(pool())).reason == "ModelChangeUnsupported"
    pending = observed(pool(placement={}), inspection=Inspection(pending=True))
    assert loaded_condition(deployment, pending).reason == "InspectingModel"
    unknown = loaded_condition(deployment, observed(None))
    assert (str(unknown.status), str(unknown.reason)) == ("Unknown", "ControllerUnreachable")


def test_requests_above_limits_are_named(deployment: MoEDeployment) -> None:
    assert requests_problem(deployment) is None
    resources = Resources(limits={"cpu": 1}, requests={"cpu": "1500m"})
    found = requests_problem(replace(deployment, experts=replace(deployment.experts, resources=resources)))
    assert found is not None
    assert "spec.experts.resources.requests.cpu is 1500m" in found.message
