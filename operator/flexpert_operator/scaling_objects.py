"""Policies and scalers of a MoEDeployment, as they were seen last; `reconciler`, `policies` and `scalers` ask here."""

import logging
from collections.abc import Callable
from typing import TypeVar

from flexpert_operator.api.autoscaling import MoEAutoscalingPolicy, parse_policy
from flexpert_operator.api.parsed import Parsed
from flexpert_operator.api.scaler import MoEScaler, parse_scaler
from flexpert_operator.api.spec import InvalidObject, MoEDeployment
from flexpert_operator.cached import CachedKube
from flexpert_operator.decide.owning import Owned, owned
from flexpert_operator.kube import POLICIES, SCALERS, Object, Resource

log = logging.getLogger(__name__)

T = TypeVar("T")


def policies_of(kube: CachedKube, namespace: str, target: str) -> tuple[MoEAutoscalingPolicy, ...]:
    """Those that target a MoEDeployment and are not being deleted."""
    return _read(kube, POLICIES, namespace, target, parse_policy)


def scalers_of(kube: CachedKube, namespace: str, target: str) -> tuple[MoEScaler, ...]:
    """Those that target a MoEDeployment and are not being deleted."""
    return _read(kube, SCALERS, namespace, target, parse_scaler)


def with_sizes(kube: CachedKube, deployment: MoEDeployment) -> Owned:
    """A MoEDeployment with the sizes that its policy or its scalers say, if there are any."""
    known = (deployment.namespace, deployment.name)
    return owned(deployment, policies_of(kube, *known), scalers_of(kube, *known))


def _read(
    kube: CachedKube, resource: Resource, namespace: str, target: str, parse: Callable[[Object], Parsed[T]]
) -> tuple[Parsed[T], ...]:
    """What can be read; an object of another version's CRD has no say."""
    found = []
    for body in kube.owned(resource, namespace, target):
        if "deletionTimestamp" in body["metadata"]:
            continue
        try:
            found.append(parse(body))
        except InvalidObject as wrong:
            log.warning("%s/%s: %s", namespace, body["metadata"]["name"], wrong)
    return tuple(found)
