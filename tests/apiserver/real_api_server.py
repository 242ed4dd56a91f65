"""A real kube-apiserver with its etcd, from the folder that KUBEBUILDER_ASSETS names, as envtest has it.

No controllers run: nothing collects garbage, and deleted namespaces stay.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from flexpert_operator.kube import Kube, api_client
from flexpert_operator.local.kubeapi import write_kubeconfig

START_S = 240
STOP_S = 20
HOST = "127.0.0.1"
ASSETS = ("etcd", "kube-apiserver")
AUDIT_POLICY = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}


def missing_assets() -> str:
    """Why there can be no real API server here; empty where there can."""
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    if not folder:
        return "KUBEBUILDER_ASSETS names no folder with kube-apiserver and etcd"
    absent = [name for name in ASSETS if not os.access(Path(folder, name), os.X_OK)]
    return f"{folder} (KUBEBUILDER_ASSETS) lacks {', '.join(absent)}" if absent else ""


class RealApiServer:
    """A context manager: etcd and kube-apiserver on ports of their own, everything they write below `folder`."""

    collects = False

    def __init__(self, folder: Path, *options: str) -> None:
        self._assets = Path(os.environ["KUBEBUILDER_ASSETS"])
        self._folder = folder
        self._options = options
        self._token = secrets.token_urlsafe(24)
        self._etcd_url = f"http://{HOST}:{free_port()}"
        self._port = free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://{HOST}:{self._port}"

    @property
    def _audit_log(self) -> Path:
        return self._folder / "audit.log"

    def write_kubeconfig(self, path: Path, token: str | None = None) -> Path:
        """Write a kubeconfig, of an administrator or of whoever the token belongs to; returns its path."""
        ca = (self._folder / "certificates" / "apiserver.crt").read_text()
        return write_kubeconfig(path, self.url, token or self._token, ca=ca)

    def token_of(self, namespace: str, account: str) -> str:
        """A token of a ServiceAccount, as the kubelet asks for one on behalf of a pod."""
        kube = Kube(api_client(self.write_kubeconfig(self._folder / "kubeconfig")))
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        return str(kube.request("POST", path, body)["status"]["token"])

    def asked_by(self, user: str) -> set[tuple[str, str, str]]:
        """What a user asked for, by the audit log: (group, resource, verb)."""
        found = set()
        for event in self._audit():
            about: dict[str, Any] = event.get("objectRef") or {}
            if event["user"]["username"] == user and "resource" in about:
                resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
                found.add((about.get("apiGroup", ""), resource, event["verb"]))
        return found

    @contextlib.contextmanager
    def killed(self, forgets: bool = False) -> Iterator[None]:
        """The API server is killed, and started again at the end of the context; etcd stays, but may forget history."""
        self._processes["kube-apiserver"].kill()
        self._processes["kube-apiserver"].wait()
        if forgets:
            written = self._ask_etcd("put", {"key": "Zm9yZ2V0", "value": ""})
            self._ask_etcd("compaction", {"revision": written["header"]["revision"], "physical": True})
        yield
        self._start("kube-apiserver", *self._api_options(), *self._options)
        self._await_ready()

    @contextlib.contextmanager
    def etcd_paused(self) -> Iterator[None]:
        """etcd is stopped, and goes on at the end of the context."""
        self._processes["etcd"].send_signal(signal.SIGSTOP)
        yield
        self._processes["etcd"].send_signal(signal.SIGCONT)

    def requests_by(self, user: str) -> list[str]:
        """Every request of a user but watches, by the audit log: its verb and its path."""
        return [
            f"{event['verb']} {event['requestURI']}"
            for event in self._audit()
            if event["user"]["username"] == user and event["verb"] != "watch" and event["stage"] == "ResponseComplete"
        ]

    def _ask_etcd(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(f"{self._etcd_url}/v3/kv/{verb}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def _audit(self) -> Iterator[dict[str, Any]]:
        lines = self._audit_log.read_text().splitlines(keepends=True) if self._audit_log.exists() else []
        yield from (json.loads(line) for line in lines if line.endswith("\n"))

    def __enter__(self) -> "RealApiServer":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write_files()
        try:
            self._start("etcd", *self._etcd_options())
            self._start("kube-apiserver", *self._api_options(), *self._options)
            self._await_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _write_files(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (self._folder / "accounts.key").write_bytes(private)
        (self._folder / "accounts.pub").write_bytes(public)
        (self._folder / "tokens.csv").write_text(f'{self._token},administrator,1,"system:masters"\n')
        (self._folder / "audit.json").write_text(json.dumps(AUDIT_POLICY))

    def _etcd_options(self) -> list[str]:
        return [
            *("--data-dir", str(self._folder / "etcd")),
            *("--listen-client-urls", self._etcd_url, "--advertise-client-urls", self._etcd_url),
            *("--listen-peer-urls", f"http://{HOST}:0", "--unsafe-no-fsync"),
        ]

    def _api_options(self) -> list[str]:
        return [
            *("--etcd-servers", self._etcd_url, "--bind-address", HOST, "--secure-port", str(self._port)),
            *("--cert-dir", str(self._folder / "certificates"), "--authorization-mode", "RBAC"),
            *("--service-account-issuer", "https://kubernetes.default.svc"),
            *("--service-account-key-file", str(self._folder / "accounts.pub")),
            *("--service-account-signing-key-file", str(self._folder / "accounts.key")),
            *("--service-cluster-ip-range", "10.0.0.0/24", "--token-auth-file", str(self._folder / "tokens.csv")),
            *("--audit-policy-file", str(self._folder / "audit.json"), "--audit-log-path", str(self._audit_log)),
            "--disable-admission-plugins=ServiceAccount",  # which waits for a controller that makes `default`
        ]

    def _start(self, name: str, *options: str) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            command = [str(self._assets / name), *options]
            self._processes[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def _await_ready(self) -> None:
        pause = threading.Event()
        for _ in range(START_S * 5):
            if self._is_ready():
                return
            if any(process.poll() is not None for process in self._processes.values()):
                break
            pause.wait(0.2)
        logs = "\n".join((self._folder / f"{name}.log").read_text()[-2000:] for name in ASSETS)
        raise RuntimeError(f"kube-apiserver did not become ready\n{logs}")

    def _is_ready(self) -> bool:
        with contextlib.suppress(urllib.error.URLError, OSError):
            trust = ssl.create_default_context(cafile=str(self._folder / "certificates" / "apiserver.crt"))
            with urllib.request.urlopen(f"{self.url}/readyz", context=trust, timeout=5) as answer:
                return bool(answer.status == 200)
        return False

    def _stop(self) -> None:
        for process in reversed(self._processes.values()):
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
