"""`flexpert local up`: starts what does not run yet. Running it again is harmless, also when half of it has died."""

import os
import secrets
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from flexpert_operator.crds import load_crds
from flexpert_operator.errors import KubeConflict, KubeError
from flexpert_operator.kube import MERGE_PATCH, Kube, api_client
from flexpert_operator.local import processes, state
from flexpert_operator.local.kubeapi import write_kubeconfig
from flexpert_operator.local.layout import Layout
from flexpert_operator.local.processes import Command, ProcessId
from flexpert_operator.local.state import API, OPERATOR, RUNTIME, LocalError
from flexpert_proto import names

START_S = 60.0
PORT_WAIT_S = 10.0
_POLL_S = 0.05
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_OWN_CRDS = Path(__file__).parent / "crds"
_EXAMPLES = Path(__file__).parents[3] / "examples" / "models"


def up(layout: Layout, volumes: Mapping[str, Path]) -> list[str]:
    """Bring the laptop cluster up.

    Args:
        layout: Its state folder.
        volumes: Folders that stand for PersistentVolumeClaims, by the claim's name.

    Returns:
        The parts that were started; none when all ran.

    Raises:
        LocalError: A part did not come up; its log's end is in the message.
    """
    with state.locked(layout):
        _prepare(layout)
        _link_volumes(layout, volumes)
        parts = state.living(state.read_parts(layout))
        started = []
        for part, begin in ((API, _start_api), (RUNTIME, _start_runtime), (OPERATOR, _start_operator)):
            if part not in parts:
                begin(layout, parts)
                started.append(part)
        return started


def default_volumes() -> dict[str, Path]:
    """The examples' models as the claim `models`, where this is a checkout."""
    return {"models": _EXAMPLES} if _EXAMPLES.is_dir() else {}


def _prepare(layout: Layout) -> None:
    for folder in (layout.root, layout.logs, layout.volumes):
        folder.mkdir(parents=True, exist_ok=True)
    layout.root.chmod(0o700)
    if not layout.token.exists():
        descriptor = os.open(layout.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))


def _link_volumes(layout: Layout, volumes: Mapping[str, Path]) -> None:
    for claim, folder in volumes.items():
        if not folder.is_dir():
            raise LocalError(f"volume {claim}: {folder} is not a folder")
        link = layout.volumes / claim
        if link.is_symlink():
            link.unlink()
        if link.exists():
            raise LocalError(f"volume {claim}: {link} is a folder of its own; move it away or use another name")
        link.symlink_to(folder.resolve())


def _start_api(layout: Layout, parts: dict[str, ProcessId]) -> None:
    layout.api_ready.unlink(missing_ok=True)
    options = {
        "--host": "127.0.0.1",
        "--port": str(_earlier_port(layout)),
        "--token-file": str(layout.token),
        "--ready-file": str(layout.api_ready),
        "--state-file": str(layout.api_state),
    }
    _start(layout, parts, API, "flexpert_operator.local.kubeapi", options)
    _wait(layout, parts, API, layout.api_ready.exists)
    write_kubeconfig(layout.kubeconfig, layout.api_ready.read_text().strip(), layout.token.read_text().strip())
    install_crds(Kube(api_client(layout.kubeconfig)))


def _is_free(port: int) -> bool:
    """Whether a server could listen on a loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _earlier_port(layout: Layout) -> int:
    """The port that the kubeconfig names, so that an API that died comes back where its clients look for it; else 0."""
    if not layout.kubeconfig.exists():
        return 0
    url = yaml.safe_load(layout.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    port = int(url.rsplit(":", 1)[1])
    deadline = time.monotonic() + PORT_WAIT_S
    while not _is_free(port):  # some other connection may have it as its own end for a moment
        if time.monotonic() > deadline:
            raise LocalError(f"port {port} of the API is taken: run `flexpert local down`")
        time.sleep(_POLL_S)
    return port


def _start_runtime(layout: Layout, parts: dict[str, ProcessId]) -> None:
    layout.services.unlink(missing_ok=True)
    options = {"--kubeconfig": str(layout.kubeconfig), "--state-dir": str(layout.root)}
    _start(layout, parts, RUNTIME, "flexpert_operator.local.runtime", options)
    _wait(layout, parts, RUNTIME, layout.services.exists)


def _start_operator(layout: Layout, parts: dict[str, ProcessId]) -> None:
    liveness = f"http://127.0.0.1:{_free_port()}/healthz"
    metrics = f"127.0.0.1:{_free_port()}"
    options = {
        "--kubeconfig": str(layout.kubeconfig),
        "--resync-seconds": "1",
        "--liveness": liveness,
        "--metrics": metrics,
    }
    _start(layout, parts, OPERATOR, "flexpert_operator", options)
    _wait(layout, parts, OPERATOR, lambda: _answers(liveness))
    layout.metrics.write_text(f"http://{metrics}/metrics\n")


def _start(layout: Layout, parts: dict[str, ProcessId], part: str, module: str, options: Mapping[str, str]) -> None:
    argv = [sys.executable, "-m", module, *(word for pair in options.items() for word in pair)]
    command = Command(argv, _environment(layout), state.log_of(layout, part), layout.root)
    parts[part], _ = processes.start(command)
    state.write_parts(layout, parts)


def _environment(layout: Layout) -> dict[str, str]:
    path = [str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    services = {names.ENV_SERVICES: str(layout.services)}
    return {**os.environ, **threads, **services, "PYTHONPATH": os.pathsep.join(path)}


def _wait(layout: Layout, parts: dict[str, ProcessId], part: str, is_up: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not is_up():
        dead = not processes.alive(parts[part])
        if dead or time.monotonic() > deadline:
            what = "ended at once" if dead else f"did not come up within {START_S:.0f} s"
            log = state.log_of(layout, part)
            raise LocalError(f"the {part} process {what}; the end of {log}:\n{processes.tail(log)}")
        time.sleep(_POLL_S)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def install_crds(kube: Kube) -> None:
    """Install our own kinds, and KubeRay's as far as the laptop needs it.

    Raises:
        LocalError: The API refuses one.
    """
    own = [yaml.safe_load(file.read_text()) for file in sorted(_OWN_CRDS.glob("*.yaml"))]
    try:
        for crd in (*load_crds(), *own):
            _install(kube, crd)
    except KubeError as error:
        raise LocalError(f"the API refused a CustomResourceDefinition: {error}") from error


def _install(kube: Kube, crd: dict[str, Any]) -> None:
    try:
        kube.request("POST", _CRDS, crd)
    except KubeConflict:
        kube.request("PATCH", f"{_CRDS}/{crd['metadata']['name']}", crd, content_type=MERGE_PATCH)
