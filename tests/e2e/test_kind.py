"""A pool's life on a real cluster, while clients stream: install, scale, lose a pod and a node, upgrade."""

import contextlib
from collections.abc import Iterator

import pytest
from faults_clients import MAX_TOKENS, PROMPTS, Clients
from kind_cluster import CHART, HERE, NAMESPACE, ROOT, Cluster, Forward, run

from flexpert_proto.client import GenerationClient

pytestmark = [pytest.mark.kind, pytest.mark.timeout(7200)]
POOL = "moed/tiny-moe"
PORT = 9000
TRIES = 20
"""Of a stream: its ingress may be on the node that goes, and the next one gets the tokens so far."""


def answers(forward: Forward) -> list[tuple[int, ...]]:
    """What the pool says to each prompt, greedily, while nothing happens to it."""
    with GenerationClient(forward.address, tries=TRIES) as client:
        said = [client.generate(prompt, max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True) for prompt in PROMPTS]
    return [tuple(token.id for token in one.tokens) for one in said]


@contextlib.contextmanager
def streaming(cluster: Cluster) -> Iterator[Clients]:
    """Clients that stream until the end of the context, and compare every token with what was said at first."""
    with cluster.forward("tiny-moe-ingress", PORT) as forward:
        clients = Clients(forward.address, answers(forward), TRIES)
        clients.start()
        try:
            yield clients
        finally:
            clients.stop()


@contextlib.contextmanager
def step(clients: Clients, name: str) -> Iterator[None]:
    """Something happens to the pool: tokens go on coming, and none is wrong, lost or said twice."""
    tokens, completed = clients.tokens, clients.completed
    yield
    assert clients.take_wrong() == [], name
    assert clients.tokens > tokens, f"no token came during: {name}"
    assert clients.completed > completed, f"no stream ended during: {name}"


def experts(cluster: Cluster) -> list[str]:
    """Names of the expert pods that run."""
    selector = "flexpert.io/moedeployment=tiny-moe,flexpert.io/role=experts"
    pods = cluster.get("pods", "-l", selector, "--field-selector=status.phase=Running")["items"]
    return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def settled(cluster: Cluster, workers: int) -> None:
    """Wait until so many workers serve."""
    cluster.wait(f"jsonpath={{.status.experts.ready}}={workers}", POOL, minutes=20)
    cluster.wait("condition=Ready", POOL)
    cluster.wait("condition=Progressing=False", POOL)


def test_a_pools_life(cluster: Cluster) -> None:
    run("helm", "dependency", "build", str(CHART))
    cluster.helm_upgrade()
    cluster.kubectl("apply", "-f", str(HERE / "models.yaml"), "-f", str(ROOT / "examples" / "tiny-moe.yaml"))
    settled(cluster, 2)
    with streaming(cluster) as clients:
        with step(clients, "scale"):
            cluster.kubectl("scale", POOL, "--replicas=3")
            settled(cluster, 3)
        with step(clients, "kill"):
            cluster.kubectl("delete", "pod", experts(cluster)[0], "--grace-period=0", "--force", "--wait=false")
            settled(cluster, 3)
        with step(clients, "drain"):
            node = cluster.get("pod", experts(cluster)[0])["spec"]["nodeName"]
            drain = ("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=15m")
            cluster.kubectl(*drain, timeout_s=1000)
            settled(cluster, 3)
            cluster.kubectl("uncordon", node)
        with step(clients, "upgrade"):
            cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CHART / "crds"))
            cluster.helm_upgrade(**{"operator.verbose": "true"})
            assert cluster.get("deployment", "-n", NAMESPACE, "flexpert")["status"]["readyReplicas"] == 2
            settled(cluster, 3)
    cluster.kubectl("delete", POOL, "--timeout=10m")
    assert not cluster.get("rayclusters")["items"]
