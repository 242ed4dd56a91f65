"""The devices that pods may hold at once, as the budget of the policy says that has the word. Pure.

A policy keeps the sizes that it decides within its budget. What the operator adds of its own, a pod more while others
are replaced or a second RayCluster, is asked here. Pods that are about to leave do not count, nor what follows them:
their devices go with them.
"""

from dataclasses import dataclass

from flexpert_operator.api.spec import MoEDeployment
from flexpert_operator.decide.observation import Group


@dataclass(frozen=True)
class Budget:
    """Devices for the pods of both groups.

    Attributes:
        devices: That may be held at once.
        engine_pod: That an engine pod holds.
        expert_pod: That an expert pod holds.
    """

    devices: int
    engine_pod: int
    expert_pod: int

    def most_experts(self, experts: Group, engines: Group) -> int | None:
        """Replicas that the experts' group may have beside the engines there are; None: any number."""
        return _most(self.devices - self.engine_pod * _held(engines), self.expert_pod, experts)

    def most_engines(self, engines: Group, experts: Group) -> int | None:
        """Replicas that the engines' group may have beside the expert pods there are; None: any number."""
        return _most(self.devices - self.expert_pod * _held(experts), self.engine_pod, engines)

    def taken_by(self, deployment: MoEDeployment) -> int:
        """Devices of a pool of the size that is asked for, with its standbys."""
        pods = deployment.experts.pods + deployment.experts.standby_pods
        return self.engine_pod * deployment.engines.replicas + self.expert_pod * pods


def is_going(*groups: Group) -> bool:
    """Whether pods are on their way out, so that there will be devices for others."""
    return any(_going(group) for group in groups)


def _held(group: Group) -> int:
    """Pods that are there or asked for."""
    going = _going(group)
    return max(group.replicas, len(group.pods) - going) + going - _leaving(group)


def _most(free: int, each: int, group: Group) -> int | None:
    return None if each == 0 else max(free // each - _going(group), 0) + _leaving(group)


def _going(group: Group) -> int:
    return sum(pod.terminating or pod.name in group.workers_to_delete for pod in group.pods)


def _leaving(group: Group) -> int:
    return sum(bool(pod.leaving) and pod.name not in group.workers_to_delete for pod in group.present)
