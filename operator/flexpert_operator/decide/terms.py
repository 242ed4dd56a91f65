"""Terms: which number a controller incarnation gets. Numbers are handed out through the MoEDeployment's annotations,
by a write that fails if anybody else wrote in between, so that no two incarnations ever have the same one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flexpert_operator.api import names
from flexpert_operator.decide.observation import Pool


@dataclass(frozen=True)
class Grant:
    """The term for the present incarnation; `taken` tells whether it stands in the annotations already."""

    term: int
    taken: bool


def decide_grant(annotations: Mapping[str, str], pool: Pool) -> Grant:
    """The term of `pool`'s incarnation: the one it was granted before, or the next."""
    term = int(annotations.get(names.TERM_ANNOTATION, 0))
    ours = annotations.get(names.INCARNATION_ANNOTATION) == pool.incarnation
    outdone = pool.term == 0 and pool.epoch.term >= term
    if ours and term > 0 and not outdone:
        return Grant(term, taken=True)
    return Grant(max(term, pool.epoch.term) + 1, taken=False)


def annotations_of(grant: Grant, incarnation: str) -> dict[str, str]:
    """What the annotations say once the term is taken."""
    return {names.TERM_ANNOTATION: str(grant.term), names.INCARNATION_ANNOTATION: incarnation}
