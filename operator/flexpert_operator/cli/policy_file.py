"""`flexpert simulate --policy FILE`: a MoEAutoscalingPolicy as it stands in a file, and decisions by it as the operator
makes them: in whole pods that the experts fit into, by the calendar, at `intervalSeconds`.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from flexpert_operator.api import names
from flexpert_operator.api.autoscaling import PolicySpec, parse_policy
from flexpert_operator.api.spec import MoEDeployment, parse_deployment
from flexpert_operator.autoscale import InvalidPolicy, Observation, Policy, Sizes, State
from flexpert_operator.cli.apply import read_objects
from flexpert_operator.cli.errors import CliError
from flexpert_operator.crds import load_crds
from flexpert_operator.decide import scaling
from flexpert_operator.decide.observation import ModelFacts
from flexpert_operator.local.kubeapi.cel import CelRules
from flexpert_operator.local.kubeapi.crds import resource_types
from flexpert_operator.local.kubeapi.errors import ApiError
from flexpert_operator.local.kubeapi.strategy import decode, for_create
from flexpert_operator.simulate import Device
from flexpert_operator.simulate.scalers import Ours

Object = dict[str, Any]


@dataclass(frozen=True)
class PolicyFile:
    """A policy that is tried.

    Attributes:
        spec: As the API server would store it.
        policy: What is decided by; it acts, whatever `pause` and `dryRun` say.
        deployment: Its target.
        facts: Of the model; None where the target is not in the file, and nothing is known of it.
    """

    spec: PolicySpec
    policy: Policy
    deployment: MoEDeployment
    facts: ModelFacts | None

    def start(self, sizes: Sizes) -> Sizes:
        """Where decisions begin, if so many are needed."""
        return scaling.first_sizes(sizes, self.policy, self.deployment, self.facts)


def read_policy(filename: str, device: Device) -> PolicyFile:
    """The policy of a YAML file, `-` being standard input.

    Args:
        filename: With one MoEAutoscalingPolicy, and beside it the MoEDeployment that it targets, if members are to have
            its GPUs, its pods their workers, and the workers room for the experts of `device`.
        device: What is simulated.

    Raises:
        CliError: It cannot be read, or contradicts itself or its target.
    """
    objects = read_objects(filename)
    found = [one for one in objects if one["kind"] == names.POLICY_KIND]
    if len(found) != 1:
        raise CliError(f"{filename} has to hold one {names.POLICY_KIND}, not {len(found)}")
    spec = parse_policy(_admitted(filename, found[0])).spec
    name = spec.target_ref.name
    target = next((one for one in objects if one["kind"] == names.KIND and one["metadata"]["name"] == name), None)
    deployment = parse_deployment(_admitted(filename, _any_target(name) if target is None else target))
    facts = None if target is None else ModelFacts("", "", device.layers, device.experts, device.expert_bytes)
    try:
        policy = scaling.policy_of(replace(spec, pause=False, dry_run=False), deployment, facts)
    except InvalidPolicy as contradiction:
        raise CliError(f"{filename}: {contradiction}") from contradiction
    return PolicyFile(spec, policy, deployment, facts)


def _any_target(name: str) -> Object:
    metadata, model = {"name": name}, {"source": "file:///models/any"}
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "spec": {"model": model}}


def _admitted(filename: str, body: Object) -> Object:
    """An object with its defaults, as an API server stores it."""
    definition = next(one for one in load_crds() if one["spec"]["names"]["kind"] == body["kind"])
    (resource,) = resource_types(definition)
    namespace = body["metadata"].get("namespace", "default")
    try:
        decoded = decode(resource, body)
        stored = for_create(resource, decoded.object, namespace, "2026-01-01T00:00:00Z", CelRules())
    except ApiError as refusal:
        raise CliError(f"{filename}: {refusal}") from refusal
    if decoded.unknown:
        raise CliError(f"{filename}: {body['kind']} has no field {', '.join(decoded.unknown)}")
    stored["metadata"]["resourceVersion"] = "1"
    return stored


@dataclass
class AsOperated(Ours):
    """Decisions as the operator makes them.

    Attributes:
        file: The policy and its target.
        begin_s: When the simulation begins, seconds since the Unix epoch.
    """

    file: PolicyFile = field(kw_only=True)
    begin_s: float = field(kw_only=True)

    def decide(self, observation: Observation) -> tuple[Sizes, str]:
        """The decision."""
        state = self._state or replace(State.initial(self.profile), sizes=self.start)
        at, file = observation.at + self.begin_s, self.file
        seen = replace(observation, at=at, measured_at=at)
        decision, self._state = scaling.decide_sizes(seen, state, file.policy, file.deployment, file.facts)
        return decision.sizes, decision.reason


def moment(text: str) -> float:
    """An RFC 3339 time, of UTC where it names no zone, in seconds since the Unix epoch; raises `ValueError`."""
    found = datetime.fromisoformat(text)
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
