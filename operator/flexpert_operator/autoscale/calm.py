"""How long to wait before shrinking, where the policy leaves that to us: learnt from how needs come back.

A need that comes back within the window finds its members still there; one that comes back later waits for them until
they are ready again. So a window is right when all but a small part of the requests came while there were members
enough. Each look adds one *return*: for how long, before the members could have been ordered, the need had not been as
high as now. The window is the percentile of these returns, requests being the weights.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

REMEMBERED_S = 3600.0
"""Returns from which a window is learnt."""
FIRST_S = 300.0
"""Window while too little is known."""
LEARNT_AFTER_S = 600.0
LEAST_S = 60.0
MOST_S = 1800.0
MARGIN = 1.5
"""Of a window over the absences that were seen: the next one may be longer."""
STARTS = 2.0
"""A window is at least so many times the time in which a member comes back."""
SURPRISED = 0.5
"""Of the requests that may miss their objective, the part that may do so since members had gone."""


@dataclass(frozen=True)
class Return:
    """How a need came back at a look.

    Attributes:
        at: Seconds since the epoch.
        requests: That came since the look before.
        absence_s: For how long there had been no need for as many devices; 0 where there was, or never before.
    """

    at: float
    requests: float
    absence_s: float


def absence_s(needed: Iterable[tuple[float, int]], need: int, at: float, ahead_s: float) -> float:
    """For how long, `ahead_s` before `at`, the need had been below `need`; 0 where it never was as high.

    Args:
        needed: (when, need) before, the latest first; each holds until the next.
        need: At `at`.
        at: Now.
        ahead_s: In which members come.
    """
    until = ordered = at - ahead_s
    for when, earlier in needed:
        if when <= ordered and earlier >= need:
            return ordered - until
        if when <= ordered:
            until = when
    return 0.0


def window_s(returns: Sequence[Return], known_s: float, least_s: float, percentile: float) -> float:
    """The shortest window with which surprises stay within their part of what may go wrong.

    Args:
        returns: Of the looks that are remembered.
        known_s: For how long needs have been seen.
        least_s: The shortest there may be.
        percentile: Of the requests that are to get their objectives.
    """
    if known_s < LEARNT_AFTER_S:
        return max(least_s, FIRST_S)
    allowed = SURPRISED * (1.0 - percentile) * sum(one.requests for one in returns)
    late = [one for one in returns if one.absence_s > 0]
    for one in sorted(late, key=lambda one: -one.absence_s):
        allowed -= one.requests
        if allowed < 0:
            return max(least_s, min(MARGIN * one.absence_s, MOST_S))
    return least_s


def least_s(scale_up_s: float, cost_s: float = 0.0) -> float:
    """The shortest window, in which what has just come does not go.

    Args:
        scale_up_s: In which members come.
        cost_s: Device-seconds that a device which comes costs beside that (`cost`): it is kept for as long as it would
            cost to bring it back.
    """
    return max(LEAST_S, STARTS * scale_up_s, min(scale_up_s + cost_s, MOST_S))
