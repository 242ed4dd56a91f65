"""Autoscaling: from what is measured and a policy to how many engines and expert workers there should be.

Pure: `decision.decide` takes an observation, its own last state and the policy, and returns a decision and the next
state. The operator carries decisions out, and `simulate` runs the same code against arrivals of any kind. Nothing here
knows Kubernetes, and time comes in observations only.
"""

from flexpert_operator.autoscale.decision import decide
from flexpert_operator.autoscale.observation import Counters, Observation, PoolCount
from flexpert_operator.autoscale.policy import InvalidPolicy, Policy, check
from flexpert_operator.autoscale.sizes import Sizes
from flexpert_operator.autoscale.state import Decision, State

__all__ = [
    "Counters",
    "Decision",
    "InvalidPolicy",
    "Observation",
    "Policy",
    "PoolCount",
    "Sizes",
    "State",
    "check",
    "decide",
]
