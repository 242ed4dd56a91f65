"""One server of two kinds, for tests that both have to pass: the embedded API, and a real one where there is one."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from real_api_server import RealApiServer, missing_assets

from flexpert_operator.local.kubeapi import KubeApiServer, ServerConfig

KINDS = ["embedded", pytest.param("real", marks=pytest.mark.envtest)]
"""Parameters of a fixture that opens one."""


class EitherServer(Protocol):
    """What tests ask of one.

    Attributes:
        collects: Whether it collects what has lost its owner: with a real one that is the controller manager's work.
    """

    collects: bool

    def write_kubeconfig(self, path: Path) -> Path:
        """An administrator's."""

    def killed(self, forgets: bool = False) -> contextlib.AbstractContextManager[None]:
        """It is away, and back with its objects at the end of the context; without their history if it `forgets`."""


class EmbeddedServer:
    """The embedded API, with its objects and certificate in files; a context manager."""

    collects = True

    def __init__(self, folder: Path) -> None:
        self._config = {"state_file": folder / "state.json", "tls_folder": folder / "tls"}
        self._api = KubeApiServer(ServerConfig(**self._config))

    def write_kubeconfig(self, path: Path) -> Path:
        """An administrator's."""
        return self._api.write_kubeconfig(path)

    @contextlib.contextmanager
    def killed(self, forgets: bool = True) -> Iterator[None]:
        """It is away, and comes back with its objects at the end of the context; it always forgets their history."""
        port, token = int(self._api.url.rpartition(":")[2]), self._api.token
        self._api.stop()
        yield
        self._api = KubeApiServer(ServerConfig(port=port, token=token, **self._config))
        self._api.start()

    def __enter__(self) -> "EmbeddedServer":
        self._api.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._api.stop()


@contextlib.contextmanager
def open_server(kind: str, folder: Path) -> Iterator[EitherServer]:
    """A server of a kind; skips the test where there can be none."""
    if kind == "embedded":
        with EmbeddedServer(folder) as embedded:
            yield embedded
        return
    reason = missing_assets()
    if reason:
        pytest.skip(reason)
    with RealApiServer(folder) as real:
        yield real
