"""Remote models: what pods are given, what the status says while they are fetched, and when their source changes."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from flexpert_operator import manifests
from flexpert_operator.api import Model, MoEDeployment, parse_deployment
from flexpert_operator.api.fields import read
from flexpert_operator.api.names import MODEL_ANNOTATION
from flexpert_operator.decide.files import model_status
from flexpert_operator.decide.loading import loaded_condition
from flexpert_operator.decide.model import fetch_problem, model_problem, model_to_serve
from flexpert_operator.decide.observation import (
    Engine,
    Inspection,
    MemberState,
    ModelFacts,
    ModelFiles,
    Observation,
    Pool,
)
from flexpert_operator.decide.progress import condition_events
from flexpert_operator.decide.sizing import GroupSize, decide_size
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_operator.decide.status import Outcome, build_status, decide_conditions
from flexpert_operator.observe import parse_cluster
from flexpert_proto import names

Object = dict[str, Any]
MakePool = Callable[..., Pool]
Observe = Callable[..., Observation]

COMMIT, NEWER = "a" * 40, "b" * 40
COMING = ModelFiles("Downloading", 300, 2000, 0, 2)
ENGINE = Engine("engine-1", "engine", MemberState.READY)
FULL = ModelFiles("Failed", 300, 2000, 0, 2, error="CacheUnusable", message="make room")


def model(source: str = "hf://org/tiny", **said: Any) -> Model:
    return read(Model, {"source": source, **said})


def containers(deployment: MoEDeployment) -> list[tuple[Object, Object]]:
    """(pod's spec, container) of everything that belongs to the pool."""
    group = GroupSize(1)
    cluster = manifests.ray_cluster(deployment, "image", group, group, Sizing(), None)["spec"]
    ingress = manifests.ingress_deployment(deployment, "image", 1)["spec"]
    pods = [one["template"]["spec"] for one in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"], ingress)]
    return [(pod, container) for pod in pods for container in pod["containers"]]


def environment(container: Object) -> Object:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        ({}, {"emptyDir": {}}),
        ({"hostPath": "/var/models"}, {"hostPath": {"path": "/var/models", "type": "DirectoryOrCreate"}}),
        ({"claim": "models"}, {"persistentVolumeClaim": {"claimName": "models"}}),
    ],
)
def test_every_pod_has_the_cache(deployment: MoEDeployment, cache: Object, volume: Object) -> None:
    for pod, container in containers(replace(deployment, model=model(cache=cache))):
        found = next(one for one in pod["volumes"] if one["name"] == "model-cache")
        mount = next(one for one in container["volumeMounts"] if one["name"] == "model-cache")
        assert {key: value for key, value in found.items() if key != "name"} == volume
        assert environment(container)[names.ENV_MODEL_CACHE] == mount["mountPath"]
        assert not mount.get("readOnly")


def test_a_token_goes_to_the_pods_by_reference_alone(deployment: MoEDeployment) -> None:
    asked = model(tokenSecretRef={"name": "hub"}, endpoint="http://mirror", offline=True)
    for _, container in containers(replace(deployment, model=asked)):
        found = environment(container)
        assert found["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token", "optional": True}}
        assert (found["HF_ENDPOINT"], found["HF_HUB_OFFLINE"]) == ("http://mirror", "1")


def test_keys_of_a_store_become_the_pods_environment(deployment: MoEDeployment) -> None:
    asked = model("s3://bucket/tiny", credentialsSecretRef={"name": "keys"}, endpoint="http://minio:9000")
    for _, container in containers(replace(deployment, model=asked)):
        assert container["envFrom"] == [{"secretRef": {"name": "keys", "optional": True}}]
        assert environment(container)["AWS_ENDPOINT_URL"] == "http://minio:9000"


def test_the_ray_cluster_of_a_remote_model_is_valid(deployment: MoEDeployment, kuberay_schema: Object) -> None:
    asked = model("gs://bucket/tiny", credentialsSecretRef={"name": "keys"}, cache={"hostPath": "/m"})
    group = GroupSize(1)
    body = manifests.ray_cluster(replace(deployment, model=asked), "image", group, group, Sizing(), asked)
    jsonschema.Draft4Validator(kuberay_schema["properties"]["spec"]).validate(body["spec"])


def test_a_model_in_a_folder_needs_none_of_it(deployment: MoEDeployment) -> None:
    for pod, container in containers(deployment):
        assert names.ENV_MODEL_CACHE not in environment(container)
        assert all(volume["name"] != "model-cache" for volume in pod.get("volumes", ()))


def unserved(observed: Observation, inspection: Inspection) -> Observation:
    assert observed.cluster is not None
    return replace(observed, cluster=replace(observed.cluster, served_model=None), inspection=inspection)


def test_what_a_revision_was_resolved_to_is_remembered_with_the_cluster(
    deployment: MoEDeployment, pool: MakePool, observed: Observe, facts: ModelFacts
) -> None:
    said = {"tokenSecretRef": {"name": "t"}, "cache": {"claim": "c"}, "endpoint": "http://mirror"}
    asked = replace(deployment, model=model(revision="v1", offline=True, **said))
    seen = unserved(observed(pool()), Inspection(facts=replace(facts, resolved=COMMIT)))

    serving = model_to_serve(asked, seen)
    assert serving is not None
    group = GroupSize(1)
    body = manifests.ray_cluster(asked, "image", group, group, Sizing(), serving)
    body["metadata"]["resourceVersion"] = "1"
    again = parse_cluster(body, [], lambda _: "").served_model

    assert again == asked.model
    assert again is not None
    assert (again.resolved, again.revision) == (COMMIT, "v1")
    assert again.access == asked.model.access
    assert json.loads(body["metadata"]["annotations"][MODEL_ANNOTATION])["resolved"] == COMMIT


def test_the_way_to_a_model_that_is_served_can_be_changed_and_that_to_another_is_not_taken(
    deployment: MoEDeployment, pool: MakePool, observed: Observe
) -> None:
    seen = observed(pool())
    assert seen.cluster is not None
    before = replace(model(tokenSecretRef={"name": "old"}), resolved=COMMIT)
    seen = replace(seen, cluster=replace(seen.cluster, served_model=before))

    same = model_to_serve(replace(deployment, model=model(tokenSecretRef={"name": "new"})), seen)
    other = model_to_serve(replace(deployment, model=model("hf://org/other", tokenSecretRef={"name": "new"})), seen)

    for found, secret in ((same, "new"), (other, "old")):
        assert found is not None
        assert (found, found.resolved) == (before, COMMIT)
        assert found.access.token_secret_ref is not None
        assert found.access.token_secret_ref.name == secret


def test_another_way_to_the_same_model_is_no_other_model() -> None:
    assert model() == model(offline=True, tokenSecretRef={"name": "t"})
    assert model() != model(revision="v2")


def loaded(deployment: MoEDeployment, seen: Observation) -> tuple[str, str, str]:
    condition = loaded_condition(deployment, seen)
    return str(condition.status), condition.reason, condition.message


def test_the_condition_follows_the_model_from_its_look_to_its_loading(
    deployment: MoEDeployment, pool: MakePool, observed: Observe, facts: ModelFacts
) -> None:
    asked = replace(deployment, model=model())
    empty, found = pool((), placement={}), Inspection(facts=facts)

    def reason(pool: Pool, inspection: Inspection) -> tuple[str, str]:
        return loaded(asked, unserved(observed(pool), inspection))[:2]

    assert reason(replace(empty, model=None), Inspection(pending=True)) == ("False", "InspectingModel")
    refused = Inspection(reason="ModelAccessDenied", message="a token")
    assert reason(replace(empty, model=None), refused) == ("False", "ModelAccessDenied")
    assert reason(replace(empty, files=COMING), found) == ("False", "FetchingModel")
    assert reason(replace(empty, files=FULL), found) == ("False", "ModelCacheUnusable")
    assert reason(empty, found) == ("False", "LoadingExperts")
    assert reason(pool(engines=(ENGINE,)), found) == ("True", "Loaded")
    assert loaded(deployment, observed(None))[:2] == ("Unknown", "ControllerUnreachable")


def test_a_fetch_that_fails_is_told_with_what_to_change_and_is_no_reason_to_call_the_model_lost(
    deployment: MoEDeployment, pool: MakePool, observed: Observe
) -> None:
    assert loaded(deployment, observed(pool(files=FULL, engines=(ENGINE,))))[:2] == ("True", "Loaded")
    problem = fetch_problem(pool(files=FULL))
    assert problem is not None
    assert (problem.reason, problem.message) == ("ModelCacheUnusable", "make room")


def test_progress_stands_in_the_status_and_is_not_written_for_every_byte(
    deployment: MoEDeployment, pool: MakePool, observed: Observe, facts: ModelFacts
) -> None:
    asked = replace(deployment, model=model())
    known = replace(facts, resolved=COMMIT)

    def status(files: ModelFiles, old: Object) -> Object:
        return model_status(asked, unserved(observed(pool(files=files)), Inspection(facts=known)), old)

    first = status(COMING, {})
    assert first == {
        "source": "hf://org/tiny",
        "revision": "main",
        "resolvedRevision": COMMIT,
        "architecture": facts.architecture,
        "digest": facts.digest,
        "phase": "Downloading",
        "bytesDone": 300,
        "bytesTotal": 2000,
        "nodesReady": 0,
        "nodes": 2,
    }
    assert status(replace(COMING, bytes_done=319), first) == first
    assert status(replace(COMING, bytes_done=320), first)["bytesDone"] == 320
    assert status(ModelFiles("Ready", 2000, 2000, 2, 2), first)["bytesDone"] == 2000


@pytest.mark.parametrize("source", ["hf://org/tiny", "file:///models/tiny"])
def test_a_source_that_changes_is_told_once_and_touches_nothing(
    deployment: MoEDeployment, pool: MakePool, observed: Observe, source: str
) -> None:
    asked = replace(deployment, model=model(source))
    before = observed(pool(engines=(ENGINE,)))
    assert before.cluster is not None
    assert before.pool is not None
    before = replace(before, cluster=replace(before.cluster, served_model=replace(asked.model, resolved=COMMIT)))
    after = replace(before, pool=pool(engines=(ENGINE,), files=ModelFiles(newer_revision=NEWER)))
    outcome = Outcome(decide_size(asked, after, 600.0, 300.0), None)

    old = build_status(asked, before, outcome)
    new = decide_conditions(asked, after, outcome)
    told = [event for event in condition_events(old["conditions"], new) if event.reason == "ModelSourceChanged"]

    assert len(told) == 1
    assert source in told[0].message
    assert "another MoEDeployment" in told[0].message
    assert loaded(asked, after)[:2] == ("True", "SourceChanged")
    assert build_status(asked, after, outcome)["model"]["newerRevision"] == NEWER
    assert model_problem(asked, after) is None
    assert decide_size(asked, after, 600.0, 300.0) == decide_size(asked, before, 600.0, 300.0)


def test_the_deadline_of_growth_does_not_count_the_fetch(
    deployment: MoEDeployment, pool: MakePool, observed: Observe
) -> None:
    grown = replace(deployment, experts=replace(deployment.experts, workers=3))
    sizing = Sizing(settled=2, aim=3, since=0.0)

    def failed(files: ModelFiles) -> bool:
        seen = observed(pool(files=files), replicas=3, sizing=sizing)
        return decide_size(grown, seen, 600.0, 300.0).sizing.failed is not None

    assert failed(ModelFiles())
    assert not failed(COMING)


def test_the_fields_are_read_from_an_object() -> None:
    asked = {"source": "hf://org/tiny", "tokenSecretRef": {"name": "t", "key": "k"}, "cache": {"claim": "c"}}
    metadata = {"name": "x", "namespace": "n", "uid": "u", "resourceVersion": "9"}
    found = parse_deployment({"metadata": metadata, "spec": {"model": asked}}).model.access
    assert found.token_secret_ref is not None
    assert (found.token_secret_ref.name, found.token_secret_ref.key) == ("t", "k")
    assert (found.cache.claim, found.offline, found.endpoint) == ("c", False, None)
