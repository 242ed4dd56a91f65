"""A cluster made by kind, with KubeRay and the chart in it; `test_kind` walks through a pool's life there."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CHART = ROOT / "charts" / "flexpert"
TOOLS = ("docker", "kind", "kubectl", "helm")
NAME = "flexpert-test"
NAMESPACE = "flexpert-system"
TAG = "kind-test"
IMAGES = {"operator": f"flexpert/operator:{TAG}", "pool": f"flexpert/flexpert:{TAG}"}
MINUTES = 60.0


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    if os.environ.get("FLEXPERT_KIND") != "1":
        return "it builds images and makes a cluster: run `make kind-test`"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not on PATH: {', '.join(absent)}" if absent else ""


def run(*command: str, timeout_s: float = 10 * MINUTES) -> str:
    """Run a command; its output. One that fails raises, with what it said."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


class Cluster:
    """The cluster, through kubectl and helm."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig

    def kubectl(self, *arguments: str, timeout_s: float = 10 * MINUTES) -> str:
        """Run kubectl."""
        return run("kubectl", "--kubeconfig", str(self._kubeconfig), *arguments, timeout_s=timeout_s)

    def get(self, *what: str) -> dict[str, Any]:
        """Objects as kubectl has them."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *what, "-o", "json"))
        return found

    def wait(self, condition: str, *what: str, minutes: float = 10) -> None:
        """Wait for a condition, or a jsonpath."""
        timeout = f"--timeout={minutes * MINUTES:.0f}s"
        self.kubectl("wait", f"--for={condition}", *what, timeout, timeout_s=(minutes + 1) * MINUTES)

    def helm_upgrade(self, **values: str) -> None:
        """Install or upgrade the chart, with KubeRay."""
        images = {
            "operator.image.repository": "flexpert/operator",
            "operator.image.tag": TAG,
            "pool.image.repository": "flexpert/flexpert",
            "pool.image.tag": TAG,
            "kuberay.enabled": "true",
        }
        settings = [word for item in (images | values).items() for word in ("--set", "=".join(item))]
        command = ["helm", "--kubeconfig", str(self._kubeconfig), "upgrade", "--install", "flexpert", str(CHART)]
        run(*command, "--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "10m", *settings)

    @contextlib.contextmanager
    def forward(self, service: str, port: int) -> Iterator["Forward"]:
        """A port of a Service, forwarded."""
        command = ["kubectl", "--kubeconfig", str(self._kubeconfig), "port-forward", f"service/{service}"]
        forward = Forward(command, port)
        try:
            yield forward
        finally:
            forward.stop()


class Forward:
    """Forwards a port to whichever pod is behind a Service, and to another one when that pod goes.

    Args:
        command: Forwards, given `LOCAL:REMOTE`, to one pod, and ends when it is gone and a connection was tried.
        port: Of the Service.
    """

    def __init__(self, command: list[str], port: int) -> None:
        self._command = command
        self._port = port
        self._local = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def address(self) -> str:
        """Where it is forwarded from; it is begun anew where it has ended."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                command = [*self._command, f"{self._local}:{self._port}"]
                self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                await_port(self._local, self._process)
        return f"127.0.0.1:{self._local}"

    def stop(self) -> None:
        """Forward no more."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_port(port: int, process: "subprocess.Popen[bytes]", seconds: int = 60) -> None:
    """Wait until something listens on a loopback port, or the process that is to listen has ended."""
    pause = threading.Event()
    for _ in range(seconds * 5):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None:
            return
        pause.wait(0.2)
    raise RuntimeError(f"nothing listens on port {port}")


def build_images() -> None:
    """Both images, for CPUs."""
    run("make", "images", f"TAG={TAG}", "REGISTRY=flexpert", timeout_s=60 * MINUTES)


@contextlib.contextmanager
def kind_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster with the images and the example's model on its nodes, until the end of the context."""
    kubeconfig, config = folder / "kubeconfig", folder / "kind.yaml"
    config.write_text((HERE / "kind.yaml").read_text().replace("MODELS", str(ROOT / "examples" / "models")))
    assert yaml.safe_load(config.read_text())["nodes"]
    options = ("--name", NAME, "--kubeconfig", str(kubeconfig))
    try:
        run("kind", "create", "cluster", *options, "--config", str(config), "--wait", "5m")
        run("kind", "load", "docker-image", "--name", NAME, *IMAGES.values(), timeout_s=30 * MINUTES)
        yield Cluster(kubeconfig)
    finally:
        run("kind", "delete", "cluster", *options)
