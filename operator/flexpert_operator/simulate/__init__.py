"""A simulator of a MoEDeployment under arrivals of any kind; `flexpert simulate` and the benchmark run it.

It runs the same decisions (`autoscale.decide`) and the same planner (`flexpert_placement.solve`) as the operator does.
"""

from flexpert_operator.simulate.arrivals import Arrivals
from flexpert_operator.simulate.device import Device
from flexpert_operator.simulate.run import Outcome, simulate
from flexpert_operator.simulate.scalers import Scaler

__all__ = ["Arrivals", "Device", "Outcome", "Scaler", "simulate"]
