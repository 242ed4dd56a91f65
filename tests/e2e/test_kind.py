"""A pool's life on a real cluster with KubeRay: install, apply, stream, scale, lose a pod and a node, upgrade."""

import pytest
from kind_cluster import CHART, HERE, NAMESPACE, ROOT, Cluster, run

pytestmark = [pytest.mark.kind, pytest.mark.timeout(7200)]
POOL = "moed/tiny-moe"
PORT = 9000


def text(cluster: Cluster) -> str:
    """What the pool says after `def `, greedily."""
    with cluster.client("tiny-moe-ingress", PORT) as client:
        return client.generate("def ", max_tokens=24, temperature=0).text


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
    said = text(cluster)
    assert said

    cluster.kubectl("scale", POOL, "--replicas=3")
    settled(cluster, 3)
    assert text(cluster) == said

    cluster.kubectl("delete", "pod", experts(cluster)[0], "--wait=false")
    settled(cluster, 3)
    assert text(cluster) == said

    node = cluster.get("pod", experts(cluster)[0])["spec"]["nodeName"]
    cluster.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=15m", timeout_s=1000)
    settled(cluster, 3)
    assert text(cluster) == said
    cluster.kubectl("uncordon", node)

    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CHART / "crds"))
    cluster.helm_upgrade(**{"operator.verbose": "true"})
    assert cluster.get("deployment", "-n", NAMESPACE, "flexpert")["status"]["readyReplicas"] == 2
    settled(cluster, 3)
    assert text(cluster) == said

    cluster.kubectl("delete", POOL, "--timeout=10m")
    assert not cluster.get("rayclusters")["items"]
