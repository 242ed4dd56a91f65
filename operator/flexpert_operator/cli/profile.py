"""Asks a live pool what its steps take, for `flexpert simulate --profile-from`."""

import threading
import time
from dataclasses import replace
from itertools import pairwise

import grpc

from flexpert_operator.autoscale import Observation, PoolCount
from flexpert_operator.cli.errors import CliError
from flexpert_operator.cli.pool import OPTIONS
from flexpert_operator.decide.measured import Look, observation_of
from flexpert_operator.decide.observation import MemberState
from flexpert_operator.pool_client import pool_of
from flexpert_operator.simulate import Device
from flexpert_operator.simulate.measure import NothingMeasured, fitted
from flexpert_proto import names
from flexpert_proto import pool_pb2 as pb
from flexpert_proto.channels import pool_channel
from flexpert_proto.measuring import Figures, Histogram
from flexpert_proto.pool_pb2_grpc import PoolControlStub

LOOK_S = 2.0
_ANSWER_S = 10.0
NOTHING = Figures("", 0.0, 0.0)


def profile_from(address: str, seconds: float, base: Device) -> Device:
    """`base` with what a pool that serves measures in so many seconds, and its model's sizes.

    Args:
        address: `host:port` of the pool controller, or its Service's.
        seconds: To look for; requests have to come meanwhile.
        base: What the pool cannot tell.

    Raises:
        CliError: The controller does not answer, or nothing was served.
    """
    looks: list[Look] = []
    pause = threading.Event()
    try:
        with pool_channel(names.resolve(address), OPTIONS) as channel:
            stub = PoolControlStub(channel)
            ends = time.monotonic() + seconds
            while time.monotonic() < ends or len(looks) < 2:
                message = stub.GetPool(pb.GetPoolRequest(with_figures=True), timeout=_ANSWER_S)
                looks.append(Look(time.time(), pool_of(message)))
                pause.wait(LOOK_S)
    except grpc.RpcError as error:
        raise CliError(f"the pool controller does not answer at {address}: {error.details()}") from error
    try:
        return fitted(observations_of(looks), _with_model(base, message.model), answers_of(looks))
    except NothingMeasured as error:
        raise CliError(str(error)) from error


def observations_of(looks: list[Look]) -> list[Observation]:
    """What was measured between neighbouring looks."""
    return [
        observation_of(now.at, now, before, *_members(now), reachable=None, scale_up_s=0.0)
        for before, now in pairwise(looks)
    ]


def answers_of(looks: list[Look]) -> list[Histogram]:
    """Time per token of the answers that ended between neighbouring looks."""
    pairs = [(before.pool.figures, now.pool.figures) for before, now in pairwise(looks)]
    return [(now or NOTHING).minus(before).histogram("ingress_tpot_seconds") for before, now in pairs]


def _members(look: Look) -> tuple[PoolCount, PoolCount]:
    engines = sum(one.state is MemberState.READY for one in look.pool.engines)
    workers = sum(one.state is MemberState.READY for one in look.pool.workers)
    return PoolCount(engines, engines), PoolCount(workers, workers)


def _with_model(base: Device, model: pb.ModelInfo) -> Device:
    if not model.experts:
        return base
    return replace(base, layers=model.layers, experts=model.experts, expert_bytes=model.expert_bytes)
