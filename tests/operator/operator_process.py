"""The operator as a process of its own, as it runs in a cluster: tests stop, continue and kill it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def moe_deployment(name: str, **experts: Any) -> dict[str, Any]:
    """A MoEDeployment with two workers."""
    spec = {
        "model": {"source": "file:///models/tiny"},
        "experts": {"workers": 2, "memoryPerWorker": "16Mi"} | experts,
        "placement": {"rebalance": {"enabled": False}},
    }
    return {"apiVersion": "flexpert.io/v1alpha1", "kind": "MoEDeployment", "metadata": {"name": name}, "spec": spec}


class OperatorProcess:
    """An operator that looks after the namespace `default`; a context manager."""

    def __init__(self, kubeconfig: Path, log: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self._log = log
        command = [sys.executable, "-m", "flexpert_operator", "--kubeconfig", str(kubeconfig)]
        command += [] if "--namespace" in options else ["--namespace", "default"]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*command, "--metrics", "", *options],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )

    def __enter__(self) -> "OperatorProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")

    def until(self, what: str, holds: Callable[[], Any], seconds: float = 120.0) -> None:
        """Wait until something holds, as long as the process lives."""
        pause = threading.Event()
        for _ in range(int(seconds / 0.05)):
            if holds():
                return
            if self.process.poll() is not None:
                pytest.fail(f"it ended with {self.process.returncode} before: {what}\n{self.log()[-4000:]}")
            pause.wait(0.05)
        pytest.fail(f"never came: {what}\n{self.log()[-4000:]}")
