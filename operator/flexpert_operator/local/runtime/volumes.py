"""Volumes of a Pod that Secrets and ConfigMaps fill, and which of its containers wait for one. Pure; `decide` calls it.

A container here has no file system of its own: its volumes lie in its pod's folder, and where its manifest names a
mount path in a variable or an argument, it is told that place instead (`relocated`). Files change when their object
does, as the kubelet's do (`mounted_files` writes them).
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from flexpert_operator.local.runtime import environment
from flexpert_operator.local.runtime.entries import CONFIG_MAP, SECRET, Entries, NotThere
from flexpert_operator.local.runtime.objects import key_of, uid_of
from flexpert_operator.local.runtime.values import File, Held, LocalPod, MountVolume, Object

_NAMES = {"secret": (SECRET, "secretName"), "configMap": (CONFIG_MAP, "name")}
"""By the field of a volume, the kind of its object and the field with that one's name."""
_DEFAULT_MODE = 0o644


def decide_mounts(pod: Object, local: LocalPod, entries: Entries) -> Iterator[MountVolume]:
    """Volumes whose files are not what they should be; one whose object is gone keeps what it has."""
    for name, volume in _filled(pod).items():
        try:
            files = files_of(volume, key_of(pod)[0], entries)
        except NotThere:
            continue
        digest = _digest(files)
        if local.mounted.get(name) != digest:
            yield MountVolume(uid_of(pod), name, files, digest)


def held(pod: Object, local: LocalPod, entries: Entries) -> dict[str, Held]:
    """Containers that wait for a Secret, a ConfigMap or a key of one, by name."""
    missing = _missing(pod, local, entries)
    found = {}
    for spec in pod["spec"]["containers"]:
        why = Held("ContainerCreating", missing) if missing else _lacking(spec, pod, entries)
        if why is not None:
            found[spec["name"]] = why
    return found


def _missing(pod: Object, local: LocalPod, entries: Entries) -> str:
    """Which volume cannot be filled, and never was; "" for none."""
    for name, volume in _filled(pod).items():
        try:
            files_of(volume, key_of(pod)[0], entries)
        except NotThere as error:
            if name not in local.mounted:
                return f'MountVolume.SetUp failed for volume "{name}" : {error}'
    return ""


def _lacking(spec: Object, pod: Object, entries: Entries) -> Held | None:
    try:
        environment.declared(spec, pod, entries)
    except NotThere as error:
        return Held("CreateContainerConfigError", str(error))
    except environment.UnservedVariable:  # for good: it is refused when it starts
        pass
    return None


def files_of(volume: Object, namespace: str, entries: Entries) -> dict[str, File]:
    """Files of a volume, by their path in it.

    Raises:
        NotThere: Its object or a key of that does not exist, or a path leads out of the volume.
    """
    field = _field(volume)
    kind, name_field = _NAMES[field]
    source = volume[field]
    optional, mode = bool(source.get("optional")), source.get("defaultMode") or _DEFAULT_MODE
    held_entries = entries.all_of(kind, namespace, source[name_field], optional)
    items = source.get("items") or [{"key": key, "path": key} for key in held_entries]
    found = {}
    for item in items:
        data = entries.one_of(kind, namespace, source[name_field], item["key"], optional)
        if data is not None:
            found[_inside(item["path"])] = File(data, item.get("mode") or mode)
    return found


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise NotThere(f"the path {path!r} leads out of the volume")
    return path


def place_of(local: LocalPod, volume: str) -> str:
    """Folder of a volume."""
    return f"{local.folder}/v/{volume}"


def places(pod: Object, spec: Object, local: LocalPod) -> dict[str, str]:
    """Where the mount paths of a container are here."""
    filled = _filled(pod)
    return {
        mount["mountPath"].rstrip("/"): str(PurePosixPath(place_of(local, mount["name"]), mount.get("subPath", "")))
        for mount in spec.get("volumeMounts") or []
        if mount["name"] in filled
    }


def relocated(text: str, where: Mapping[str, str]) -> str:
    """The text, if it is a mount path or below one, as a path here; else as it is."""
    for path, place in where.items():
        if text == path or text.startswith(f"{path}/"):
            return place + text[len(path) :]
    return text


def _filled(pod: Object) -> dict[str, Object]:
    """The volumes that Secrets and ConfigMaps fill, by name."""
    return {volume["name"]: volume for volume in pod["spec"].get("volumes") or [] if _field(volume)}


def _field(volume: Object) -> str:
    return next((field for field in _NAMES if field in volume), "")


def _digest(files: Mapping[str, File]) -> str:
    whole = hashlib.sha256()
    for path, file in sorted(files.items()):
        whole.update(f"{path}\0{file.mode}\0{len(file.data)}\0".encode() + file.data)
    return whole.hexdigest()
