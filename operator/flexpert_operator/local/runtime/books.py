"""The pods that run here and their processes, on file so that the next runtime can adopt them. The actuator keeps it.

A container's process outlives a runtime that crashes. The next one finds it by pid and start time, and it goes on as
if nothing had happened, but for its exit code, which only a parent learns.
"""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from flexpert_operator.local import processes
from flexpert_operator.local.processes import Command
from flexpert_operator.local.runtime import mounted_files
from flexpert_operator.local.runtime.objects import digest, is_deleted, key_of, label_of, uid_of
from flexpert_operator.local.runtime.values import (
    CLUSTER_LABEL,
    HOST,
    NODE_TYPE_LABEL,
    Container,
    LocalPod,
    MountVolume,
    Object,
)

_DEFAULT_GRACE_S = 30.0


class Books:
    """Local pods by uid. Every change is written to the file before it is acted upon further."""

    def __init__(self, file: Path, scratch: Path) -> None:
        self._file = file
        self._scratch = scratch
        self._pods = load(file)
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._ports = {port for pod in self._pods.values() for port in pod.ports.values()}

    @property
    def pods(self) -> Mapping[str, LocalPod]:
        """All of them, by uid."""
        return dict(self._pods)

    def admit(self, pod: Object, port_names: list[str]) -> None:
        """Take in a Pod object: make its folder and choose its ports."""
        uid = uid_of(pod)
        namespace, name = key_of(pod)
        folder = self._scratch / digest(uid)[:6]
        for path in (folder, folder / "s", folder / "t"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._put(
            LocalPod(
                uid=uid,
                namespace=namespace,
                name=name,
                cluster=label_of(pod, CLUSTER_LABEL) or None,
                is_head=label_of(pod, NODE_TYPE_LABEL) == "head",
                grace_s=float(pod["spec"].get("terminationGracePeriodSeconds", _DEFAULT_GRACE_S)),
                folder=str(folder),
                ports={port: self._free_port() for port in port_names},
                containers=tuple(Container(spec["name"]) for spec in pod["spec"]["containers"]),
                stopping_at=time.time() if is_deleted(pod) else None,
            )
        )

    def mount(self, volume: MountVolume, folder: Path) -> None:
        """Have a volume's folder hold its files."""
        mounted_files.write(folder, volume.files)
        pod = self._pods[volume.uid]
        self._put(replace(pod, mounted={**pod.mounted, volume.volume: volume.digest}))

    def start(self, uid: str, name: str, command: Command, now: float) -> None:
        """Start a container's process; what cannot be started is remembered as refused."""
        before = self._pods[uid].container(name)
        if command.log.exists():
            command.log.replace(command.log.with_suffix(".previous.log"))
        try:
            identity, child = processes.start(command)
        except OSError as error:
            self.refuse(uid, name, str(error))
            return
        self._children[identity.pid] = child
        again = before.restarts + (before.process is not None)
        after = replace(before, process=identity, running=True, started_at=now, restarts=again, ready=False)
        self._replace(uid, after)

    def refuse(self, uid: str, name: str, why: str) -> None:
        """Remember that a container cannot be started."""
        self._replace(uid, replace(self._pods[uid].container(name), refusal=why))

    def look(self, now: float) -> bool:
        """Find the processes that have ended, and end what they left behind; whether there were any."""
        ended = [
            (pod.uid, container)
            for pod in self._pods.values()
            for container in pod.containers
            if container.running and container.process is not None and not self._is_alive(container.process)
        ]
        for uid, container in ended:
            assert container.process is not None
            processes.kill_session(container.process)
            child = self._children.pop(container.process.pid, None)
            code = child.poll() if child is not None else None
            after = replace(container, running=False, ready=False, finished_at=now, exit_code=code)
            self._replace(uid, after)
        return bool(ended)

    def stop(self, uid: str, now: float) -> None:
        """SIGTERM to each container's first process."""
        self._put(replace(self._pods[uid], stopping_at=now))
        for process in self._running(uid):
            processes.signal_leader(process, signal.SIGTERM)

    def kill(self, uid: str) -> None:
        """SIGKILL to everything that the pod started."""
        self._put(replace(self._pods[uid], killed=True))
        for process in self._running(uid):
            processes.kill_session(process)

    def forget(self, uid: str) -> None:
        """Drop a pod that has ended, and its folder."""
        pod = self._pods.pop(uid)
        self._ports -= set(pod.ports.values())
        shutil.rmtree(pod.folder, ignore_errors=True)
        self._save()

    def end_all(self, grace_s: float) -> None:
        """Stop every pod and forget it; returns when no process is left."""
        end_pods(self._pods.values(), grace_s)
        for uid in list(self._pods):
            self.forget(uid)

    def note_ready(self, uid: str, name: str, ready: bool) -> None:
        """Remember what a container's probe said; one that has ended since is not ready."""
        before = self._pods[uid].container(name)
        self._replace(uid, replace(before, ready=ready and before.running))

    def _replace(self, uid: str, after: Container) -> None:
        pod = self._pods[uid]
        containers = tuple(after if item.name == after.name else item for item in pod.containers)
        if containers != pod.containers:
            self._put(replace(pod, containers=containers))

    def _running(self, uid: str) -> list[processes.ProcessId]:
        return [item.process for item in self._pods[uid].containers if item.running and item.process is not None]

    def _is_alive(self, identity: processes.ProcessId) -> bool:
        child = self._children.get(identity.pid)
        return child.poll() is None if child is not None else processes.alive(identity)

    def _free_port(self) -> int:
        while True:
            with socket.socket() as probe:
                probe.bind((HOST, 0))
                port: int = probe.getsockname()[1]
            if port not in self._ports:
                self._ports.add(port)
                return port

    def _put(self, pod: LocalPod) -> None:
        self._pods[pod.uid] = pod
        self._save()

    def _save(self) -> None:
        temporary = self._file.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(self._pods))
        temporary.replace(self._file)


def load(file: Path) -> dict[str, LocalPod]:
    """The pods that an earlier runtime left on file; a file that cannot be read counts as none."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, LocalPod])
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}


def end_pods(pods: Iterable[LocalPod], grace_s: float) -> None:
    """End all processes of these pods, also those that have lost their leader, whichever runtime started them.

    A pod gets its own grace, but at most `grace_s`.
    """
    found = list(pods)
    leaders = [item.process for pod in found for item in pod.containers if item.process is not None]
    processes.end_sessions(leaders, min(grace_s, max((pod.grace_s for pod in found), default=0.0)))
