"""One pool on real Ray nodes: what `flexpert local up` starts, with the pool controller's links behind a gate.

For what only Ray can show: its head dies with all that runs on it, and comes back on its port with its tables.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults_clients import Clients, reference
from faults_pool import MODEL, NAME, NAMESPACE, SOURCE, WatchedPool

from flexpert_operator.api import names as operator_names
from flexpert_operator.kube import MOE_DEPLOYMENTS, PODS, Kube, api_client
from flexpert_operator.local import processes, state
from flexpert_operator.local.layout import Layout
from flexpert_operator.local.runtime import books
from flexpert_operator.local.runtime.values import HEAD_CONTAINER, Container, LocalPod
from flexpert_proto import names

NUM_ENGINES = 1
HOOK = Path(__file__).with_name("hook")


class Laptop:
    """A laptop cluster with one pool; `start` makes it serve with two workers, and clients stream."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self.layout = Layout(folder / "state")
        path = [str(HOOK), str(Path(__file__).parent), *sys.path]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        patch.setenv("FAULTS_GATE", str(folder))
        patch.setenv(names.ENV_SERVICES, str(self.layout.services))

    def start(self) -> None:
        """Bring it up, apply a MoEDeployment, and wait until it serves."""
        expected = reference(MODEL)
        self._flexpert("up")
        self._kube = Kube(api_client(self.layout.kubeconfig))
        self._kube.create(MOE_DEPLOYMENTS, NAMESPACE, deployment())
        clients = Clients(self._ingress_address, expected)
        self.pool = WatchedPool(self._folder, self._kube, self._control_address, NUM_ENGINES, clients, self._tails)
        self.pool.settle(2)
        clients.start()

    def close(self) -> None:
        """End everything, also when it did not come up."""
        if hasattr(self, "pool"):
            self.pool.close()
        processes.end_sessions(state.read_parts(self.layout).values(), 0)
        processes.end_sessions([one.process for one in self._containers() if one.process is not None], 0)
        shutil.rmtree(self.layout.scratch, ignore_errors=True)

    # ---- the head

    def kill_head(self) -> None:
        """SIGKILL to all of the head's Ray node: GCS, raylet, pool controller; its other container runs on."""
        process = self._head().container(HEAD_CONTAINER).process
        assert process is not None
        processes.kill_session(process)

    def head_restarts(self) -> int:
        """How often the head has been started again, and is up; -1 while it is not."""
        pod = self._kube.get(PODS, NAMESPACE, self._head().name)
        told = next(one for one in pod["status"]["containerStatuses"] if one["name"] == HEAD_CONTAINER)
        return int(told["restartCount"]) if told["ready"] else -1

    def _head(self) -> LocalPod:
        return next(pod for pod in books.load(self.layout.pods).values() if pod.is_head)

    # ---- small things

    def _containers(self) -> list[Container]:
        return [one for pod in books.load(self.layout.pods).values() for one in pod.containers]

    def _flexpert(self, *arguments: str) -> None:
        environment = {**os.environ, "FLEXPERT_STATE_DIR": str(self.layout.root)}
        command = [sys.executable, "-m", "flexpert_operator.cli.main", "local", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def _control_address(self) -> str:
        return names.resolve(operator_names.pool_control_address(NAME, NAMESPACE))

    def _ingress_address(self) -> str:
        return names.resolve(operator_names.ingress_address(NAME, NAMESPACE, 9000))

    def _tails(self) -> str:
        logs = sorted(self.layout.logs.glob("*.log"))
        return "\n".join(f"== {log.name}\n{processes.tail(log, 12)}" for log in logs)


def deployment() -> dict[str, object]:
    """The MoEDeployment that is served."""
    spec = {
        "model": {"source": SOURCE, "dtype": "Float32"},
        "engines": {"replicas": NUM_ENGINES, "maxBatchTokens": 256, "kvCacheMemory": "32Mi"},
        "experts": {"workers": 2, "memoryPerWorker": "64Mi"},
        "placement": {"rebalance": {"enabled": False}, "solver": {"timeLimitSeconds": 1}},
    }
    return {"apiVersion": "flexpert.io/v1alpha1", "kind": "MoEDeployment", "metadata": {"name": NAME}, "spec": spec}
