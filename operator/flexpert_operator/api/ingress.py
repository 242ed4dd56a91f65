"""`spec.ingress` and `spec.serving`: the pods that hold clients' streams, and their ports. Parts of `spec`."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from flexpert_operator.api.fields import Field, Rule
from flexpert_operator.api.pods import DisruptionBudget, PodSettings, Resources


@dataclass(frozen=True)
class Ingress:
    """The ingress, which holds clients' streams."""

    replicas: Annotated[
        int | None,
        Field("Number of ingress pods.", minimum=1, maximum=256, absent="as many as the operator was started with, 2"),
    ] = None
    wait_s: Annotated[
        int | None,
        Field(
            "How long a request waits for an engine before it is refused. Where pools go to 0 when idle, longer than a "
            "pool takes to start.",
            name="waitSeconds",
            minimum=1,
            maximum=3600,
            absent="60 seconds",
        ),
    ] = None
    max_waiting: Annotated[
        int | None,
        Field(
            "New requests that wait for an engine in one ingress pod; one more is refused.",
            minimum=1,
            maximum=1000000,
            absent="1024",
        ),
    ] = None
    resources: Annotated[Resources, Field("Resources of the container, as Kubernetes writes them.")] = field(
        default_factory=Resources
    )
    disruption_budget: Annotated[DisruptionBudget, Field("How many pods may be evicted at a time.")] = field(
        default_factory=DisruptionBudget
    )
    pod: Annotated[PodSettings, Field("Of its pods.", inline=True)] = field(default_factory=PodSettings)


@dataclass(frozen=True)
class Serving:
    """Ports of the ingress."""

    RULES: ClassVar = (
        Rule(
            "!has(self.grpcPort) || !has(self.httpPort) || self.grpcPort != self.httpPort",
            "grpcPort and httpPort must differ",
            ".httpPort",
        ),
    )

    grpc_port: Annotated[int, Field("Port of the gRPC Service.", minimum=1, maximum=65535)] = 9000
    http_port: Annotated[int, Field("Port of the HTTP Service.", minimum=1, maximum=65535)] = 8000
