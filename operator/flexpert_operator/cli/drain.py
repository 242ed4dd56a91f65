"""`flexpert drain NAME POD|WORKER`: has the experts of a pod moved off it while they are served, then the pod replaced.

The operator treats such a pod as one whose node is about to go (`decide/leaving.py`).
"""

import argparse
import time

from flexpert_operator.api import names
from flexpert_operator.cli import access
from flexpert_operator.cli.errors import CliError
from flexpert_operator.cli.pool import read_pool
from flexpert_operator.cli.reach import Reach, reach_of
from flexpert_operator.decide.status import rfc3339
from flexpert_operator.kube import PODS, Object
from flexpert_proto import pool_pb2 as pb

_POLL_S = 1.0


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command."""
    parser = commands.add_parser("drain", help="move the experts off a pod, and replace it")
    parser.add_argument("name", help="MoEDeployment")
    parser.add_argument("target", metavar="POD|WORKER", help="expert pod, or a worker in it (`flexpert status`)")
    parser.add_argument("--cancel", action="store_true", help="take the request back; the pod stays if it is there")
    parser.add_argument("--no-wait", action="store_true", help="do not wait until the pod is gone")
    parser.add_argument("--timeout", type=float, default=900.0, metavar="SECONDS")
    access.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask for it, or take it back, and wait until the pod is gone."""
    reach = reach_of(options)
    kube = reach.kube
    access.find_deployment(kube, options.namespace, options.name)
    pod = find_pod(reach, options.namespace, options.name, options.target)
    name = pod["metadata"]["name"]
    wanted = None if options.cancel else rfc3339(time.time())
    body = {"metadata": {"annotations": {names.DRAIN_ANNOTATION: wanted}}}
    kube.patch(PODS, options.namespace, name, body)
    print(f"pod {name}: " + ("stays" if options.cancel else "its experts are moved off, then it is replaced"))
    if not options.cancel and not options.no_wait:
        wait_until_gone(reach, pod, options)
    return 0


def find_pod(reach: Reach, namespace: str, name: str, target: str) -> Object:
    """The expert pod with this name, or the one in which the worker with this name is.

    Raises:
        CliError: There is none; the message lists those there are.
    """
    pods = {
        pod["metadata"]["name"]: pod
        for pod in reach.kube.list(PODS, namespace, names.selector(name, names.EXPERTS_ROLE))
    }
    if target in pods:
        return pods[target]
    workers = workers_of(reach, name, namespace)
    if target in workers and workers[target] in pods:
        return pods[workers[target]]
    known = ", ".join(sorted({*pods, *workers})) or "none"
    raise CliError(f"{name} has no expert pod or worker {target}; there are: {known}")


def workers_of(reach: Reach, name: str, namespace: str) -> dict[str, str]:
    """Workers and their pods, as the pool controller knows them; none where it does not answer."""
    try:
        pool = read_pool(reach, names.control_address_of(access.find_deployment(reach.kube, namespace, name)))
    except CliError:
        return {}
    return {worker.id: worker.pod for worker in pool.workers}


def wait_until_gone(reach: Reach, pod: Object, options: argparse.Namespace) -> None:
    """Tell how much the pod still holds whenever that changes, until it is gone.

    Raises:
        CliError: It is still there when the time is up.
    """
    metadata = pod["metadata"]
    deadline, told = time.monotonic() + options.timeout, ""
    while True:
        now = reach.kube.find(PODS, options.namespace, metadata["name"])
        if now is None or now["metadata"]["uid"] != metadata["uid"]:
            print(f"pod {metadata['name']}: gone")
            return
        held = holding_of(reach, options.name, options.namespace, metadata["name"])
        if held != told:
            told = held
            print(f"pod {metadata['name']}: {held}")
        if time.monotonic() > deadline:
            raise CliError(
                f"pod {metadata['name']} is still there after {options.timeout:g} s ({told}); the request stands, "
                "take it back with --cancel"
            )
        time.sleep(_POLL_S)


def holding_of(reach: Reach, name: str, namespace: str, pod: str) -> str:
    """What the workers of a pod hold, in words."""
    try:
        pool = read_pool(reach, names.control_address_of(access.find_deployment(reach.kube, namespace, name)))
    except CliError:
        return "the pool controller does not answer"
    mine = [worker for worker in pool.workers if worker.pod == pod]
    if not mine:
        return "no worker runs in it"
    held = sum(replica.worker in {worker.id for worker in mine} for replica in pool.placement)
    states = ", ".join(sorted({pb.Worker.State.Name(worker.state).lower() for worker in mine}))
    return f"{held} experts, {states}"
