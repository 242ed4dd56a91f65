"""Which floors hold at an instant: those of the windows that have begun and not ended."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim

from flexpert_operator.autoscale.policy import Window
from flexpert_operator.autoscale.sizes import Sizes


def floors(schedule: tuple[Window, ...], at: float, ahead_s: float = 0.0) -> Sizes:
    """The highest floors of the windows that hold at `at` or begin within `ahead_s`."""
    holding = [window for window in schedule if _holds(window, at, ahead_s)]
    return Sizes(
        max((window.engines for window in holding), default=0),
        max((window.experts for window in holding), default=0),
    )


def _holds(window: Window, at: float, ahead_s: float) -> bool:
    """Whether a start lies within the duration before `at`, or within `ahead_s` after it."""
    zone = ZoneInfo(window.time_zone)
    now = datetime.fromtimestamp(at, UTC)
    before = (now - timedelta(seconds=window.duration_s)).astimezone(zone)
    start = next(CronSim(window.start, before), None)
    return start is not None and start.timestamp() <= at + ahead_s
