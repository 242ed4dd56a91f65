"""Are the resources that are requested within their limits? Pure; what the API server's rules cannot say."""

from collections.abc import Mapping

from flexpert_operator.api.quantities import to_cores
from flexpert_operator.api.reasons import DegradedReason
from flexpert_operator.api.spec import MoEDeployment, Resources
from flexpert_operator.decide.observation import Problem


def requests_problem(deployment: MoEDeployment) -> Problem | None:
    """The first resource of which a container requests more than its limit, or None."""
    roles: Mapping[str, Resources] = {
        "engines": deployment.engines.resources,
        "experts": deployment.experts.resources,
        "ingress": deployment.ingress.resources,
    }
    for role, resources in roles.items():
        for name, requested in resources.requests.items():
            limit = resources.limits.get(name)
            if limit is not None and to_cores(requested) > to_cores(limit):
                path = f"spec.{role}.resources.requests.{name}"
                return Problem(
                    DegradedReason.REQUESTS_EXCEED_LIMITS,
                    f"{path} is {requested}, more than its limit {limit}: lower it",
                )
    return None
