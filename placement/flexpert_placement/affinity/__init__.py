"""Affinity: experts that tokens choose together are put on the same workers, so that fewer workers are asked per token.

The solver calls `improve_affinity` on a balanced placement, and `evaluate` the measures.
"""

from flexpert_placement.affinity.improve import improve_affinity
from flexpert_placement.affinity.measure import chosen_per_token, cross_node, cross_zone, fan_out, knows_tokens

__all__ = ["chosen_per_token", "cross_node", "cross_zone", "fan_out", "improve_affinity", "knows_tokens"]
