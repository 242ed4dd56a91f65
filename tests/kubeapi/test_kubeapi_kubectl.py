"""The embedded API as kubectl sees it."""

import json
import os
import shutil
import subprocess

import pytest
import yaml

pytestmark = pytest.mark.kubectl

WIDGET = """
apiVersion: example.dev/v1
kind: Widget
metadata: {name: NAME, labels: {app: x}}
spec: {model: {source: "file:///x"}, items: [{name: p, value: 1}]}
"""
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: "nginx:1", ports: [{containerPort: 80}]}, {name: d, image: "x:1"}]}
"""


def manifest(name, text=WIDGET):
    return text.replace("NAME", name)


def test_apply_then_nothing_changes_then_configured(kubectl):
    assert "created" in kubectl("apply", "-f", "-", stdin=manifest("one")).stdout
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=manifest("one")).stdout
    changed = manifest("one").replace("value: 1", "value: 2")
    assert "configured" in kubectl("apply", "-f", "-", stdin=changed).stdout
    shown = json.loads(kubectl("get", "widget", "one", "-o", "json").stdout)
    assert shown["spec"]["items"] == [{"name": "p", "value": 2}]
    assert shown["spec"]["experts"] == {"workers": 2, "workersPerPod": 1}
    assert shown["metadata"]["generation"] == 2


def test_apply_of_a_built_in_kind_merges_lists_by_name(kubectl):
    kubectl("apply", "-f", "-", stdin=DEPLOYMENT)
    containers = '[{"name":"d","image":"y:2"}]'
    kubectl("patch", "deployment", "web", "-p", '{"spec":{"template":{"spec":{"containers":' + containers + "}}}}")
    kubectl("apply", "-f", "-", stdin=DEPLOYMENT.replace("nginx:1", "nginx:2"))
    containers = json.loads(kubectl("get", "deploy/web", "-o", "json").stdout)["spec"]["template"]["spec"]["containers"]
    assert [(item["name"], item["image"]) for item in containers] == [("c", "nginx:2"), ("d", "x:1")]
    kubectl("set", "image", "deployment/web", "c=nginx:3")
    kubectl("scale", "deployment/web", "--replicas=5")
    assert kubectl("get", "deploy", "web", "--no-headers").stdout.split()[:2] == ["web", "0/5"]
    assert "nginx:3" in kubectl("describe", "deployment", "web").stdout
    kubectl("delete", "deployment", "web")


def test_server_side_apply_reports_conflicts_and_takes_by_force(kubectl):
    kubectl("apply", "--server-side", "-f", "-", stdin=manifest("ssa"))
    other = manifest("ssa").replace("value: 1", "value: 9")
    refused = kubectl("apply", "--server-side", "--field-manager=other", "-f", "-", stdin=other, code=1)
    assert 'conflict with "kubectl" using example.dev/v1: .spec.items[name="p"].value' in refused.stderr
    kubectl("apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-", stdin=other)
    assert kubectl("get", "wd", "ssa", "-o", "jsonpath={.spec.items[0].value}").stdout == "9"
    kubectl("apply", "-f", "-", stdin=other)
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=manifest("ssa"))
    kubectl("delete", "wd", "ssa")


def test_diff_shows_what_apply_would_change(kubectl):
    kubectl("apply", "-f", "-", stdin=manifest("diff"))
    kubectl("diff", "-f", "-", stdin=manifest("diff"))
    shown = kubectl("diff", "-f", "-", stdin=manifest("diff").replace("value: 1", "value: 7"), code=1).stdout
    assert "-    value: 1" in shown
    assert "+    value: 7" in shown


def test_bad_objects_are_refused_with_the_path(kubectl):
    bad = manifest("bad").replace("items:", "experts: {workers: -1}, items:")
    refused = kubectl("apply", "-f", "-", stdin=bad, code=1).stderr
    assert (
        'The Widget "bad" is invalid: spec.experts.workers: Invalid value: -1: spec.experts.workers in body' in refused
    )
    unknown = manifest("bad").replace("items:", "colour: red, items:")
    assert 'unknown field "spec.colour"' in kubectl("apply", "-f", "-", stdin=unknown, code=1).stderr
    warned = kubectl("apply", "--validate=warn", "-f", "-", stdin=unknown)
    assert 'Warning: unknown field "spec.colour"' in warned.stderr
    pod = '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"image":"x","imag":1}]}}'
    assert 'unknown field "spec.containers[0].imag"' in kubectl("apply", "-f", "-", stdin=pod, code=1).stderr


def test_dry_run_changes_nothing(kubectl):
    shown = kubectl("apply", "--dry-run=server", "-f", "-", "-o", "json", stdin=manifest("dry")).stdout
    assert json.loads(shown)["spec"]["experts"]["workers"] == 2
    assert "NotFound" in kubectl("get", "wd", "dry", code=1).stderr
    kubectl("apply", "-f", "-", stdin=manifest("dry"))
    kubectl("scale", "wd/dry", "--replicas=7", "--dry-run=server")
    kubectl("delete", "wd", "dry", "--dry-run=server")
    kubectl("label", "wd", "dry", "a=b", "--dry-run=server")
    shown = json.loads(kubectl("get", "wd", "dry", "-o", "json").stdout)
    assert (shown["spec"]["experts"]["workers"], shown["metadata"]["labels"]) == (2, {"app": "x"})


def test_scale_obeys_the_schema(kubectl):
    kubectl("apply", "-f", "-", stdin=manifest("scaled"))
    assert "scaled" in kubectl("scale", "wd/scaled", "--replicas=4").stdout
    assert kubectl("get", "wd", "scaled", "-o", "jsonpath={.spec.experts.workers}").stdout == "4"
    assert "less than or equal to 64" in kubectl("scale", "wd/scaled", "--replicas=65", code=1).stderr
    kubectl("scale", "wd/scaled", "--current-replicas=9", "--replicas=1", code=1)
    kubectl("scale", "wd/scaled", "--replicas=0")
    scale = yaml.safe_load(kubectl("get", "wd/scaled", "--subresource=scale", "-o", "yaml").stdout)
    assert (scale["kind"], scale["spec"]) == ("Scale", {})


def test_patch_label_annotate_and_select(kubectl):
    kubectl("apply", "-f", "-", stdin=manifest("sel"))
    kubectl("label", "wd", "sel", "tier=gold")
    kubectl("annotate", "wd", "sel", "example.dev/note=hello")
    kubectl("patch", "wd", "sel", "--type=merge", "-p", '{"spec":{"maxWorkers":9}}')
    kubectl("patch", "wd", "sel", "--type=json", "-p", '[{"op":"replace","path":"/spec/maxWorkers","value":8}]')
    assert kubectl("get", "wd", "-l", "tier in (gold,silver)", "-o", "name").stdout == "widget.example.dev/sel\n"
    assert "sel" not in kubectl("get", "wd", "-l", "tier notin (gold)", "-o", "name").stdout
    shown = kubectl("get", "wd", "--field-selector=metadata.name=sel", "-o", "jsonpath={.items[*].spec.maxWorkers}")
    assert shown.stdout == "8"
    refused = kubectl("patch", "wd", "sel", "--type=merge", "-p", '{"spec":{"maxWorkers":1}}', code=1).stderr
    assert 'spec: Invalid value: "object": workers must not exceed maxWorkers' in refused


def test_tables_have_the_printer_columns(kubectl):
    kubectl("apply", "-f", "-", stdin=manifest("tab"))
    conditions = '{"status":{"conditions":[{"type":"Ready","status":"True"}],"experts":{"workers":2}}}'
    kubectl("patch", "wd", "tab", "--subresource=status", "--type=merge", "-p", conditions)
    assert kubectl("get", "wd", "tab").stdout.splitlines()[0].split() == ["NAME", "WORKERS", "READY", "AGE"]
    wide = kubectl("get", "wd", "tab", "-o", "wide").stdout.splitlines()
    assert wide[0].split() == ["NAME", "WORKERS", "READY", "AGE", "SOURCE"]
    assert wide[1].split()[:3] == ["tab", "2", "True"]
    assert wide[1].split()[4] == "file:///x"
    everywhere = kubectl("get", "all", "-A").stdout
    assert "widget.example.dev/tab" in everywhere


def test_wait_for_a_condition_a_field_and_deletion(kubectl):
    kubectl("apply", "-f", "-", stdin=manifest("wait"))
    kubectl("wait", "--for=condition=Ready", "wd/wait", "--timeout=0s", code=1)
    conditions = '{"status":{"conditions":[{"type":"Ready","status":"True"}],"experts":{"workers":3}}}'
    kubectl("patch", "wd", "wait", "--subresource=status", "--type=merge", "-p", conditions)
    kubectl("wait", "--for=condition=Ready", "wd/wait", "--timeout=20s")
    kubectl("wait", "--for=jsonpath={.status.experts.workers}=3", "wd/wait", "--timeout=20s")
    kubectl("delete", "wd", "wait", "--wait=false")
    kubectl("wait", "--for=delete", "wd/wait", "--timeout=20s")


def test_get_watch_follows_changes(kubectl, server):
    kubectl("apply", "-f", "-", stdin=manifest("seen"))
    environment = os.environ | {"KUBECONFIG": str(server.kubeconfig), "KUBECACHEDIR": str(server.folder / "cache")}
    command = [shutil.which("kubectl"), "get", "wd", "seen", "-w", "--output-watch-events"]
    watching = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        lines = iter(watching.stdout.readline, "")
        assert next(lines).split()[:2] == ["EVENT", "NAME"]
        assert next(lines).split()[:3] == ["ADDED", "seen", "2"]
        kubectl("scale", "wd/seen", "--replicas=3")
        assert next(lines).split()[:3] == ["MODIFIED", "seen", "3"]
        kubectl("delete", "wd", "seen")
        assert next(lines).split()[:2] == ["DELETED", "seen"]
    finally:
        watching.kill()
        watching.wait()


def test_explain_and_describe(kubectl):
    shown = kubectl("explain", "widgets.spec.model").stdout
    assert "source\t<string> -required-" in shown
    assert "Where the checkpoint is." in shown
    assert "FIELD: image <string>" in kubectl("explain", "pod.spec.containers.image").stdout
    assert "ownerReferences" in kubectl("explain", "widget.metadata").stdout
    kubectl("apply", "-f", "-", stdin=manifest("told"))
    uid = kubectl("get", "wd", "told", "-o", "jsonpath={.metadata.uid}").stdout
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "told.1", "namespace": "default"},
        "involvedObject": {
            "apiVersion": "example.dev/v1",
            "kind": "Widget",
            "name": "told",
            "namespace": "default",
            "uid": uid,
        },
        "reason": "Scaled",
        "message": "from 2 to 4",
        "type": "Normal",
    }
    kubectl("create", "-f", "-", stdin=json.dumps(event))
    described = kubectl("describe", "wd", "told").stdout
    assert "Workers Per Pod:  1" in described
    assert "from 2 to 4" in described
    assert "from 2 to 4" in kubectl("get", "events").stdout
    assert "from 2 to 4" in kubectl("events", "--for", "widget/told").stdout


def test_delete_a_namespace_with_its_contents(kubectl):
    kubectl("apply", "-f", "-", stdin='{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"gone"}}')
    kubectl("apply", "-n", "gone", "-f", "-", stdin=manifest("inside"))
    kubectl("delete", "namespace", "gone")
    assert "NotFound" in kubectl("get", "namespace", "gone", code=1).stderr
    assert "No resources found" in kubectl("get", "wd", "-n", "gone").stderr


def test_cascades(kubectl):
    for policy, left in (("background", 0), ("foreground", 0), ("orphan", 1)):
        kubectl("apply", "-f", "-", stdin=manifest("owner"))
        uid = kubectl("get", "wd", "owner", "-o", "jsonpath={.metadata.uid}").stdout
        owned = yaml.safe_load(manifest("owned"))
        owner = {
            "apiVersion": "example.dev/v1",
            "kind": "Widget",
            "name": "owner",
            "uid": uid,
            "blockOwnerDeletion": True,
        }
        owned["metadata"]["ownerReferences"] = [owner]
        kubectl("create", "-f", "-", stdin=json.dumps(owned))
        kubectl("delete", "wd", "owner", f"--cascade={policy}")
        if left:
            assert "ownerReferences" not in kubectl("get", "wd", "owned", "-o", "json").stdout
            kubectl("delete", "wd", "owned")
        else:
            kubectl("wait", "--for=delete", "wd/owned", "--timeout=20s")


def test_create_by_generator(kubectl):
    kubectl("create", "namespace", "made")
    kubectl("create", "configmap", "cm", "-n", "made", "--from-literal=a=b")
    assert kubectl("get", "cm", "cm", "-n", "made", "-o", "jsonpath={.data.a}").stdout == "b"
    kubectl("create", "secret", "generic", "s", "-n", "made", "--from-literal=a=b")
    assert kubectl("get", "secret", "s", "-n", "made", "-o", "jsonpath={.data.a}").stdout == "Yg=="
    kubectl("create", "deployment", "d", "-n", "made", "--image=nginx:1", "--replicas=2", "--port=80")
    shown = kubectl("get", "deployment", "d", "-n", "made", "-o", "wide").stdout
    assert shown.splitlines()[1].split()[1::4] == ["0/2", "nginx"]
    assert "app=d" in shown
    kubectl("delete", "namespace", "made")


def test_version_and_resources(kubectl):
    assert "Server Version: v1.32" in kubectl("version").stdout
    assert "widgets" in kubectl("api-resources", "--api-group=example.dev").stdout
    assert "example.dev/v1" in kubectl("api-versions").stdout
