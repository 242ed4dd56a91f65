"""Secrets and ConfigMaps of the laptop's pods: as files, as variables, and while they are not there."""

import base64
import random
from pathlib import Path
from typing import Any

import pytest
from local_objects import Object, born, container, local_pod

from flexpert_operator.local.layout import Layout
from flexpert_operator.local.runtime import containers, mounted_files, volumes
from flexpert_operator.local.runtime.containers import CannotStart, Host
from flexpert_operator.local.runtime.decide import decide
from flexpert_operator.local.runtime.entries import Entries, NotThere
from flexpert_operator.local.runtime.values import File, LocalPod, Observed, StartContainer, WriteStatus

HOST = Host(Layout(Path("/state")), {}, num_cores=2, loopback=None)


def secret(name: str, **entries: str) -> Object:
    data = {key.replace("_", "."): base64.b64encode(text.encode()).decode() for key, text in entries.items()}
    return {"metadata": {"name": name, "namespace": "default"}, "data": data}


def config_map(name: str, **data: str) -> Object:
    return {"metadata": {"name": name, "namespace": "default"}, "data": data}


FRONT = {"name": "front", "secret": {"secretName": "front", "defaultMode": 0o440}}
MOUNT = {"name": "front", "mountPath": "/etc/front"}


def pod(*mounted: Object, env: Any = (), env_from: Any = (), command: tuple[str, ...] = ("python",)) -> Object:
    spec = container("a", command=list(command), env=list(env), envFrom=list(env_from), volumeMounts=[MOUNT])
    manifest = {
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"nodeName": "laptop", "containers": [spec], "volumes": [{"name": "other", "emptyDir": {}}, *mounted]},
    }
    return born(manifest, phase="Pending", ready=False)


def actions(obj: Object, local: LocalPod, *secrets: Object) -> list[Any]:
    return decide(Observed(pods=(obj,), secrets=secrets, local={local.uid: local}), random.Random(0))


def test_a_container_waits_for_its_secret_and_says_so() -> None:
    obj = pod(FRONT)
    [told] = actions(obj, local_pod(obj))
    assert isinstance(told, WriteStatus)
    waiting = told.status["containerStatuses"][0]["state"]["waiting"]
    assert waiting["reason"] == "ContainerCreating"
    assert waiting["message"] == 'MountVolume.SetUp failed for volume "front" : secret "front" not found'

    mount, start, _ = actions(obj, local_pod(obj), secret("front", tls_crt="C", tls_key="K"))
    assert mount.files == {"tls.crt": File(b"C", 0o440), "tls.key": File(b"K", 0o440)}
    assert isinstance(start, StartContainer)
    assert "C" not in repr(mount.files["tls.crt"])


def test_files_follow_their_secret_and_outlive_it() -> None:
    obj = pod(FRONT)
    [mount] = volumes.decide_mounts(obj, local_pod(obj), Entries.of([secret("front", a="1")], []))
    mounted = local_pod(obj, mounted={"front": mount.digest})
    assert list(volumes.decide_mounts(obj, mounted, Entries.of([secret("front", a="1")], []))) == []
    [again] = volumes.decide_mounts(obj, mounted, Entries.of([secret("front", a="2")], []))
    assert again.files["a"].data == b"2"
    assert list(volumes.decide_mounts(obj, mounted, Entries.of([], []))) == []
    assert volumes.held(obj, mounted, Entries.of([], [])) == {}


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ({"secret": {"secretName": "s"}}, {"a": File(b"1", 0o644), "b": File(b"2", 0o644)}),
        (
            {"secret": {"secretName": "s", "items": [{"key": "a", "path": "x/y", "mode": 0o400}]}},
            {"x/y": File(b"1", 0o400)},
        ),
        ({"secret": {"secretName": "absent", "optional": True}}, {}),
        (
            {"secret": {"secretName": "s", "optional": True, "items": [{"key": "c", "path": "c"}]}},
            {},
        ),
        ({"configMap": {"name": "m"}}, {"k": File(b"v", 0o644)}),
    ],
)
def test_which_files_a_volume_has(source: Object, files: dict[str, File]) -> None:
    entries = Entries.of([secret("s", a="1", b="2")], [config_map("m", k="v")])
    assert volumes.files_of({"name": "v", **source}, "default", entries) == files


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"key": "c", "path": "c"}, 'secret "s" has no key "c"'),
        ({"key": "a", "path": "../a"}, "leads out"),
        ({"key": "a", "path": "/a"}, "leads out"),
    ],
)
def test_a_file_that_cannot_be(item: Object, said: str) -> None:
    entries = Entries.of([secret("s", a="1")], [])
    with pytest.raises(NotThere, match=said):
        volumes.files_of({"name": "v", "secret": {"secretName": "s", "items": [item]}}, "default", entries)


def test_mount_paths_in_variables_and_arguments_are_told_as_they_are_here() -> None:
    env = [
        {"name": "FOLDER", "value": "/etc/front"},
        {"name": "FILE", "value": "/etc/front/tls.crt"},
        {"name": "ELSEWHERE", "value": "/etc/frontier"},
    ]
    obj = pod(FRONT, env=env, command=("serve", "/etc/front/tls.key", "--verbose"))
    command = containers.command(HOST, obj, "a", local_pod(obj), None, {}, Entries.of([secret("front")], []))
    assert command.environment["FOLDER"] == "/tmp/x/v/front"
    assert command.environment["FILE"] == "/tmp/x/v/front/tls.crt"
    assert command.environment["ELSEWHERE"] == "/etc/frontier"
    assert command.argv == ["serve", "/tmp/x/v/front/tls.key", "--verbose"]


def test_variables_come_from_secrets_and_config_maps() -> None:
    env = [
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}},
        {"name": "LEVEL", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "level"}}},
        {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "k", "optional": True}}},
        {"name": "B", "value": "own"},
    ]
    env_from = [{"secretRef": {"name": "s"}, "prefix": "S_"}, {"configMapRef": {"name": "m"}}]
    entries = Entries.of([secret("s", token="$$(B)")], [config_map("m", level="3", B="map", **{"1st": "no name"})])
    obj = pod(env=env, env_from=env_from)
    values = containers.command(HOST, obj, "a", local_pod(obj), None, {}, entries).environment
    assert (values["TOKEN"], values["LEVEL"], values["B"], values["S_token"]) == ("$$(B)", "3", "own", "$$(B)")
    assert "NONE" not in values
    assert "1st" not in values


def test_a_variable_whose_secret_is_not_there_is_waited_for() -> None:
    obj = pod(env=[{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}}])
    why = volumes.held(obj, local_pod(obj), Entries.of([], []))["a"]
    assert (why.reason, why.message) == ("CreateContainerConfigError", 'secret "s" not found')
    assert volumes.held(obj, local_pod(obj), Entries.of([secret("s", token="t")], [])) == {}
    zero = Entries.of([secret("s", token="a\0b")], [])
    assert volumes.held(obj, local_pod(obj), zero) == {}
    with pytest.raises(CannotStart, match="TOKEN would hold a zero byte"):
        containers.command(HOST, obj, "a", local_pod(obj), None, {}, zero)


def test_files_change_all_at_once_under_whoever_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    mounted_files.write(folder, {"a": File(b"1", 0o440), "deep/b": File(b"2", 0o400)})
    assert (folder / "a").read_bytes() == b"1"
    assert (folder / "a").stat().st_mode & 0o777 == 0o440
    assert (folder / "deep" / "b").read_bytes() == b"2"
    assert folder.stat().st_mode & 0o777 == 0o700
    with (folder / "a").open("rb") as reader:
        mounted_files.write(folder, {"a": File(b"3", 0o440), "c": File(b"4", 0o440)})
        assert reader.read() == b"1"
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == {"a": b"3", "c": b"4"}
    assert len([path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]) == 1
