"""What runs gave, as a table for people, as JSON, and as plots (which need matplotlib)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flexpert_operator.autoscale import Policy
from flexpert_operator.cli.tables import table
from flexpert_operator.simulate.run import Outcome


def text_of(outcomes: Sequence[Outcome], policy: Policy) -> str:
    """A row for each run."""
    part = 100 * policy.objectives.percentile
    head = ["SCALER", "ATTAINED", f"TTFT p{part:g}", f"TPOT p{part:g}", "DEVICE-HOURS", "MOST DEVICES", "TRANSITIONS"]
    return table(head, [_row(one, policy) for one in outcomes])


def _row(one: Outcome, policy: Policy) -> list[object]:
    ttft, tpot = quantiles(one, policy.objectives.percentile)
    return [
        one.name,
        f"{100 * one.attainment:.2f}%",
        _milliseconds(ttft),
        _milliseconds(tpot),
        f"{one.device_hours:.2f}",
        one.most_devices,
        one.transitions,
    ]


def quantiles(one: Outcome, percentile: float) -> tuple[float, float]:
    """TTFT and TPOT at the percentile; 0 without requests."""
    if not len(one.ttft_s):
        return 0.0, 0.0
    ttft, tpot = (float(np.quantile(values, percentile, method="higher")) for values in (one.ttft_s, one.tpot_s))
    return ttft, tpot


def _milliseconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if np.isfinite(value) else "never"


def json_of(one: Outcome, policy: Policy, few: bool = False) -> dict[str, Any]:
    """For programs; what never came is None. `few` leaves out every single change."""
    ttft, tpot = (value if np.isfinite(value) else None for value in quantiles(one, policy.objectives.percentile))
    return {
        "scaler": one.name,
        "requests": len(one.attained),
        "attainment": one.attainment,
        "ttftSeconds": ttft,
        "tpotSeconds": tpot,
        "deviceHours": one.device_hours,
        "mostDevices": one.most_devices,
        "transitions": one.transitions,
        **({} if few else {"changes": [{"at": at, "reason": reason} for at, reason in one.reasons]}),
    }


def plot(path: Path | str, outcomes: Sequence[Outcome], policy: Policy) -> None:
    """Requests a second, devices, changes so far and attainment over time, a line for each run.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 10), layout="constrained")
    rates, devices, changes, attained = figure.subplots(4, 1, sharex=True)
    rates.plot(outcomes[0].times / 60, outcomes[0].rates, color="black", linewidth=0.8)
    rates.set_ylabel("requests/s")
    for one in outcomes:
        held = one.engines * policy.engine_devices + one.experts * policy.worker_devices
        devices.step(one.times / 60, held, where="post", label=one.name)
        changed = [at / 60 for at, _ in one.reasons]
        changes.step([0.0, *changed, one.times[-1] / 60], [*range(len(changed) + 1), len(changed)], where="post")
        minutes, parts = _by_minute(one)
        attained.plot(minutes, 100 * parts, linewidth=0.8, label=one.name)
    devices.set_ylabel("devices")
    changes.set_ylabel("changes so far")
    attained.set_ylabel("attained, % a minute")
    attained.set_xlabel("minutes")
    devices.legend(loc="upper left")  # the best place takes seconds to find
    figure.savefig(path)


def _by_minute(one: Outcome) -> tuple[np.typing.NDArray[np.float64], np.typing.NDArray[np.float64]]:
    minutes = (one.at // 60).astype(np.int64)
    come = np.bincount(minutes, minlength=1)
    good = np.bincount(minutes, weights=one.attained, minlength=len(come))
    there = np.flatnonzero(come)
    return there.astype(np.float64), good[there] / come[there]
