"""KubeRay, a scheduler and a pool controller on paper: a test of decisions runs a whole rollout in milliseconds.

One `step` is one reconciliation and what follows from it. Nothing is asynchronous, so every state is one that a test
can look at.
"""

from dataclasses import dataclass, field, replace

from flexpert_operator.api import Model, MoEDeployment
from flexpert_operator.decide.drains import decide_drains
from flexpert_operator.decide.observation import (
    Cause,
    Cluster,
    Engine,
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
from flexpert_operator.decide.placing import placement_cause, target_workers
from flexpert_operator.decide.rollout import Rules
from flexpert_operator.decide.sizing import GroupSize, Size, decide_size
from flexpert_operator.decide.sizing_state import Sizing
from flexpert_placement.types import ExpertId

FACTS = ModelFacts("MixtralForCausalLM", "digest", layers=2, experts=4, expert_bytes=1000)
STEP_S = 1.0


@dataclass
class PaperCluster:
    """A RayCluster with its pods and its pool.

    Attributes:
        rules: Templates of now.
        broken: Revisions whose pods do not come up.
        room: Expert pods that find a node.
        lingers: Steps for which a deleted pod is still there.
        random_deletions: Pods that went without being named.
        killed_holders: Pods that went with experts on them.
        causes: Of the reconfigurations, in order.
    """

    deployment: MoEDeployment
    rules: Rules = field(default_factory=lambda: Rules("e1", "x1", headroom_wait_s=5, provision_deadline_s=50))
    broken: set[str] = field(default_factory=set)
    room: int = 100
    lingers: int = 0
    now: float = 1000.0
    experts: list[Pod] = field(default_factory=list)
    engines: list[Pod] = field(default_factory=list)
    sizes: dict[str, GroupSize] = field(default_factory=dict)
    sizing: Sizing = field(default_factory=Sizing)
    workers: dict[str, Worker] = field(default_factory=dict)
    placed: set[str] = field(default_factory=set)
    epoch: int = 0
    wanted: int = 0
    random_deletions: list[str] = field(default_factory=list)
    killed_holders: list[str] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    most_pods: int = 0
    most_held: int = 0
    gone_at: dict[str, float] = field(default_factory=dict)
    fewest_holders: int = 10**6
    fewest_engines: int = 10**6
    size: Size | None = None
    made: int = 0

    def pool(self) -> Pool:
        """As the controller tells it."""
        holders = sorted(self.placed)
        placement = {
            ExpertId(layer, index): {holders[(layer * FACTS.experts + index) % len(holders)]: 1.0}
            for layer in range(FACTS.layers)
            for index in range(FACTS.experts)
            if holders
        }
        ready = [pod for pod in self.engines if pod.ready][: self.deployment.engines.replicas]
        return Pool(
            incarnation="one",
            term=1,
            epoch=Epoch(1, self.epoch),
            workers=tuple(self.described(worker) for worker in self.workers.values()),
            engines=tuple(Engine(f"engine-{pod.name}", pod.name, MemberState.READY) for pod in ready),
            placement=placement,
            model=FACTS,
            generation=1,
            wanted_workers=self.wanted,
        )

    def described(self, worker: Worker) -> Worker:
        held = FACTS.num_experts // len(self.placed) if worker.id in self.placed else 0
        return replace(worker, num_experts=held, resident_bytes=held * FACTS.expert_bytes)

    def observe(self) -> Observation:
        """What a reconciliation sees."""
        cluster = None
        if self.sizes:
            cluster = Cluster(
                resource_version="1",
                engines=self.group("engines", self.engines),
                experts=self.group("experts", self.experts),
                sizing=self.sizing,
                served_model=Model("file:///models/tiny"),
            )
        return Observation(
            now=self.now, cluster=cluster, pool=self.pool(), inspection=Inspection(facts=FACTS), ingress_ready=1
        )

    def group(self, role: str, pods: list[Pod]) -> Group:
        size = self.sizes[role]
        return Group(size.replicas, size.workers_to_delete, tuple(pods))

    def step(self) -> None:
        """One reconciliation."""
        observed = self.observe()
        size = self.size = decide_size(self.deployment, observed, 50, 300, self.rules)
        self.sizes, self.sizing = {"engines": size.engines, "experts": size.experts}, size.sizing
        self.wanted = size.pods * self.deployment.experts.workers_per_pod
        assert observed.pool is not None
        present = observed.cluster.experts.present if observed.cluster else ()
        drains = decide_drains(observed.pool, (*size.sizing.victims, *size.experts.workers_to_delete), present)
        for worker in drains.drain:
            self.workers[worker] = replace(self.workers[worker], state=MemberState.DRAINING)
        for worker in drains.undo:
            self.workers[worker] = replace(self.workers[worker], state=MemberState.STANDBY)
        self.place(observed, size)
        self.play_kuberay()
        self.now += STEP_S

    def place(self, observed: Observation, size: Size) -> None:
        """As the placer: where there is a cause, all experts go to the workers that are to stay."""
        pool, victims = observed.pool, size.sizing.victims
        assert pool is not None
        settled = observed.cluster.sizing.settled if observed.cluster else 0
        cause = placement_cause(
            self.deployment, observed, size.pods, settled, victims, size.rolled, size.sizing.rolling
        )
        targets = {worker.id for worker in target_workers(pool, victims, self.wanted)}
        if cause is not None and targets:
            self.placed, self.epoch = targets, self.epoch + 1
            self.causes.append(cause)
            self.fewest_holders = min(self.fewest_holders, len(targets))

    def play_kuberay(self) -> None:
        """Pods come and go, and the controller casts their workers."""
        self.experts = self.sized(self.experts, "experts", self.rules.experts)
        self.engines = self.sized(self.engines, "engines", self.rules.engines)
        running = [pod for pod in self.experts if pod.ready and not pod.terminating]
        names = {pod.name for pod in running}
        for worker in list(self.workers.values()):
            if worker.pod not in names:
                del self.workers[worker.id]
                if worker.id in self.placed:
                    self.killed_holders.append(worker.pod)
                    self.placed.discard(worker.id)
        known = {worker.pod for worker in self.workers.values()}
        for pod in running:
            if pod.name not in known:
                self.workers[f"w-{pod.name}"] = Worker(f"w-{pod.name}", pod.name, MemberState.STANDBY, 10_000)
        able = [one for one in self.workers.values() if one.state in (MemberState.READY, MemberState.STANDBY)]
        able.sort(key=lambda one: (one.id not in self.placed, one.state is MemberState.STANDBY, one.id))
        for number, one in enumerate(able):
            serves = one.id in self.placed or number < self.wanted
            self.workers[one.id] = replace(one, state=MemberState.READY if serves else MemberState.STANDBY)
        if self.size is not None and self.sizing.settled:
            self.most_pods = max(self.most_pods, len(self.experts))
            self.most_held = max(self.most_held, len(self.experts) + len(self.engines))
            self.fewest_engines = min(self.fewest_engines, sum(pod.ready for pod in self.engines))

    def sized(self, pods: list[Pod], role: str, revision: str) -> list[Pod]:
        size = self.sizes[role]
        going = self.going(pods, size.workers_to_delete)
        staying = [pod for pod in pods if not pod.terminating and pod.name not in size.workers_to_delete]
        self.random_deletions += [pod.name for pod in staying[: max(len(staying) - size.replicas, 0)]]
        staying = staying[max(len(staying) - size.replicas, 0) :]
        while len(staying) < size.replicas:
            self.made += 1
            staying.append(Pod(f"{role}-{self.made:03}", created_at=self.now, revision=revision))
        taken = sum(not pod.unschedulable for pod in staying if pod.ready or pod.failing)
        for number, pod in enumerate(staying):
            if pod.ready or pod.failing:
                continue
            fits = role == "engines" or taken < self.room
            taken += fits
            staying[number] = self.started(pod) if fits else replace(pod, unschedulable=True, message="no node")
        return [*going, *staying]

    def going(self, pods: list[Pod], named: tuple[str, ...]) -> list[Pod]:
        """Deleted pods that are still there."""
        for pod in pods:
            if pod.name in named:
                self.gone_at.setdefault(pod.name, self.now + self.lingers * STEP_S)
        deleted = [pod for pod in pods if self.gone_at.get(pod.name, 0.0) > self.now]
        return [replace(pod, terminating=True, ready=False) for pod in deleted]

    def started(self, pod: Pod) -> Pod:
        if pod.revision in self.broken:
            return replace(pod, unschedulable=False, failing=True, message="ImagePullBackOff: no such image")
        return replace(pod, unschedulable=False, ready=True, message="")

    def run(self, steps: int = 60) -> None:
        """Many steps."""
        for _ in range(steps):
            self.step()

    def revisions(self, role: str = "experts") -> list[str]:
        """Of the pods, in order."""
        return sorted(pod.revision for pod in getattr(self, role))
