"""`flexpert simulate`: what a policy makes of a day's requests, beside other ways of scaling. No cluster is used."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flexpert_operator.autoscale import InvalidPolicy, Policy, Sizes, check
from flexpert_operator.autoscale.policy import Behavior, Bounds, Direction, Forecast, Objectives
from flexpert_operator.autoscale.queueing import Demand, need
from flexpert_operator.cli.errors import CliError
from flexpert_operator.cli.policy_file import AsOperated, PolicyFile, moment, read_policy
from flexpert_operator.cli.profile import profile_from
from flexpert_operator.simulate import Arrivals, Device, Scaler, report, simulate
from flexpert_operator.simulate.arrivals import InvalidArrivals, Lengths, bursty, diurnal, poisson, read_csv
from flexpert_operator.simulate.device import InvalidDevice, read_device, to_json
from flexpert_operator.simulate.scalers import ColdRestart, Fixed, Hpa, Oracle, Ours

MOST_REQUESTS = 1_000_000
"""Simulated one by one; of more, each stands for several."""

SCALERS = ("flexpert", "none", "replicas", "restart", "hpa", "oracle")

HPA_DOWN_S = 300.0
"""Stabilisation window of HPA for shrinking, where it is not said."""

BEGIN = "2026-01-05T00:00:00Z"
"""A Monday."""

WISHES: dict[str, Any] = {
    "ttft": 500.0,
    "tpot": 50.0,
    "percentile": 99.0,
    "max_engines": 64,
    "max_workers": 256,
    "devices": None,
    "down_window": None,
    "forecast": None,
}
"""Options that describe a policy, and what they are where they are left out and there is no `--policy`."""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = commands.add_parser("simulate", help="try an autoscaling policy on a course of requests, beside others")
    load = parser.add_argument_group("what comes")
    load.add_argument("--arrivals", default="diurnal", metavar="poisson|bursty|diurnal|FILE.csv")
    load.add_argument("--rate", type=_positive, default=20.0, help="requests a second on average (20)")
    load.add_argument("--duration", type=_positive, default=7200.0, metavar="SECONDS", help="of what is drawn (7200)")
    load.add_argument("--season", type=_positive, metavar="SECONDS", help="of diurnal arrivals (the duration)")
    load.add_argument("--prompt", type=_positive, default=512.0, metavar="TOKENS", help="mean (512)")
    load.add_argument("--answer", type=_positive, default=128.0, metavar="TOKENS", help="mean (128)")
    load.add_argument("--seed", type=int, default=0)
    wish = parser.add_argument_group("what is wanted")
    wish.add_argument(
        "--policy", metavar="FILE.yaml", help="a MoEAutoscalingPolicy, maybe with its target; instead of what follows"
    )
    wish.add_argument(
        "--begin",
        type=_moment,
        metavar="TIME",
        help="of the first request, for the policy's schedule (a Monday, 0:00 UTC)",
    )
    wish.add_argument("--ttft", type=_positive, metavar="MS", help="time to first token (500)")
    wish.add_argument("--tpot", type=_positive, metavar="MS", help="time per token (50)")
    wish.add_argument("--percentile", type=float, help="of the requests (99)")
    wish.add_argument("--max-engines", type=int, help="(64)")
    wish.add_argument("--max-workers", type=int, help="(256)")
    wish.add_argument("--devices", type=int, help="budget of both together")
    wish.add_argument(
        "--down-window", type=float, metavar="SECONDS", help="stabilisation (learnt; 300 for hpa and replicas)"
    )
    wish.add_argument("--forecast", action="store_true", default=None, help="use a seasonal forecast")
    how = parser.add_argument_group("how")
    how.add_argument("--device", metavar="FILE.json", help="device profile; see docs/autoscaling.md")
    how.add_argument(
        "--profile-from", metavar="HOST:PORT", help="measure the device profile on the pool of this pool controller"
    )
    how.add_argument("--profile-seconds", type=_positive, default=60.0, help="to measure it for (60)")
    how.add_argument("--save-profile", metavar="FILE.json", help="write the device profile that is used")
    how.add_argument("--scalers", default="flexpert,none,hpa", help=f"out of {','.join(SCALERS)}")
    how.add_argument("--utilisation", type=float, default=0.35, help="that hpa and replicas aim at (0.35)")
    how.add_argument("--step", type=_positive, default=0.1, metavar="SECONDS", help="of the simulation (0.1)")
    how.add_argument("--format", choices=["table", "json"], default="table")
    how.add_argument("--plot", metavar="FILE.png|svg", help="needs matplotlib (pip install 'flexpert[plots]')")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Simulate, and print what came of it."""
    device = _device(options)
    file = _policy_file(options, device)
    policy = policy_of(options) if file is None else file.policy
    arrivals, weight = _arrivals(options)
    served = partial(simulate, arrivals, device, policy=policy, weight=weight, step_s=options.step, seed=options.seed)
    scalers = _scalers(options, policy, device, arrivals, weight, file)
    outcomes = [served(scaler, look_s=_look_s(scaler)) for scaler in scalers]
    if options.format == "json":
        print(json.dumps([report.json_of(one, policy) for one in outcomes]))
    else:
        stands = f", each for {weight:g}" if weight > 1 else ""
        print(f"{len(arrivals)} requests in {arrivals.duration_s:.0f} s{stands}\n")
        print(report.text_of(outcomes, policy))
    if options.plot is not None:
        try:
            report.plot(Path(options.plot), outcomes, policy)
        except (ImportError, OSError, ValueError) as error:
            raise CliError(f"--plot {options.plot}: {error}") from error
    return 0


def _policy_file(options: argparse.Namespace, device: Device) -> PolicyFile | None:
    if options.policy is None:
        if options.begin is not None:
            raise CliError("--begin needs --policy: it is for the windows of its schedule")
        return None
    beside = [name for name in WISHES if getattr(options, name) is not None]
    if beside:
        raise CliError(f"--{beside[0].replace('_', '-')}: --policy {options.policy} says what is wanted")
    return read_policy(options.policy, device)


def _look_s(scaler: Scaler) -> float | None:
    """Between two looks, where it is not the scaler's own."""
    return scaler.file.spec.interval_s if isinstance(scaler, AsOperated) else None


def policy_of(options: argparse.Namespace) -> Policy:
    """The policy that the options describe.

    Raises:
        CliError: They contradict each other.
    """
    wish = {name: value if getattr(options, name) is None else getattr(options, name) for name, value in WISHES.items()}
    behavior = Behavior(down=Direction(stabilisation_s=wish["down_window"]))
    policy = Policy(
        target="simulated",
        engines=Bounds(1, wish["max_engines"]),
        experts=Bounds(1, wish["max_workers"]),
        devices=wish["devices"],
        objectives=Objectives(wish["ttft"] / 1000, wish["tpot"] / 1000, wish["percentile"] / 100),
        engines_behavior=behavior,
        experts_behavior=behavior,
        forecast=Forecast(_season(options)) if wish["forecast"] else None,
    )
    try:
        return check(policy)
    except InvalidPolicy as error:
        raise CliError(str(error)) from error


def _season(options: argparse.Namespace) -> float:
    return float(options.season or options.duration)


def _device(options: argparse.Namespace) -> Device:
    try:
        device = read_device(options.device) if options.device is not None else Device()
    except InvalidDevice as error:
        raise CliError(f"--device: {error}") from error
    if options.profile_from is not None:
        device = profile_from(options.profile_from, options.profile_seconds, device)
    if options.save_profile is not None:
        try:
            Path(options.save_profile).write_text(to_json(device) + "\n")
        except OSError as error:
            raise CliError(f"--save-profile {options.save_profile}: {error}") from error
    return device


def _arrivals(options: argparse.Namespace) -> tuple[Arrivals, float]:
    """The requests, and how many each stands for."""
    if options.arrivals.endswith(".csv"):
        try:
            return read_csv(options.arrivals), 1.0
        except InvalidArrivals as error:
            raise CliError(f"--arrivals: {error}") from error
    weight = max(options.rate * options.duration / MOST_REQUESTS, 1.0)
    rate, lengths = options.rate, Lengths(options.prompt, options.answer)
    kinds: dict[str, Callable[[], Arrivals]] = {
        "poisson": lambda: poisson(rate, options.duration, lengths, options.seed, weight),
        "bursty": lambda: bursty(rate, options.duration, lengths, options.seed, weight),
        "diurnal": lambda: diurnal(rate, options.duration, lengths, options.seed, weight, _season(options)),
    }
    if options.arrivals not in kinds:
        raise CliError(f"--arrivals {options.arrivals}: it has to be {', '.join(kinds)} or a file that ends in .csv")
    return kinds[options.arrivals](), weight


def _scalers(
    options: argparse.Namespace,
    policy: Policy,
    device: Device,
    arrivals: Arrivals,
    weight: float,
    file: PolicyFile | None,
) -> list[Scaler]:
    seconds = max(arrivals.duration_s, 1e-9)
    start = size_for(_demand(arrivals, weight, 0.0, min(60.0, seconds)), policy, device)
    mean = _demand(arrivals, weight, 0.0, seconds)
    down_s = HPA_DOWN_S if options.down_window is None else options.down_window
    ours = _ours(options, start, policy, device, file)
    unit = size_for(replace(mean, prompt=mean.prompt / 4, generated=mean.generated / 4), policy, device)
    ahead = device.engine_start_s + device.worker_start_s + device.fill_s(start.experts) + 30.0
    known: dict[str, Callable[[], Scaler]] = {
        "flexpert": lambda: ours,
        "none": lambda: Fixed(busiest(arrivals, weight, policy, device)),
        "replicas": lambda: Hpa(unit, policy, options.utilisation, unit, down_s, "replicas", device.restart_s),
        "restart": lambda: ColdRestart(replace(ours), device.restart_s, 2 * device.restart_s),
        "hpa": lambda: Hpa(start, policy, options.utilisation, None, down_s),
        "oracle": lambda: Oracle(start, policy, arrivals, device, ahead, weight),
    }
    names = options.scalers.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise CliError(f"--scalers {options.scalers}: {unknown[0]!r} is not one of {', '.join(known)}")
    return [known[name]() for name in names]


def _ours(options: argparse.Namespace, start: Sizes, policy: Policy, device: Device, file: PolicyFile | None) -> Ours:
    if file is None:
        return Ours(start, policy, device.profile())
    begin_s = moment(BEGIN) if options.begin is None else options.begin
    return AsOperated(file.start(start), policy, device.profile(), file=file, begin_s=begin_s)


def size_for(demand: Demand, policy: Policy, device: Device) -> Sizes:
    """The cheapest sizes with which objectives hold, by the queueing model."""
    found = need(device.service(), demand, policy, 1.05, (policy.engines.maximum, policy.experts.maximum))
    return Sizes(found.engines, max(found.experts, device.least_workers))


def busiest(arrivals: Arrivals, weight: float, policy: Policy, device: Device, window_s: float = 60.0) -> Sizes:
    """Sizes for the busiest stretch, for a pool that never changes."""
    starts = range(0, max(int(arrivals.duration_s - window_s), 1), max(int(window_s / 2), 1))
    demands = [_demand(arrivals, weight, float(start), window_s) for start in starts]
    return size_for(max(demands, key=lambda one: one.generated + device.prefill_price * one.prompt), policy, device)


def _demand(arrivals: Arrivals, weight: float, start: float, window_s: float) -> Demand:
    first, last = (int(row) for row in arrivals.at.searchsorted([start, start + window_s]))
    factor = weight / window_s
    prompt, answer = arrivals.prompt[first:last].sum(), arrivals.answer[first:last].sum()
    return Demand(float(prompt) * factor, float(answer) * factor, (last - first) * factor)


def _moment(text: str) -> float:
    try:
        return moment(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no time such as {BEGIN}") from None


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return number
