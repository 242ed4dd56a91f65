"""Factories of the values that decisions are made of: each test names only what it is about."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flexpert_operator.api import Engines, Experts, Model, MoEDeployment, PlacementSpec, Serving
from flexpert_operator.decide.loads import SmoothedLoads
from flexpert_operator.decide.observation import (
    Cluster,
    Epoch,
    Group,
    Inspection,
    MemberState,
    ModelFacts,
    Observation,
    Pod,
    Pool,
    Worker,
)
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_placement.types import ExpertId

if TYPE_CHECKING:
    from simulated_world import World

FACTS = ModelFacts("MixtralForCausalLM", "digest", layers=2, experts=4, expert_bytes=1000)


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[World]":
    """The operator for real with all that it needs, for a module's tests; behind a proxy where the module is FAULTY."""
    from simulated_world import run_world

    with run_world(tmp_path_factory.mktemp("world"), getattr(request.module, "FAULTY", False)) as world:
        yield world


@pytest.fixture
def clean(world: "World") -> Iterator[None]:
    """A test leaves nothing to the next, and no pod went that nobody named: for `pytest.mark.usefixtures`."""
    yield
    world.clean()
    assert world.cluster.random_deletions == []


@pytest.fixture
def facts() -> ModelFacts:
    """Two layers of four experts of 1000 bytes."""
    return FACTS


@pytest.fixture
def deployment() -> MoEDeployment:
    """Two workers of 10,000 bytes each."""
    return MoEDeployment(
        name="tiny",
        namespace="default",
        uid="uid-1",
        generation=1,
        resource_version="7",
        model=Model("file:///models/tiny"),
        engines=Engines(),
        experts=Experts(workers=2, memory_per_worker_bytes=10_000),
        placement=PlacementSpec(),
        serving=Serving(),
    )


@pytest.fixture
def known() -> Callable[..., SmoothedLoads]:
    """Loads after steady traffic; see `steady_loads`."""
    from load_samples import steady_loads

    return steady_loads


@pytest.fixture
def with_workers(deployment: MoEDeployment) -> Callable[..., MoEDeployment]:
    """The deployment with another number of workers."""

    def make(workers: int, **changes: Any) -> MoEDeployment:
        return replace(deployment, experts=replace(deployment.experts, workers=workers), **changes)

    return make


@pytest.fixture
def worker() -> Callable[..., Worker]:
    """A worker `w-POD` on a pod."""

    def make(pod: str, state: MemberState = MemberState.READY, experts: int = 4) -> Worker:
        return Worker(f"w-{pod}", pod, state, 10_000, resident_bytes=1000 * experts, num_experts=experts)

    return make


@pytest.fixture
def pool(worker: Callable[..., Worker]) -> Callable[..., Pool]:
    """A configured pool with a worker on every pod; the experts of layer l, index i are on pod (l + i) mod pods."""

    def make(pods: Iterable[str] = ("a", "b"), **changes: Any) -> Pool:
        names = list(pods)
        placement = {
            ExpertId(layer, index): {f"w-{names[(layer + index) % len(names)]}": 1.0}
            for layer in range(FACTS.layers)
            for index in range(FACTS.experts)
            if names
        }
        whole = Pool(
            incarnation="one",
            term=1,
            epoch=Epoch(1, 1),
            workers=tuple(worker(pod, experts=8 // len(names)) for pod in names),
            placement=placement,
            model=FACTS,
            generation=1,
        )
        return replace(whole, **changes)

    return make


@pytest.fixture
def observed() -> Callable[..., Observation]:
    """An observation with a RayCluster of `replicas` expert pods, of which `pods` are there."""

    def make(
        pool: Pool | None,
        pods: Iterable[str] = ("a", "b"),
        replicas: int | None = None,
        sizing: Sizing | None = None,
        to_delete: tuple[str, ...] = (),
        now: float = 1000.0,
        **changes: Any,
    ) -> Observation:
        present = tuple(Pod(name) for name in pods)
        count = len(present) if replicas is None else replicas
        cluster = Cluster(
            resource_version="1",
            engines=Group(1, pods=(Pod("engine"),)),
            experts=Group(count, to_delete, present),
            sizing=sizing or Sizing(settled=count, aim=count),
            served_model=Model("file:///models/tiny"),
        )
        base = Observation(now=now, cluster=cluster, pool=pool, inspection=Inspection(facts=FACTS), ingress_ready=1)
        return replace(base, **changes)

    return make


@pytest.fixture(scope="session")
def kuberay_schema() -> dict[str, Any]:
    """OpenAPI schema of RayCluster v1 as KubeRay publishes it; the file names its source and licence."""
    schema: dict[str, Any] = json.loads(Path(__file__).with_name("kuberay_raycluster.json").read_text())
    return schema["openAPIV3Schema"]  # type: ignore[no-any-return]
