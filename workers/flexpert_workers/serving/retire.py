"""`python -m flexpert_workers.serving.retire --deadline-seconds N`: the preStop hook of a pod with expert workers.

The kubelet runs it before SIGTERM, however the pod is deleted. It asks the pool controller to drain this pod's workers
and returns once they hold no expert, or when its time is up: then the pool recovers from losing them. A controller that
nobody reaches for `GONE_S` is taken to have gone with its cluster, and the pod ends; one that restarts within that time
is asked again, one that takes longer loses the workers undrained, as if their node had died.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

import grpc

from flexpert_proto import names
from flexpert_proto.channels import pool_channel
from flexpert_proto.pool_pb2 import DrainRequest, GetPoolRequest, Worker
from flexpert_proto.pool_pb2_grpc import PoolControlStub

CALL_TIMEOUT_S = 5.0
PAUSE_S = 0.5
GONE_S = 10.0
"""Time without a connection (refused, or no such name) after which no controller is expected to come back."""
RECONNECT_MS = 500
MAX_MESSAGE_BYTES = 64 * 2**20


def main(arguments: Sequence[str]) -> int:
    """Retire the workers of the pod that the environment names; always 0, since the pod ends in any case."""
    parser = argparse.ArgumentParser(prog="python -m flexpert_workers.serving.retire", description=__doc__)
    parser.add_argument("--deadline-seconds", type=float, required=True)
    deadline = time.monotonic() + parser.parse_args(arguments).deadline_seconds
    address, pod = os.environ[names.ENV_POOL_CONTROL], os.environ[names.ENV_POD]
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    options += [(f"grpc.{which}_reconnect_backoff_ms", RECONNECT_MS) for which in ("initial", "min", "max")]
    with pool_channel(address, options) as channel:
        retired = retire(PoolControlStub(channel), pod, lambda: deadline - time.monotonic(), time.sleep)
    print(f"workers of pod {pod} {'hold nothing' if retired else 'were not emptied in time'}", flush=True)
    return 0


def retire(stub: PoolControlStub, pod: str, left_s: Callable[[], float], pause: Callable[[float], None]) -> bool:
    """Drain the workers of `pod` and wait until they are empty; whether they are before no time is left.

    Args:
        stub: Of the pool controller; one that does not answer is asked again, for `GONE_S` where nobody is there.
        pod: Name of the pod.
        left_s: Seconds that are left.
        pause: Waits for some seconds.
    """
    reached = left_s()
    while (left := left_s()) > 0:
        try:
            pool = stub.GetPool(GetPoolRequest(), timeout=min(CALL_TIMEOUT_S, left))
            own = [worker for worker in pool.workers if worker.pod == pod and worker.state != Worker.LOST]
            staying = [worker.id for worker in own if worker.state != Worker.DRAINING]
            if staying:
                stub.Drain(DrainRequest(workers=staying), timeout=CALL_TIMEOUT_S)
            if not any(worker.resident_bytes for worker in own):
                return True
            reached = left
        except grpc.RpcError as failure:
            print(f"pool controller: {failure}", flush=True)
            if failure.code() is not grpc.StatusCode.UNAVAILABLE:
                reached = left
            elif reached - left >= GONE_S:
                return False
        pause(min(PAUSE_S, max(left_s(), 0.0)))
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
