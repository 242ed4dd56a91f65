"""The demo's hold on the laptop cluster: what a user would do with `flexpert local`, `kubectl` and a gRPC client."""

import asyncio
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio
import yaml
from kubernetes import client, config

from flexpert_proto import pool_pb2 as pb
from flexpert_proto import pool_pb2_grpc

GROUP, VERSION, PLURAL = "flexpert.io", "v1alpha1", "moedeployments"
CALL_TIMEOUT_S = 10.0
POLL_S = 0.5


class DemoError(Exception):
    """The demo cannot go on; the message says where to look."""


class Laptop:
    """One MoEDeployment on the laptop cluster under `state`."""

    def __init__(self, root: Path, name: str, namespace: str = "default") -> None:
        self.root = root
        self.state = root / ".flexpert"
        self.name = name
        self.namespace = namespace
        self._kubectl = shutil.which("kubectl")
        self._channel: grpc.aio.Channel | None = None
        self._client: client.CustomObjectsApi | None = None

    async def flexpert(self, *arguments: str) -> str:
        """Run the `flexpert` command and return what it printed."""
        return await self._run(sys.executable, "-m", "flexpert_operator.cli.main", *arguments)

    async def up(self) -> None:
        """Start the laptop cluster."""
        await self.flexpert("local", "up")

    async def down(self) -> None:
        """Stop it and all that it runs."""
        if self._channel is not None:
            await self._channel.close()
        await self.flexpert("local", "down")

    async def apply(self, manifest: Path) -> None:
        """`kubectl apply`, or the same through the Python client where there is no kubectl."""
        if self._kubectl:
            await self._run(self._kubectl, "--kubeconfig", str(self._kubeconfig), "apply", "-f", str(manifest))
            return
        await asyncio.to_thread(self._create, manifest)

    def _create(self, manifest: Path) -> None:
        for body in yaml.safe_load_all(manifest.read_text()):
            self._objects().create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, body)

    async def scale(self, workers: int) -> None:
        """`kubectl scale moed/NAME --replicas=N`, or the same through the scale subresource."""
        if self._kubectl:
            await self._run(
                self._kubectl,
                "--kubeconfig",
                str(self._kubeconfig),
                "scale",
                f"moed/{self.name}",
                f"--replicas={workers}",
            )
            return
        await asyncio.to_thread(self._patch_scale, workers)

    def _patch_scale(self, workers: int) -> None:
        self._objects().patch_namespaced_custom_object_scale(
            GROUP, VERSION, self.namespace, PLURAL, self.name, {"spec": {"replicas": workers}}
        )

    async def status(self) -> dict[str, Any]:
        """The MoEDeployment's status."""
        found = await asyncio.to_thread(
            self._objects().get_namespaced_custom_object, GROUP, VERSION, self.namespace, PLURAL, self.name
        )
        status: dict[str, Any] = found.get("status") or {}
        return status

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait for the condition Ready."""
        end = time.monotonic() + timeout_s
        conditions: list[dict[str, Any]] = []
        while time.monotonic() < end:
            conditions = (await self.status()).get("conditions") or []
            if is_true(conditions, "Ready"):
                return
            await asyncio.sleep(POLL_S)
        raise DemoError(f"not Ready within {timeout_s:.0f} s: {conditions}; logs are in {self.state / 'logs'}")

    async def holds(self, condition: str) -> bool:
        """Whether a condition of the MoEDeployment is True."""
        return is_true((await self.status()).get("conditions") or [], condition)

    async def pool(self) -> pb.Pool:
        """The pool as its controller sees it."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._service("pool-control", 7000))
        request = pb.GetPoolRequest(with_placement=True, with_loads=True)
        pool: pb.Pool = await pool_pb2_grpc.PoolControlStub(self._channel).GetPool(request, timeout=CALL_TIMEOUT_S)
        return pool

    def ingress(self) -> str:
        """Where clients find the ingress."""
        return self._service("ingress", 9000)

    def _service(self, suffix: str, port: int) -> str:
        from flexpert_proto.names import ENV_SERVICES, resolve

        os.environ[ENV_SERVICES] = str(self.state / "services.json")
        address = f"{self.name}-{suffix}.{self.namespace}.svc:{port}"
        found = resolve(address)
        if found == address:
            raise DemoError(f"Service {address} has no ready pod")
        return found

    @property
    def _kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    def _objects(self) -> client.CustomObjectsApi:
        if self._client is None:
            self._client = client.CustomObjectsApi(config.new_client_from_config(str(self._kubeconfig)))
        return self._client

    async def _run(self, *command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=self.root, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise DemoError(f"{' '.join(command)} failed:\n{output.decode()}")
        return output.decode()


def is_true(conditions: list[dict[str, Any]], kind: str) -> bool:
    """Whether the condition of this type is True."""
    return any(condition["type"] == kind and condition["status"] == "True" for condition in conditions)
