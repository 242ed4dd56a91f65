"""Carries out what `decide` decided: alone in writing to the API and in starting and ending processes."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from flexpert_operator.local.runtime import containers, volumes
from flexpert_operator.local.runtime.books import Books
from flexpert_operator.local.runtime.containers import CannotStart, Host
from flexpert_operator.local.runtime.entries import Entries, NotThere
from flexpert_operator.local.runtime.kube import KINDS, POD, Kube, KubeError
from flexpert_operator.local.runtime.objects import uid_of
from flexpert_operator.local.runtime.values import (
    HEAD_CONTAINER,
    WORKER_CONTAINER,
    Action,
    AdmitPod,
    CreatePod,
    DeletePod,
    ForgetPod,
    KillPod,
    LocalPod,
    MountVolume,
    Observed,
    StartContainer,
    StopPod,
    WriteStatus,
)
from flexpert_operator.local.runtime.watching import Mirror

_log = logging.getLogger(__name__)


class Actuator:
    """The hands of the runtime."""

    def __init__(self, kube: Kube, mirrors: Mapping[str, Mirror], books: Books, host: Host) -> None:
        self._kube = kube
        self._mirrors = mirrors
        self._books = books
        self._host = host
        self._table: dict[str, str] | None = None

    async def carry_out(self, action: Action, observed: Observed) -> None:
        """Do one thing.

        Raises:
            KubeError: The API refused or is away; the next decision repeats what is still due.
        """
        match action:
            case CreatePod(manifest):
                created = await self._kube.create(POD, manifest)
                _log.info("made pod %s", created["metadata"]["name"])
                self._mirrors["Pod"].put(created)
            case DeletePod():
                await self._delete(action)
            case WriteStatus():
                await self._write_status(action)
            case AdmitPod(pod):
                self._books.admit(pod, containers.port_names(pod))
            case MountVolume(uid, volume):
                _log.info("filling volume %s of pod %s", volume, observed.local[uid].name)
                self._books.mount(action, Path(volumes.place_of(observed.local[uid], volume)))
            case StartContainer():
                self._start(action, observed)
            case StopPod(uid):
                _log.info("stopping pod %s", observed.local[uid].name)
                self._books.stop(uid, observed.now)
            case KillPod(uid):
                _log.warning("pod %s did not end within its grace: killed", observed.local[uid].name)
                self._books.kill(uid)
            case ForgetPod(uid):
                _log.info("pod %s has ended", observed.local[uid].name)
                self._books.forget(uid)

    def publish(self, table: dict[str, str]) -> None:
        """Write the table of Services when it has changed."""
        if table == self._table:
            return
        file = self._host.layout.services
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(table, indent=1, sort_keys=True))
        temporary.replace(file)
        self._table = table

    async def _delete(self, action: DeletePod) -> None:
        if not action.at_once:
            _log.info("deleting pod %s: %s", action.name, action.reason)
        grace_s = 0 if action.at_once else None
        left = await self._kube.delete(POD, action.namespace, action.name, action.uid, grace_s)
        if left is None:
            self._mirrors["Pod"].remove(action.uid)
        else:
            self._mirrors["Pod"].put(left)

    async def _write_status(self, action: WriteStatus) -> None:
        try:
            written = await self._kube.patch_status(KINDS[action.kind], action.namespace, action.name, action.status)
        except KubeError as error:
            if error.status != 404:
                raise
            return
        self._mirrors[action.kind].put(written)

    def _start(self, action: StartContainer, observed: Observed) -> None:
        uid = uid_of(action.pod)
        local = observed.local[uid]
        group = containers.group_of(action.pod, observed.clusters)
        try:
            entries = Entries.of(observed.secrets, observed.config_maps)
            head = _head_of(local, observed)
            command = containers.command(self._host, action.pod, action.container, local, head, group, entries)
        except NotThere as error:
            _log.info("%s of pod %s waits: %s", action.container, local.name, error)
            return
        except CannotStart as error:
            _log.warning("%s of pod %s cannot start: %s", action.container, local.name, error)
            self._books.refuse(uid, action.container, str(error))
            return
        _prepare_session(local, action.container)
        _log.info("starting %s of pod %s", action.container, local.name)
        self._books.start(uid, action.container, command, observed.now)


def _head_of(local: LocalPod, observed: Observed) -> LocalPod | None:
    if local.cluster is None or local.is_head:
        return local if local.is_head else None
    heads = (pod for pod in observed.local.values() if pod.is_head and pod.stopping_at is None)
    return next((pod for pod in heads if (pod.namespace, pod.cluster) == (local.namespace, local.cluster)), None)


def _prepare_session(local: LocalPod, container: str) -> None:
    """Remove what an earlier process of the container left that keeps the next one from starting.

    A head refuses its port while `ray_current_cluster` names it, and takes longer names for its sockets beside old
    ones. It keeps the rest: its tables outlive it.
    """
    session = Path(local.folder, "r")
    if container == HEAD_CONTAINER:
        (session / "ray_current_cluster").unlink(missing_ok=True)
        for sockets in session.glob("session_*/sockets"):
            shutil.rmtree(sockets, ignore_errors=True)
    elif container == WORKER_CONTAINER:
        shutil.rmtree(session, ignore_errors=True)
