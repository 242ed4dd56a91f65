"""docs/api.md, made of the same models as the CustomResourceDefinitions; `generate` writes it."""

import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, is_dataclass
from enum import StrEnum
from typing import Any

from flexpert_operator.api import crd, names
from flexpert_operator.api.autoscaling import PolicySpec
from flexpert_operator.api.autoscaling_status import PolicyStatus
from flexpert_operator.api.fields import Member, Rule, members
from flexpert_operator.api.pods import PodSettings
from flexpert_operator.api.reasons import CONDITIONS, POLICY_CONDITIONS, EventReason, PolicyEventReason, meanings
from flexpert_operator.api.scaler import ScalerSpec, ScalerStatus
from flexpert_operator.api.schema import default_of, rules_of
from flexpert_operator.api.spec import Spec
from flexpert_operator.api.status import Status

INTRODUCTION = f"""# MoEDeployment

<!-- Generated from flexpert_operator.api by `make generate`: change it there. -->

`{names.API_VERSION}`, namespaced, short name `moed`, categories `all` and `flexpert`; `kubectl explain moed.spec`
says the same as this page. A name has at most {crd.MAX_NAME} characters and is a label of RFC 1035, since Services
are named after it.

`kubectl scale moed/NAME --replicas=N`, or a HorizontalPodAutoscaler, writes `spec.experts.workers`; the selector of
the scale subresource is `status.selector`.
"""

PODS_NOTE = """### Pods

`spec.head`, `spec.engines`, `spec.experts` and `spec.ingress` have these fields too, for their pods. Those of
Kubernetes' own types have Kubernetes' schema: an unknown or wrong field in them is refused with its path, like any
other.
"""

RULES_NOTE = """### Rules

Beyond types and bounds the API server refuses, by rules in CEL:
"""

EVENTS_NOTE = """## Events

A reason of Degraded is told as a Warning too. An Event that is told again is counted in the one that is there.
"""

LIMITS = """## What the API server cannot say

CEL sees one object, and how it was before. What it cannot say is found by the operator, which then leaves alone
what runs and says in a condition what to change:

- whether the checkpoint exists and can be served: it has to be opened. ModelLoaded, and Degraded with ModelNotFound
  or ModelRefused;
- whether the experts fit into the workers: their size stands in the checkpoint. Degraded with ExpertsDoNotFit;
- that `spec.model` stays once it is served: it may be corrected until then, which the spec does not show. Degraded
  with ModelChangeUnsupported;
- that requests are within limits: a rule about quantities, whose length the API server takes to be unbounded, costs
  more than it allows. Degraded with RequestsExceedLimits;
- what Kubernetes checks in pods beyond their schema: that is in the API server's code. It refuses the child:
  Degraded with ChildRefused, in its words;
- whether a Secret, claim, class or node exists: they are other objects, and may come later. Degraded with
  ProvisionFailed, with what the pods say.

So there is no admission webhook. It could refuse the fourth and part of the fifth a moment earlier, and nobody
could write a MoEDeployment while it is away; a wrong object does no harm without it. Nothing compares objects with
each other: the names of children follow from the MoEDeployment's, which is unique in its namespace.
"""


POLICY_INTRODUCTION = f"""# {names.POLICY_KIND}

`{names.API_VERSION}`, namespaced, short name `moeap`. It says what requests to a MoEDeployment of its namespace should
get; [autoscaling.md](autoscaling.md) says how decisions are made, and what each part of it does. The operator alone
changes sizes: `status.desired` of the policy takes the place of `spec.engines.replicas` and `spec.experts.workers` of
the target.
"""

POLICY_LIMITS = """### What the API server cannot say of a policy

The operator says it in AbleToScale, with the field, and leaves sizes as they are: a cron expression or time zone that
does not exist; bounds that are no multiples of the target's workersPerPod, or below what its experts need; minima that
take more than `spec.budget.devices`, since what an engine or worker takes stands in the target; a second policy for a
target.
"""

SCALER_INTRODUCTION = f"""# {names.SCALER_KIND}

`{names.API_VERSION}`, namespaced, short name `moesc`. `kubectl scale moesc/NAME --replicas=N`, or a
HorizontalPodAutoscaler, writes `spec.replicas`; see [autoscaling.md](autoscaling.md). Its condition is AbleToScale, as
above.
"""


def page() -> str:
    """The whole page."""
    parts = [
        INTRODUCTION,
        "## `spec`\n",
        field_table(Spec, "spec", with_default=True),
        PODS_NOTE,
        field_table(PodSettings, "spec.ROLE", with_default=True),
        RULES_NOTE,
        rule_list(all_rules()),
        "## `status`\n",
        field_table(Status, "status", with_default=False),
        "## Conditions\n",
        *(condition(name, about, reasons) for name, (about, reasons) in CONDITIONS.items()),
        EVENTS_NOTE,
        word_table("reason", meanings(EventReason)),
        LIMITS,
        *policy_parts(),
        *scaler_parts(),
    ]
    return "\n".join(parts)


def policy_parts() -> Iterator[str]:
    """What there is to say of MoEAutoscalingPolicy."""
    yield POLICY_INTRODUCTION
    yield "## `spec` of a policy\n"
    yield field_table(PolicySpec, "spec", with_default=True)
    yield RULES_NOTE
    yield rule_list(rules_below(PolicySpec, "spec"))
    yield POLICY_LIMITS
    yield "## `status` of a policy\n"
    yield field_table(PolicyStatus, "status", with_default=False)
    yield "## Conditions of a policy\n"
    yield from (condition(name, about, reasons) for name, (about, reasons) in POLICY_CONDITIONS.items())
    yield "## Events about a policy\n"
    yield word_table("reason", meanings(PolicyEventReason))


def scaler_parts() -> Iterator[str]:
    """What there is to say of MoEScaler."""
    yield SCALER_INTRODUCTION
    yield "## `spec` of a scaler\n"
    yield field_table(ScalerSpec, "spec", with_default=True)
    yield "## `status` of a scaler\n"
    yield field_table(ScalerStatus, "status", with_default=False)


def rule_list(rules: Iterable[tuple[str, Rule]]) -> str:
    """Rules with the fields that they blame."""
    return lines(f"- `{path}`: {rule.message}." for path, rule in rules)


def field_table(model: type, path: str, with_default: bool) -> str:
    """The fields of a model and of all below it."""
    header = (
        "| field | type | default | meaning |\n|---|---|---|---|\n"
        if with_default
        else "| field | type | meaning |\n|---|---|---|\n"
    )
    return header + "".join(f"{row(member, where, with_default)}\n" for where, member in walk(model, path))


def walk(model: type, path: str) -> Iterator[tuple[str, Member]]:
    """Every field with its path, those of inner models behind them; those of pods stand apart."""
    for member in members(typing.cast(Any, model)):
        if member.field.inline:
            continue
        below = f"{path}.{member.name}"
        yield below, member
        inner = item_type(member.type)
        if is_dataclass(inner):
            yield from walk(typing.cast(type, inner), below + ("[]" if inner is not member.type else ""))


def item_type(kind: Any) -> Any:
    """The type of a list's items, or the type itself."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind


def row(member: Member, path: str, with_default: bool) -> str:
    """One line of the table."""
    cells = [f"`{path}`", type_name(member)]
    if with_default:
        cells.append(default_text(member))
    return "| " + " | ".join([*cells, member.field.description.replace("|", "\\|")]) + " |"


def default_text(member: Member) -> str:
    """The default, what leaving the field out means, or that it may not be left out."""
    if member.default is MISSING:
        return "required"
    default = default_of(member)
    if default is None:
        return member.field.absent
    return "" if default == {} else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def type_name(member: Member) -> str:
    """The type with its bounds, for people."""
    kind, field = member.type, member.field
    if field.quantity:
        return "bytes"
    if field.core:
        name = field.core.removeprefix("V1")
        return f"list of {name}" if typing.get_origin(kind) is tuple else name
    if typing.get_origin(kind) is tuple:
        return "list"
    if typing.get_origin(kind) is not None:
        return "texts by name" if typing.get_args(kind)[1] is str else "quantities by name"
    if is_dataclass(kind):
        return "object"
    return scalar_name(member)


def scalar_name(member: Member) -> str:
    """A text, number or truth value."""
    kind, field = member.type, member.field
    choices = [str(one) for one in kind] if issubclass(kind, StrEnum) else list(field.values)
    if choices:
        return ", ".join(choices)
    if kind is bool:
        return "true, false"
    if kind in (int, float):
        bounds = (field.minimum, field.maximum)
        return "integer" + ("" if bounds == (None, None) else f" {bounds[0]} to {bounds[1] or 'any'}")
    return "text" if kind is str else "time"


def all_rules() -> Iterator[tuple[str, Rule]]:
    """Every CEL rule of the spec with the path that it blames."""
    for rule in crd.NAME_RULES:
        yield "metadata.name", rule
    yield from rules_below(Spec, "spec")
    yield from rules_below(PodSettings, "spec.ROLE")


def rules_below(model: type, path: str) -> Iterator[tuple[str, Rule]]:
    """The rules of a model and of its fields."""
    yield from ((path + rule.path, rule) for rule in rules_of(model))
    for member in members(typing.cast(Any, model)):
        if member.field.inline:
            continue
        below = f"{path}.{member.name}"
        yield from ((below + rule.path, rule) for rule in member.field.rules)
        if is_dataclass(member.type):
            yield from rules_below(typing.cast(type, member.type), below)


def condition(name: str, about: str, reasons: Mapping[str, str]) -> str:
    """A condition and its reasons."""
    return f"### {name}\n\n{about}\n\n{word_table('reason', reasons)}"


def word_table(title: str, words: Mapping[str, str]) -> str:
    """Words and what they mean."""
    return f"| {title} | meaning |\n|---|---|\n" + lines(f"| `{word}` | {text} |" for word, text in words.items())


def lines(texts: Iterable[str]) -> str:
    """Texts, each on its line."""
    return "".join(f"{text}\n" for text in texts)
