"""Where the laptop keeps its files; used by `flexpert local`, the runtime and the CLI.

Everything that lasts is under the state folder (`.flexpert/`). Sockets and Ray's session folders are under a scratch
folder with a short path instead, since a UNIX socket's path fits 107 bytes.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

STATE_DIR_NAME = ".flexpert"
ENV_STATE_DIR = "FLEXPERT_STATE_DIR"

_SCRATCH_ROOT = "/tmp"


@dataclass(frozen=True)
class Layout:
    """Paths below one state folder."""

    root: Path

    @property
    def kubeconfig(self) -> Path:
        """For kubectl, the operator and the runtime; holds the token, mode 0600."""
        return self.root / "kubeconfig"

    @property
    def token(self) -> Path:
        """The embedded API's bearer token."""
        return self.root / "token"

    @property
    def ray_token(self) -> Path:
        """What the Ray processes of this state folder authenticate each other with."""
        return self.root / "ray-token"

    @property
    def api_ready(self) -> Path:
        """Written by the embedded API once it serves: its address."""
        return self.root / "api-ready.json"

    @property
    def api_state(self) -> Path:
        """The embedded API's objects."""
        return self.root / "api-state.json"

    @property
    def logs(self) -> Path:
        """One file per process: `<part>.log`, `<pod>.<container>.log`."""
        return self.root / "logs"

    @property
    def parts(self) -> Path:
        """The processes that `flexpert local up` started, with their start times."""
        return self.root / "processes.json"

    @property
    def pods(self) -> Path:
        """The containers that the runtime runs, so that the next runtime can adopt or stop them."""
        return self.root / "pods.json"

    @property
    def services(self) -> Path:
        """The table that plays kube-proxy; see `flexpert_proto.names.resolve`."""
        return self.root / "services.json"

    @property
    def metrics(self) -> Path:
        """Where the operator's Prometheus metrics are: a URL."""
        return self.root / "metrics-url"

    @property
    def volumes(self) -> Path:
        """`pvc://claim/folder` is `volumes/claim/folder` here."""
        return self.root / "volumes"

    @property
    def models(self) -> Path:
        """The cache of remote models, whatever a manifest says of it."""
        return self.root / "models"

    @property
    def checkpoints(self) -> Path:
        """What the pools' processes remember of the checkpoints that they opened."""
        return self.root / "checkpoints"

    @property
    def scratch(self) -> Path:
        """Short folder for sockets and Ray's sessions, the same for the same state folder."""
        digest = hashlib.sha256(str(self.root).encode()).hexdigest()[:8]
        return Path(_SCRATCH_ROOT, f"flexpert-{os.getuid()}-{digest}")


def state_layout(state_dir: str | None = None) -> Layout:
    """Layout of the given state folder, else `$FLEXPERT_STATE_DIR`, else `.flexpert` in the working directory."""
    return Layout(Path(state_dir or os.environ.get(ENV_STATE_DIR) or STATE_DIR_NAME).absolute())
