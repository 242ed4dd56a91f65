"""Plays the nodes of a cluster: every process of the pool is a child of this one, started at once and kept if asked.

`python faults_host.py FOLDER` imports torch and the model library once and then forks, so that a process that is
killed costs its successor a tenth of a second and not four. It answers on `FOLDER/host`, one JSON line a connection.
What a kubelet or Ray restarts, it restarts (`keep`). Its children die with it.
"""

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.05


def _worker() -> int:
    from flexpert_workers.expert.__main__ import main

    return main()


def _engine() -> int:
    from flexpert_workers.engine.__main__ import main

    return main()


def _owner() -> int:
    from flexpert_workers.memory.owner.__main__ import main

    return main()


def _ingress() -> int:
    from flexpert_workers.ingress.__main__ import main

    return main()


def _controller() -> int:
    from faults_controller import main

    return main(sys.argv[1:])


def _operator() -> int:
    from faults_operator import main

    return main(sys.argv[1:])


MAINS: dict[str, Callable[[], int]] = {
    "worker": _worker,
    "engine": _engine,
    "owner": _owner,
    "ingress": _ingress,
    "controller": _controller,
    "operator": _operator,
}


@dataclass
class Child:
    """A process that was asked for; `pid` is None once it has ended."""

    name: str
    kind: str
    arguments: list[str]
    slot: str = ""
    keep: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    pid: int | None = None


class Host:
    """The children by name, and the slots that workers may be started in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: dict[str, Child] = {}
        self._slots: list[dict[str, str]] = []
        self._head_back_at = 0.0
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(folder / "host"))
        self._listening.listen()

    def run(self) -> None:
        """Answer until told to end."""
        print("ready", flush=True)
        answering = True
        while answering:
            self._reap()
            if select.select([self._listening], [], [], _LOOK_S)[0]:
                connection, _ = self._listening.accept()
                with connection, contextlib.suppress(OSError):  # who asks may be killed while it does
                    answering = self._converse(connection)

    def _converse(self, connection: socket.socket) -> bool:
        """Answer one request; whether to go on."""
        with connection.makefile("rw") as stream:
            line = stream.readline()
            request = json.loads(line) if line.endswith("\n") else {"do": "list"}
            goes_on = request["do"] != "end"
            stream.write(json.dumps(self._answer(request)) + "\n")
        return bool(goes_on)

    def _answer(self, request: dict[str, Any]) -> Any:
        match request.pop("do"):
            case "start":
                self._start_in_slot(Child(**request))
            case "stop":
                self._stop(request["name"])
            case "slots":
                self._set_slots(request["slots"])
            case "lose_head":
                self._lose_head(request["away_s"])
            case "end":
                for child in self._children.values():
                    self._kill(child)
        return {"children": [self._seen(child) for child in self._children.values()], "slots": self._slots}

    def _seen(self, child: Child) -> dict[str, Any]:
        said: dict[str, Any] = {}
        with contextlib.suppress(OSError, json.JSONDecodeError, IndexError):
            said = json.loads((self._folder / f"{child.name}.out").read_text().splitlines()[-1])
        return {"name": child.name, "kind": child.kind, "slot": child.slot, "pid": child.pid, "said": said}

    def _start_in_slot(self, child: Child) -> None:
        """Start a process, unless the pod that it is for has gone: as Ray, which starts no actor on a dead node."""
        if not child.slot or child.slot in {slot["id"] for slot in self._slots}:
            self._start(child)

    def _start(self, child: Child) -> None:
        self._children[child.name] = child
        output = os.open(self._folder / f"{child.name}.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        log = os.open(self._folder / f"{child.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        child.pid = os.fork()
        if child.pid == 0:
            self._become(child, output, log)
        os.close(output)
        os.close(log)

    def _become(self, child: Child, output: int, log: int) -> None:
        """In the child: run its main function and end."""
        status = 1
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            self._listening.close()
            os.dup2(output, 1)
            os.dup2(log, 2)
            os.setsid()
            os.environ.update(child.environment)
            sys.argv = [child.kind, *child.arguments]
            status = MAINS[child.kind]()
        except BaseException:  # noqa: BLE001 - told on the log, and the process ends
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status or 0)

    def _stop(self, name: str) -> None:
        child = self._children.get(name)
        if child is not None:
            child.keep = False
            self._kill(child)

    def _kill(self, child: Child) -> None:
        if child.pid is not None:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            child.pid = None

    def _lose_head(self, away_s: float) -> None:
        """What is lost with a Ray head: the pool controller, until a head is back."""
        self._head_back_at = time.monotonic() + away_s
        self._kill(self._children["controller"])

    def _set_slots(self, slots: list[dict[str, str]]) -> None:
        """Pods came or went: each has a page owner, and a pod that goes takes its processes along."""
        there = {slot["id"] for slot in slots}
        for child in list(self._children.values()):
            if child.slot and child.slot not in there:
                self._stop(child.name)
                del self._children[child.name]
        self._slots = slots
        for slot in slots:
            if f"o-{slot['id']}" not in self._children:
                arguments = ["--config", slot["owner"]]
                self._start(Child(f"o-{slot['id']}", "owner", arguments, slot["id"], keep=True))

    def _reap(self) -> None:
        for child in list(self._children.values()):
            if child.pid is not None and os.waitpid(child.pid, os.WNOHANG)[0]:
                child.pid = None
            waits = child.name == "controller" and time.monotonic() < self._head_back_at
            if child.pid is None and child.keep and not waits:
                self._start(child)


def import_everything(source: str) -> None:
    """Load what the children need, and start no thread."""
    import faults_controller  # noqa: F401
    import faults_operator  # noqa: F401
    import grpc.aio  # noqa: F401
    import kopf  # noqa: F401
    import transformers  # noqa: F401

    import flexpert_workers.engine.service
    import flexpert_workers.expert.worker
    import flexpert_workers.ingress.server
    import flexpert_workers.memory.owner.process  # noqa: F401
    from flexpert_workers.checkpoint import open_checkpoint

    open_checkpoint(source, "Float32")
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()


def main() -> int:
    """Serve until told to end, or until whoever started it is gone."""
    folder, source = Path(sys.argv[1]), sys.argv[2]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    import_everything(source)
    Host(folder).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
