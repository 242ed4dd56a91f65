"""A runtime process against an embedded API, for the tests beside it."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_objects import Object

from flexpert_operator.kube import PODS, Kube, Resource
from flexpert_operator.local import processes
from flexpert_operator.local.layout import Layout
from flexpert_operator.local.processes import Command, ProcessId
from flexpert_operator.local.runtime import books

RAY_CRD = Path(__file__).parents[2] / "operator/flexpert_operator/local/crds/rayclusters.yaml"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@dataclass
class Laptop:
    layout: Layout
    kube: Kube
    runtime: ProcessId | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "flexpert_operator.local.runtime"]
        argv += ["--kubeconfig", str(self.layout.kubeconfig), "--state-dir", str(self.layout.root)]
        log = self.layout.root / "runtime.log"
        self.runtime, _ = processes.start(Command(argv, dict(os.environ), log, self.layout.root))

    def kill(self) -> None:
        assert self.runtime is not None
        os.kill(self.runtime.pid, signal.SIGKILL)

    def pods(self, **labels: str) -> list[Object]:
        return [pod for pod in self.all_pods(**labels) if "deletionTimestamp" not in pod["metadata"]]

    def all_pods(self, **labels: str) -> list[Object]:
        return self.kube.list(PODS, "default", ",".join(f"ray.io/{key}={value}" for key, value in labels.items()))

    def running(self, **labels: str) -> list[str]:
        found = [pod for pod in self.pods(**labels) if pod.get("status", {}).get("phase") == "Running"]
        return sorted(pod["metadata"]["name"] for pod in found)

    def is_gone(self, resource: Resource, name: str) -> bool:
        return self.kube.find(resource, "default", name) is None

    def wait(self, what: Callable[[], Any], timeout_s: float = 40) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := what()):
            assert time.monotonic() < deadline, processes.tail(self.layout.root / "runtime.log", 40)
            time.sleep(0.05)
        return found

    def process_of(self, pod: str, name: str = "main") -> ProcessId:
        found = next(item for item in books.load(self.layout.pods).values() if item.name == pod)
        process = found.container(name).process
        assert process is not None
        return process

    def pids(self) -> list[ProcessId]:
        local = books.load(self.layout.pods).values()
        return [item.process for pod in local for item in pod.containers if item.process is not None]
