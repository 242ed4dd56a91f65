"""Commands, environments, ports and Services of the laptop runtime."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from local_objects import Object, born, container, local_pod, running

from flexpert_operator.local.layout import Layout
from flexpert_operator.local.runtime import containers, environment, ray_command
from flexpert_operator.local.runtime.containers import CannotStart, Host
from flexpert_operator.local.runtime.probes import port_number
from flexpert_operator.local.runtime.service_table import service_table

HOST = Host(Layout(Path("/state")), {"PATH": "/bin"}, num_cores=2, loopback="[::ffff:127.0.0.1]")


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        ({"num-cpus": "2"}, ["--num-cpus=2"]),
        ({"block": "true", "head": "True"}, ["--block", "--head"]),
        ({"block": "false"}, []),
        ({"include-dashboard": "false", "log-color": "false"}, ["--include-dashboard=false", "--log-color=false"]),
        ({"resources": r'"{\"a\":1}"'}, ['--resources={"a":1}']),
        ({"resources": json.dumps(json.dumps({"a": 1, "b": 2}))}, ['--resources={"a": 1, "b": 2}']),
        ({"resources": '{"a":1}'}, ["--resources={a:1}"]),
        ({"labels": "'x=1, y=2'"}, ["--labels=x=1, y=2"]),
    ],
)
def test_start_parameters_become_arguments_as_kuberay_makes_them(
    parameters: dict[str, str], arguments: list[str]
) -> None:
    assert ray_command.flags(parameters) == arguments


def test_the_heads_command_keeps_the_manifests_resources_and_overrides_ports() -> None:
    asked = {"num-cpus": "0", "resources": r'"{\"head\":1}"', "port": "6379", "dashboard-port": "8265"}
    command = ray_command.head_command(asked, 4, "/tmp/f/r", 12345)
    assert command[0] == sys.executable
    assert command[3] == "start"
    assert {"--head", "--block", "--num-cpus=0", '--resources={"head":1}', "--port=12345"} <= set(command)
    assert {"--temp-dir=/tmp/f/r", "--include-dashboard=false", "--node-ip-address=127.0.0.1"} <= set(command)
    assert not any(argument.startswith("--dashboard-port") for argument in command)
    assert {"--dashboard-agent-listen-port=0", "--metrics-export-port=0", "--max-worker-port=0"} <= set(command)


def test_a_workers_command_joins_the_head_and_takes_its_processors_from_the_limit() -> None:
    command = ray_command.worker_command({"num-gpus": "1"}, 3, "/tmp/f/r", "[::ffff:127.0.0.1]:99")
    assert {"--address=[::ffff:127.0.0.1]:99", "--num-cpus=3", "--num-gpus=1", "--block"} <= set(command)
    assert "--head" not in command


@pytest.mark.parametrize(("cpu", "cores"), [("2", 2), (2, 2), ("1500m", 2), ("100m", 1), (None, 1), ("0.5", 1)])
def test_whole_cores_of_a_limit(cpu: Any, cores: int) -> None:
    spec = {"name": "a", "resources": {"limits": {"cpu": cpu} if cpu is not None else {}}}
    assert containers.cpu_limit(spec) == cores


def pod_with(spec: Object, **metadata: Any) -> Object:
    manifest = {
        "metadata": {"name": "p-1", "namespace": "ns", **metadata},
        "spec": {"nodeName": "laptop", "containers": [spec]},
    }
    return born(manifest)


def test_python_is_the_runtimes_own_and_arguments_follow_the_command() -> None:
    pod = pod_with({"name": "a", "command": ["python", "-m", "x"], "args": ["--y"]})
    command = containers.command(HOST, pod, "a", local_pod(pod), None, {})
    assert command.argv == [sys.executable, "-m", "x", "--y"]
    assert command.log == Path("/state/logs/p-1.a.log")


def test_a_container_without_a_command_cannot_start() -> None:
    pod = pod_with({"name": "a", "args": ["serve"]})
    with pytest.raises(CannotStart, match="no command"):
        containers.command(HOST, pod, "a", local_pod(pod), None, {})


def test_the_environment_is_the_manifests_with_the_laptops_laid_over() -> None:
    spec = {
        "name": "a",
        "command": ["python"],
        "ports": [{"name": "pool-control", "containerPort": 7000}],
        "env": [
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a.b/c']"}}},
            {"name": "BOTH", "value": "$(POD)@$(NODE) $$(POD) $(NONE)"},
            {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}},
            {"name": "FLEXPERT_THREADS", "value": "16"},
            {"name": "FLEXPERT_BIND_HOST", "value": "0.0.0.0"},
            {"name": "FLEXPERT_POOL_CONTROL_PORT", "value": "7000"},
        ],
    }
    pod = pod_with(spec, labels={"a.b/c": "v"})
    local = local_pod(pod, ports={"pool-control": 4321})
    values = containers.command(HOST, pod, "a", local, None, {}).environment
    assert (values["POD"], values["NODE"], values["LABEL"]) == ("p-1", "laptop", "v")
    assert values["BOTH"] == "p-1@laptop $(POD) $(NONE)"
    assert "SECRET" not in values
    assert values["FLEXPERT_POOL_CONTROL_PORT"] == "4321"
    assert values["FLEXPERT_BIND_HOST"] == "127.0.0.1"
    assert values["FLEXPERT_SOCKET_DIR"] == "/tmp/x/s"
    assert values["FLEXPERT_SERVICES"] == "/state/services.json"
    assert values["FLEXPERT_VOLUMES_ROOT"] == "/state/volumes"
    assert (values["FLEXPERT_THREADS"], values["OMP_NUM_THREADS"], values["OMP_WAIT_POLICY"]) == ("2", "2", "PASSIVE")
    assert values["PATH"] == "/bin"
    assert not any(name.startswith("RAY_") for name in values)


def test_a_variable_that_cannot_be_had_is_named() -> None:
    env = [{"name": "KEY", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]
    pod = pod_with({"name": "a", "command": ["python"], "env": env})
    with pytest.raises(CannotStart, match="KEY comes from resourceFieldRef"):
        containers.command(HOST, pod, "a", local_pod(pod), None, {})


def test_every_container_of_a_ray_pod_knows_its_cluster_and_its_token() -> None:
    pod = pod_with(container("launcher", "pass"), labels={"ray.io/cluster": "moe"})
    head = local_pod(pod, is_head=True, ports={"gcs-server": 6000})
    values = containers.command(HOST, pod, "launcher", head, head, {}).environment
    assert values["RAY_ADDRESS"] == "[::ffff:127.0.0.1]:6000"
    assert (values["RAY_AUTH_MODE"], values["RAY_AUTH_TOKEN_PATH"]) == ("token", "/state/ray-token")
    assert values["RAY_START_HOOK"].endswith("keep_to_loopback")


def test_the_runtimes_own_variables_do_not_leak_into_containers() -> None:
    environment_here = {
        "PATH": "/bin",
        "RAY_ADDRESS": "x",
        "FLEXPERT_POOL": "y",
        "KUBECONFIG": "z",
        "OMP_NUM_THREADS": "8",
    }
    assert environment.inherited(environment_here) == {"PATH": "/bin"}


def test_a_head_has_a_port_for_its_gcs_whether_or_not_it_is_declared() -> None:
    spec = container("ray-head", ports=[{"name": "dashboard", "containerPort": 8265}, {"containerPort": 1}])
    labels = {"ray.io/node-type": "head"}
    assert containers.port_names(pod_with(spec, labels=labels)) == ["dashboard", "gcs-server"]
    assert containers.port_names(pod_with(spec)) == ["dashboard"]


@pytest.mark.parametrize(("port", "number"), [("grpc", 5001), (9000, 5001), (4444, 4444)])
def test_probes_ask_the_translated_port(port: int | str, number: int) -> None:
    spec = container("a", ports=[{"name": "grpc", "containerPort": 9000}])
    assert port_number(port, spec, local_pod(pod_with(spec), ports={"grpc": 5001})) == number


def served(name: str, *, ready: bool = True, port: int, created: str = "a", app: str = "web") -> tuple[Object, Any]:
    spec = container("web", "pass", ports=[{"name": "grpc", "containerPort": 9000}])
    manifest = {
        "metadata": {"name": name, "namespace": "default", "labels": {"app": app, "more": "1"}},
        "spec": {"containers": [spec]},
    }
    pod = born(manifest, ready=ready)
    pod["metadata"]["creationTimestamp"] = created
    return pod, local_pod(pod, running("web"), ports={"grpc": port})


def service(target: int | str | None = "grpc", selector: dict[str, str] | None = None) -> Object:
    port = {"name": "grpc", "port": 9000, **({} if target is None else {"targetPort": target})}
    return {
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"} if selector is None else selector, "ports": [port]},
    }


def table(*pods: tuple[Object, Any], of: Object | None = None) -> dict[str, str]:
    local = {item.uid: item for _, item in pods}
    return service_table((of or service(),), tuple(pod for pod, _ in pods), local)


@pytest.mark.parametrize("target", ["grpc", 9000, None])
def test_a_service_leads_to_a_ready_pods_port(target: int | str | None) -> None:
    assert table(served("p", port=5001), of=service(target)) == {
        "web.default.svc:9000": "127.0.0.1:5001",
        "web.default.svc.cluster.local:9000": "127.0.0.1:5001",
    }


def test_of_several_ready_pods_the_oldest_is_taken_and_kept() -> None:
    pods = [served("b", port=2, created="1"), served("a", port=3, created="2"), served("c", port=1, ready=False)]
    assert table(*pods)["web.default.svc:9000"] == "127.0.0.1:2"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [served("p", port=1, ready=False)],
        [served("p", port=1, app="other")],
    ],
)
def test_a_service_without_a_ready_pod_is_left_out(rows: list[tuple[Object, Any]]) -> None:
    assert table(*rows) == {}


def test_a_service_without_a_selector_leads_nowhere() -> None:
    assert table(served("p", port=1), of=service(selector={})) == {}
