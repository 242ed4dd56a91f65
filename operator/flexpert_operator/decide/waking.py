"""When to look again although nothing has changed. Pure; `reconciler` asks at the end of a reconciliation."""

from flexpert_operator.decide.sizing_state import Sizing

GROWTH = 1.5
"""Each look that found nothing new puts the next one off by so much."""


def next_look(busy: bool, quiet: int, busy_s: float, resync_s: float) -> float:
    """Seconds until the next look.

    Args:
        busy: Whether something is under way in a pool, or wrong: a time-out may end it.
        quiet: Looks in a row that found nothing new.
        busy_s: The shortest pause.
        resync_s: The longest one, and that of what is settled.
    """
    return min(busy_s * GROWTH ** min(quiet, 64), resync_s) if busy else resync_s


def until_deadline(sizing: Sizing, growing: bool, now: float, provision_deadline_s: float, retry_s: float) -> float:
    """Seconds until a growth is given up or tried again; infinite where neither is to come."""
    if sizing.failed is not None:
        due = sizing.failed.at + retry_s
    elif growing:
        due = sizing.since + provision_deadline_s
    else:
        return float("inf")
    return due - now if due > now else float("inf")
