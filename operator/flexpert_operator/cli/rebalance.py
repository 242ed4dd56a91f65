"""`flexpert rebalance NAME`: asks the operator for a look at the loads now, and prints what it decides."""

import argparse
import time
import uuid
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.cli import access
from flexpert_operator.cli.errors import CliError
from flexpert_operator.decide.status import rfc3339
from flexpert_operator.kube import MOE_DEPLOYMENTS, Kube

_POLL_S = 0.5
NUMBERS = ("imbalancePercent", "gainPercent", "holdSeconds", "benefitMilliseconds", "costMilliseconds", "moves")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = commands.add_parser("rebalance", help="have the operator look now whether moving experts pays")
    parser.add_argument("name", nargs="?", help="MoEDeployment (default: the only one)")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for its answer")
    access.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask, wait for the answer, print it."""
    kube = access.connect(options)
    deployment = access.find_deployment(kube, options.namespace, options.name)
    name = deployment["metadata"]["name"]
    asked = f"{rfc3339(time.time())}/{uuid.uuid4().hex[:8]}"
    annotations = {names.REBALANCE_ANNOTATION: asked}
    kube.patch(MOE_DEPLOYMENTS, options.namespace, name, {"metadata": {"annotations": annotations}})
    decision = wait_for_answer(kube, options.namespace, name, asked, options.timeout)
    print(f"{decision['action']} ({decision['reason']}): {decision['message']}")
    for key in NUMBERS:
        if key in decision:
            print(f"  {key}: {decision[key]}")
    return 0


def wait_for_answer(kube: Kube, namespace: str, name: str, asked: str, seconds: float) -> dict[str, Any]:
    """The decision of the look that was asked for.

    Raises:
        CliError: None came in time; the message says what the pool is busy with.
    """
    deadline = time.monotonic() + seconds
    while True:
        status = kube.get(MOE_DEPLOYMENTS, namespace, name).get("status") or {}
        placement = status.get("placement") or {}
        if placement.get("lookAsked") == asked:
            decision: dict[str, Any] = placement["lastDecision"]
            return decision
        if time.monotonic() > deadline:
            raise CliError(f"no answer within {seconds:g} s: {why_busy(status)}; the request stands")
        time.sleep(_POLL_S)


def why_busy(status: dict[str, Any]) -> str:
    """Why the operator does not look at the loads."""
    found = {condition["type"]: condition for condition in status.get("conditions") or ()}
    for wanted, condition_type in (("False", "Ready"), ("True", "Progressing")):
        condition = found.get(condition_type)
        if condition is not None and condition["status"] == wanted:
            return f"{condition_type} is {wanted}, {condition['reason']}: {condition.get('message', '')}"
    return "is the operator running?"
