"""`flexpert plan`: where experts would best be, by a trace or by what a live pool counts. It changes nothing."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from flexpert_operator.api import names, quantities
from flexpert_operator.cli import access, heatmap
from flexpert_operator.cli.errors import CliError
from flexpert_operator.cli.plan_report import Prediction, Report, json_of, plan_of, predicted, report_of, text_of
from flexpert_operator.cli.planning import OBJECTIVES, Question, question_of, read_trace
from flexpert_operator.cli.pool import predict_plan, read_pool
from flexpert_operator.cli.reach import Reach, reach_of
from flexpert_operator.pool_client import pool_of
from flexpert_placement.formats import even_imbalance, physical_map, sglang, solve_layerwise, vllm
from flexpert_placement.solver import solve
from flexpert_placement.types import InfeasiblePlacement, PlacementResult, Plan, SolverName
from flexpert_proto import pool_pb2 as pb

DRY_RUN = "nothing was changed: this is a dry run, and the operator alone moves experts (spec.placement.rebalance)"
_BANDWIDTH = "1Gi"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = commands.add_parser("plan", help="place experts by a trace or by a live pool's loads; changes nothing")
    _add_question(parser)
    _add_solver(parser)
    _add_output(parser)
    access.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Solve, and say or write what came of it."""
    if options.trace is None and options.live is None:
        raise CliError("say by what to place: --trace FILE of routed experts, --live NAME of a MoEDeployment, or both")
    _check_output(options)
    reach = reach_of(options) if options.live is not None else None
    message = None if reach is None else _read_pool(options, reach)
    pool = None if message is None else pool_of(message)
    num_experts = pool.model.experts if pool is not None and pool.model is not None else options.experts
    trace = read_trace(options.trace, num_experts)
    question = question_of(options, trace, pool)
    result = _solved(options, question)
    plan = plan_of(question, result)
    judge = read_trace(options.judge, len(question.problem.loads[0]))
    report = report_of(question, result, plan, judge, _prediction(options, question, plan, reach, message))
    _write(options, report)
    return 0


def _add_question(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is placed, and on what")
    group.add_argument("--trace", metavar="FILE", help=".npz of routed experts (`flexpert trace record` writes one)")
    group.add_argument("--live", metavar="NAME", help="MoEDeployment whose placement, workers and loads are taken")
    group.add_argument("--workers", metavar="N|FILE", help="their number, or a JSON list of uneven ones")
    group.add_argument(
        "--slots", type=_positive, help="experts of a layer that fit into a worker (default: as few as do)"
    )
    group.add_argument("--memory-per-worker", type=_bytes, metavar="SIZE", help="such as 20Gi; needs --expert-bytes")
    group.add_argument("--expert-bytes", type=_bytes, metavar="SIZE", help="of one expert, such as 17Mi")
    group.add_argument("--experts", type=_positive, help="experts a layer, where the trace does not say")
    group.add_argument("--nodes", type=_positive, help="nodes that the workers are dealt to, neighbours together")
    group.add_argument("--zones", type=_positive, help="zones that they are dealt to")
    group.add_argument("--min-replicas", type=_positive, help="copies of every expert")
    group.add_argument("--from-placement", metavar="FILE", help="what is there: JSON of plan, status, SGLang or vLLM")
    group.add_argument("--judge", metavar="FILE", help="another trace that the placement is judged by as well")


def _add_solver(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is wanted of the answer")
    group.add_argument("--objective", choices=sorted(OBJECTIVES), default="makespan")
    group.add_argument("--slack", type=float, metavar="PERCENT", help="of the makespan that other objectives may cost")
    group.add_argument(
        "--caution", type=float, default=0.0, metavar="K", help="standard deviations a load counts above its mean"
    )
    group.add_argument("--solver", choices=[str(name) for name in SolverName], default=str(SolverName.CBC))
    group.add_argument("--time-limit", type=float, default=10.0, metavar="SECONDS")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--budget-moves", type=_positive, metavar="N", help="replicas copied at most")
    group.add_argument("--budget-bytes", type=_bytes, metavar="SIZE", help="bytes copied at most")
    group.add_argument(
        "--bandwidth", type=_bytes, default=_bytes(_BANDWIDTH), metavar="SIZE", help="a second and worker"
    )
    group.add_argument("--dry-run", action="store_true", help="the default: only say; nothing is ever changed")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is written")
    group.add_argument("--format", choices=["table", "json", "sglang", "vllm"], default="table")
    group.add_argument("-o", "--output", metavar="FILE", help="for the format's text (default: standard output)")
    group.add_argument(
        "--dense-layers", type=_layers, default=(), metavar="0-2", help="layers without experts (SGLang)"
    )
    group.add_argument("--heat-map", metavar="FILE", help=".svg, or .png where matplotlib is installed")


def _check_output(options: argparse.Namespace) -> None:
    if options.heat_map is not None:
        heatmap.check_path(options.heat_map)
    if options.format == "sglang" and options.output is not None and not options.output.endswith(".json"):
        raise CliError(f"-o {options.output}: SGLang takes the file for JSON only if its name ends in .json")


def _read_pool(options: argparse.Namespace, reach: Reach) -> pb.Pool:
    deployment = access.find_deployment(reach.kube, options.namespace, options.live)
    return read_pool(reach, names.control_address_of(deployment))


def _solved(options: argparse.Namespace, question: Question) -> PlacementResult:
    try:
        if options.format in ("sglang", "vllm"):
            return solve_layerwise(question.problem, _slots(options, question))
        return solve(question.problem)
    except InfeasiblePlacement as error:
        raise CliError(f"{error} (here: --workers, --slots or --memory-per-worker, --min-replicas)") from error


def _slots(options: argparse.Namespace, question: Question) -> int:
    if question.slots is None:
        raise CliError(f"--format {options.format} needs workers of one size: its devices have equally many slots")
    return question.slots


def _prediction(
    options: argparse.Namespace, question: Question, plan: Plan, reach: Reach | None, message: pb.Pool | None
) -> Prediction | None:
    """What the pool says where the plan is for the workers it has, else what the bytes say."""
    if reach is not None and message is not None and options.from_placement is None:
        there = {worker.id for worker in message.workers}
        if {worker.id for worker in question.problem.workers} <= there:
            deployment = access.find_deployment(reach.kube, options.namespace, options.live)
            return predict_plan(reach, names.control_address_of(deployment), message.epoch, plan)
    return predicted(question, plan, options.bandwidth)


def _write(options: argparse.Namespace, report: Report) -> None:
    if options.heat_map is not None:
        heatmap.write(options.heat_map, report.question.problem, report.result.placement)
    if options.format in ("sglang", "vllm"):
        _write_physical(options, report)
        return
    _emit(options, json.dumps(json_of(report)) if options.format == "json" else text_of(report, DRY_RUN))


def _write_physical(options: argparse.Namespace, report: Report) -> None:
    problem = report.question.problem
    physical = physical_map(problem, report.result.placement, _slots(options, report.question))
    text = sglang.dumps(physical, options.dense_layers) if options.format == "sglang" else vllm.dumps(physical)
    _emit(options, text.rstrip("\n"))
    even = even_imbalance(np.array(problem.loads), physical)
    said = (
        f"{len(physical.experts)} MoE layers, {physical.num_redundant} redundant experts a layer; "
        f"replicas share equally: imbalance {even:.4f}, {report.question.before_name} {report.before.makespan:.4f}"
    )
    print(said, file=sys.stderr)


def _emit(options: argparse.Namespace, text: str) -> None:
    if options.output is None:
        print(text)
        return
    try:
        Path(options.output).write_text(text + "\n")
    except OSError as error:
        raise CliError(f"-o {options.output}: {error.strerror}") from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def _bytes(text: str) -> int:
    try:
        number = quantities.to_bytes(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no size such as 17Mi")
    return number


def _layers(text: str) -> tuple[int, ...]:
    """Layers from such as 0,3-5."""
    layers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            raise argparse.ArgumentTypeError(f"{text} names no layers such as 0 or 0-2")
        layers += range(int(first), int(last or first) + 1)
    return tuple(layers)
