"""`spec.security`: certificates, tokens and keys of a pool, all of them in Secrets. A part of the models in `spec`.

The operator never reads these Secrets: the kubelet mounts them into the pods that need them.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from flexpert_operator.api.fields import Field, Rule


@dataclass(frozen=True)
class Certificate:
    """What the ingress shows its clients."""

    secret_name: Annotated[
        str,
        Field(
            "Secret of type kubernetes.io/tls, which may be renewed: tls.crt, tls.key.", min_length=1, max_length=253
        ),
    ]


@dataclass(frozen=True)
class ClientCertificates:
    """What clients of the ingress have to show it."""

    secret_name: Annotated[
        str,
        Field("Secret with ca.crt, the authorities of clients' certificates.", min_length=1, max_length=253),
    ]


@dataclass(frozen=True)
class BearerTokens:
    """Tokens of which clients of the ingress have to bring one."""

    secret_name: Annotated[
        str,
        Field(
            "Secret with tokens.json, as docs/security.md says; it may be changed.",
            min_length=1,
            max_length=253,
        ),
    ]


@dataclass(frozen=True)
class PoolCredentials:
    """What members of the pool show each other and the operator."""

    secret_name: Annotated[
        str,
        Field(
            "Secret with tls.crt and tls.key for NAME-pool-control.NAMESPACE.svc, as a server and as a client, ca.crt, "
            "and pool.key, 32 random bytes or more. The certificate may be renewed.",
            min_length=1,
            max_length=253,
            rules=(Rule("self == oldSelf", "secretName cannot be changed; make another MoEDeployment"),),
        ),
    ]


@dataclass(frozen=True)
class Security:
    """Who may talk to what. Nothing is encrypted, and everybody is let in, where nothing is said."""

    RULES: ClassVar = (
        Rule(
            "!has(self.clientCertificates) || has(self.tls)",
            "clientCertificates needs tls: certificates are shown over TLS alone",
            ".clientCertificates",
        ),
        Rule(
            "has(self.pool) == has(oldSelf.pool)",
            "pool cannot be added or taken away, since old and new pods would not understand each other; make another "
            "MoEDeployment",
            ".pool",
        ),
    )

    tls: Annotated[
        Certificate | None, Field("Certificate of the ingress.", absent="the ports of the ingress are plain")
    ] = None
    client_certificates: Annotated[
        ClientCertificates | None,
        Field(
            "Certificates that clients of the ingress have to show. Probes and metrics take none.",
            absent="clients need none",
        ),
    ] = None
    tokens: Annotated[
        BearerTokens | None,
        Field("Bearer tokens, of which clients have to bring one.", absent="everybody is let in"),
    ] = None
    pool: Annotated[
        PoolCredentials | None,
        Field(
            "Certificate and key of the members of the pool. The operator needs a certificate of the same authorities.",
            absent="what travels within the pool, and between operator and pool, is plain",
        ),
    ] = None
