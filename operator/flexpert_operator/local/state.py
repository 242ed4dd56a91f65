"""The parts of the laptop cluster (API, runtime, operator) as processes on file; `up`, `down` and `status` use it."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import msgspec

from flexpert_operator.local import processes
from flexpert_operator.local.layout import Layout
from flexpert_operator.local.processes import ProcessId

API = "kubeapi"
RUNTIME = "runtime"
OPERATOR = "operator"
PARTS = (API, RUNTIME, OPERATOR)
"""In the order in which they start; they end the other way round."""


class LocalError(Exception):
    """The laptop cluster cannot do what was asked; the message says why and what to do."""


def read_parts(layout: Layout) -> dict[str, ProcessId]:
    """The processes that were started last, by part; dead ones too."""
    try:
        return msgspec.json.decode(layout.parts.read_bytes(), type=dict[str, ProcessId])
    except FileNotFoundError:
        return {}
    except msgspec.MsgspecError as error:
        raise LocalError(f"{layout.parts} cannot be read ({error}): end its processes by hand and remove it") from error


def write_parts(layout: Layout, parts: dict[str, ProcessId]) -> None:
    """Remember the processes, before anything that may fail happens with them."""
    temporary = layout.parts.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.encode(parts))
    temporary.replace(layout.parts)


def living(parts: dict[str, ProcessId]) -> dict[str, ProcessId]:
    """Those of the parts that run."""
    return {name: process for name, process in parts.items() if processes.alive(process)}


def log_of(layout: Layout, part: str) -> Path:
    """A part's log."""
    return layout.logs / f"{part}.log"


@contextlib.contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Hold the state folder: one `up` or `down` at a time.

    Raises:
        LocalError: Another one is at it.
    """
    layout.root.mkdir(parents=True, exist_ok=True)
    with (layout.root / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalError(f"another `flexpert local` command works on {layout.root}: wait for it") from error
        yield
