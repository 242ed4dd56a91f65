from pathlib import Path

import pytest
import yaml

from flexpert_operator import crds
from flexpert_operator.__main__ import parser, settings_of
from flexpert_operator.handlers import connection_info
from flexpert_operator.kube import (
    api_client,
)
from flexpert_operator.settings import GcsStore, Settings
from flexpert_proto import names


def test_in_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(names.ENV_SERVICES, raising=False)
    settings = settings_of(parser().parse_args([]))
    assert settings == Settings()
    assert settings.ingress_replicas >= 2


def test_on_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(names.ENV_SERVICES, "/somewhere/services.json")
    settings = settings_of(parser().parse_args(["--provision-deadline-seconds", "30"]))
    assert (settings.resync_s, settings.ingress_replicas, settings.provision_deadline_s) == (2.0, 1, 30.0)


def test_where_the_heads_tables_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(names.ENV_SERVICES, raising=False)
    assert settings_of(parser().parse_args([])).gcs is None
    redis = parser().parse_args(["--gcs-redis-address", "redis:6379", "--gcs-redis-secret", "login/pass"])
    assert settings_of(redis).gcs == GcsStore("redis", "redis:6379", "login", "pass")
    volume = parser().parse_args(["--gcs-volume-size", "2Gi"])
    assert settings_of(volume).gcs == GcsStore("rocksdb", volume_size="2Gi")
    with pytest.raises(SystemExit, match="exclude each other"):
        settings_of(parser().parse_args(["--gcs-volume-size", "2Gi", "--gcs-redis-address", "redis:6379"]))
    monkeypatch.setenv(names.ENV_SERVICES, "/somewhere/services.json")
    assert settings_of(parser().parse_args([])).gcs == GcsStore("rocksdb")


def test_kopf_logs_in_with_the_kubeconfig_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "another"))
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(KUBECONFIG))
    info = connection_info(api_client(file).configuration)
    assert info.server == "https://127.0.0.1:6443"
    assert (info.scheme, info.token) == ("Bearer", "secret")
    assert info.insecure


KUBECONFIG = {
    "apiVersion": "v1",
    "kind": "Config",
    "current-context": "here",
    "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443", "insecure-skip-tls-verify": True}}],
    "users": [{"name": "u", "user": {"token": "secret"}}],
}


def test_the_crds_are_found() -> None:
    (crd,) = [one for one in crds.load_crds() if one["spec"]["names"]["kind"] == "MoEDeployment"]
    version = crd["spec"]["versions"][0]
    assert version["subresources"]["scale"] == {
        "specReplicasPath": ".spec.experts.workers",
        "statusReplicasPath": ".status.experts.workers",
        "labelSelectorPath": ".status.selector",
    }
    columns = [column["name"] for column in version["additionalPrinterColumns"]]
    assert columns == ["Workers", "Ready", "Imbalance", "Epoch", "Age"]
    assert "'type': 'number'" not in str(version["schema"]), "no floats"


def test_every_field_is_described() -> None:
    def check(schema: dict[str, object], path: str) -> list[str]:
        properties = schema.get("properties", {})
        assert isinstance(properties, dict)
        missing = []
        for name, inner in properties.items():
            if path + name not in ("metadata",) and "description" not in inner:
                missing.append(path + name)
            if name != "affinity":  # below it stands what is Kubernetes' own
                missing += check(inner, f"{path}{name}.")
        return missing

    (crd,) = [one for one in crds.load_crds() if one["spec"]["names"]["kind"] == "MoEDeployment"]
    assert check(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "") == []


def test_where_metrics_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(names.ENV_SERVICES, raising=False)
    options = parser().parse_args([])
    assert (options.metrics, options.watch_nodes) == ("0.0.0.0:8081", None)
    assert not parser().parse_args(["--no-watch-nodes"]).watch_nodes
    monkeypatch.setenv(names.ENV_SERVICES, "/somewhere/services.json")
    assert parser().parse_args([]).metrics == "", "fixed ports are for clusters"
