"""Integer programs: exact where shapes are small, over neighbourhoods of a placement where they are not."""

from flexpert_placement.models.neighbourhoods import improve_by_programs
from flexpert_placement.models.program import solve_exactly
from flexpert_placement.models.runner import Outcome, run

__all__ = ["Outcome", "improve_by_programs", "run", "solve_exactly"]
