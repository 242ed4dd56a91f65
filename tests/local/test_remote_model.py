"""A model from a small hub on this machine: fetched once by what Ray starts on the nodes, and then served."""

from pathlib import Path

import pytest
import yaml
from hub_server import COMMIT, NAME, NEWER, Hub, serving
from test_end_to_end import Cluster, cluster  # noqa: F401  a fixture

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

TINY = Path(__file__).parents[2] / "examples" / "models" / "tiny-moe"
TOKEN = "hf_laptop"


def manifest(endpoint: str, folder: Path) -> str:
    body = {
        "apiVersion": "flexpert.io/v1alpha1",
        "kind": "MoEDeployment",
        "metadata": {"name": "tiny-moe"},
        "spec": {
            "model": {"source": f"hf://{NAME}", "dtype": "Float32", "endpoint": endpoint},
            "engines": {"maxBatchTokens": 256, "kvCacheMemory": "64Mi"},
            "experts": {"workers": 1, "memoryPerWorker": "64Mi"},
        },
    }
    path = folder / "remote.yaml"
    path.write_text(yaml.safe_dump(body))
    return str(path)


def test_a_model_of_a_hub_is_served(
    cluster: Cluster,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(Hub.of(TINY)) as hub:
        hub.token = TOKEN
        cluster.flexpert("local", "up")
        cluster.flexpert("apply", "-f", manifest(hub.url, tmp_path))
        cluster.wait(cluster.is_ready)

        found = cluster.status()["model"]
        size = sum(len(data) for name, data in hub.files.items() if name != "README.md")
        assert (found["resolvedRevision"], found["phase"]) == (COMMIT, "Ready")
        assert found["bytesDone"] == found["bytesTotal"] == 2 * size, "of the engine's node and the worker's"
        assert len(hub.fetched("tokenizer.json")) <= 3, "for the sketch, the copy, and the ingress if it was first"

        hub.commits["main"] = NEWER
        served = len(hub.served)
        assert len(cluster.flexpert("generate", "--temperature", "0", "--max-tokens", "24", "def ")) > 20
        assert len(hub.served) == served, "nothing is fetched for a request"
        assert cluster.status()["model"]["resolvedRevision"] == COMMIT
