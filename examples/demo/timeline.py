"""Draws `timeline.png`: tokens a second, p99 time per token and workers over time, a mark at each event."""

from collections.abc import Sequence
from pathlib import Path

from balance import Balance
from records import Event, Request, tokens_per_s, tpot_ms_p99

STEP_S = 0.5
SPAN_S = 1.0
BALANCE_S = 4.0


def draw(
    path: Path,
    requests: Sequence[Request],
    events: Sequence[Event],
    workers: Sequence[tuple[float, int]],
    balance: Balance,
) -> None:
    """Write the picture.

    Args:
        path: Where to.
        requests: All of them.
        events: In order.
        workers: (time, workers that hold experts), as sampled.
        balance: Looks at the pool, for the imbalance over time.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    start = min(request.started for request in requests)
    end = max(time for request in requests for time, _ in request.arrivals)
    steps = int((end - start) / STEP_S)
    times = [start + index * STEP_S for index in range(1, steps)]
    figure, (rate, latency, spread, pool) = pyplot.subplots(
        4, 1, figsize=(11, 8.5), sharex=True, height_ratios=(3, 3, 2, 1.3), layout="constrained"
    )
    rate.plot([t - start for t in times], [tokens_per_s(requests, t - SPAN_S / 2, t + SPAN_S / 2) for t in times])
    rate.set_ylabel("tokens/s")
    rate.set_ylim(bottom=0)
    latency.plot(
        [t - start for t in times],
        [tpot_ms_p99(requests, t - SPAN_S / 2, t + SPAN_S / 2) for t in times],
        color="tab:red",
    )
    latency.set_ylabel("time per token, p99 (ms)")
    latency.set_yscale("log")
    uneven = [(t, balance.between(t - BALANCE_S / 2, t + BALANCE_S / 2)) for t in times]
    known = [(t - start, value) for t, value in uneven if value is not None]
    spread.plot([t for t, _ in known], [value for _, value in known], color="tab:purple")
    spread.set_ylabel("busiest / average")
    spread.set_ylim(bottom=1)
    pool.step([t - start for t, _ in workers], [count for _, count in workers], where="post", color="tab:green")
    pool.set_ylabel("workers with experts")
    pool.set_ylim(0, max((count for _, count in workers), default=1) + 1)
    pool.set_xlabel("seconds under load")
    for number, event in enumerate(events):
        for axis in (rate, latency, spread, pool):
            axis.axvspan(event.start - start, event.end - start, alpha=0.15, color="grey")
        place = (event.start - start, 1.01 + 0.06 * (number % 2))  # two lines, so that short events do not overlap
        rate.annotate(event.name, place, xycoords=("data", "axes fraction"), fontsize=9)
    figure.suptitle("Flexpert under load: every request succeeds while the pool changes", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
