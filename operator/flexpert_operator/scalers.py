"""One MoEScaler: says in its status how large the pool is and whether the scaler has the word. `controller` calls it.

What it asks for `reconciler` reads when it decides sizes.
"""

import time
from collections.abc import Callable

from flexpert_operator.api import names
from flexpert_operator.api.conditions import ABLE_TO_SCALE, Condition, ConditionStatus, merge_conditions
from flexpert_operator.api.reasons import AbleReason
from flexpert_operator.api.scaler import MoEScaler, ScaledPool, parse_scaler
from flexpert_operator.cached import CachedKube
from flexpert_operator.decide import owning
from flexpert_operator.decide.difference import merge_patch
from flexpert_operator.decide.status import rfc3339
from flexpert_operator.kube import MOE_DEPLOYMENTS, PODS, SCALERS, Object
from flexpert_operator.observe import is_over, role_of
from flexpert_operator.scaling_objects import policies_of, scalers_of

ROLES = {ScaledPool.ENGINES: names.ENGINES_ROLE, ScaledPool.EXPERTS: names.EXPERTS_ROLE}


class ScalerKeeper:
    """Keeps one scaler. Called by one thread at a time.

    Args:
        resync_s: Time to the next look where nothing changes.
    """

    def __init__(
        self,
        namespace: str,
        name: str,
        kube: CachedKube,
        resync_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._namespace = namespace
        self._name = name
        self._kube = kube
        self._resync_s = resync_s
        self._clock = clock

    def close(self) -> None:
        """Nothing is held."""

    def reconcile(self) -> float | None:
        """Bring the status up to date.

        Returns:
            Seconds until the next look; None when the scaler is gone.

        Raises:
            KubeError: The status could not be written; call again later.
            InvalidObject: The CRD is another version's.
        """
        body = self._kube.find(SCALERS, self._namespace, self._name)
        if body is None or "deletionTimestamp" in body["metadata"]:
            return None
        scaler = parse_scaler(body)
        target, role = scaler.spec.target_ref.name, ROLES[scaler.spec.pool]
        found = self._kube.find(MOE_DEPLOYMENTS, self._namespace, target)
        condition = self._able(scaler, found)
        new = {
            **scaler.status,
            "observedGeneration": scaler.generation,
            "selector": names.selector(target, role),
            "replicas": self._members(scaler.spec.pool, target, found),
            "conditions": merge_conditions(
                scaler.status.get("conditions", ()), (condition,), scaler.generation, rfc3339(self._clock())
            ),
        }
        patch = merge_patch(scaler.status, new)
        if patch:
            metadata = {"resourceVersion": scaler.resource_version}
            changed = {"metadata": metadata, "status": patch}
            self._kube.patch(SCALERS, self._namespace, self._name, changed, subresource="status")
        return self._resync_s

    def _able(self, scaler: MoEScaler, target: Object | None) -> Condition:
        """Whether this scaler has the word."""
        name, no = scaler.spec.target_ref.name, ConditionStatus.FALSE
        if target is None:
            why = f"there is no MoEDeployment {name} in namespace {self._namespace}"
            return Condition(ABLE_TO_SCALE, no, AbleReason.TARGET_NOT_FOUND, why)
        policy = owning.first_of(policies_of(self._kube, self._namespace, name))
        if policy is not None and owning.desired_sizes(policy) is not None:
            why = f"MoEAutoscalingPolicy {policy.name} decides about {name}"
            return Condition(ABLE_TO_SCALE, no, AbleReason.SCALED_BY_POLICY, why)
        first = owning.scaler_of(scalers_of(self._kube, self._namespace, name), scaler.spec.pool)
        if first is not None and first.name != scaler.name:
            pool = f"{scaler.spec.pool} of {name}"
            why = f"spec.targetRef.name: MoEScaler {first.name}, which is older, decides about {pool}"
            return Condition(ABLE_TO_SCALE, no, AbleReason.TARGET_TAKEN, why)
        why = f"{name} has as many as spec.replicas says"
        return Condition(ABLE_TO_SCALE, ConditionStatus.TRUE, AbleReason.READY, why)

    def _members(self, pool: ScaledPool, target: str, found: Object | None) -> int:
        """Members that exist, ready or not: workers as the target's status counts them, engines by their pods."""
        if pool is ScaledPool.EXPERTS:
            experts = ((found or {}).get("status") or {}).get("experts") or {}
            return int(experts.get("workers", 0))
        pods = self._kube.list(PODS, self._namespace, names.selector(target, names.ENGINES_ROLE))
        return sum(role_of(pod) == names.ENGINES_ROLE and not is_over(pod) for pod in pods)
