"""`spec.model`: the checkpoint, and how pods get at one that is elsewhere. A part of the models in `spec`."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from flexpert_operator.api.fields import Field, Rule


@dataclass(frozen=True)
class SecretKey:
    """A value in a Secret of the MoEDeployment's namespace."""

    name: Annotated[str, Field("Name of the Secret.", min_length=1, max_length=253)]
    key: Annotated[str, Field("Key of the value in it.", min_length=1, max_length=253)] = "token"


@dataclass(frozen=True)
class SecretName:
    """A Secret of the MoEDeployment's namespace."""

    name: Annotated[str, Field("Name of the Secret.", min_length=1, max_length=253)]


@dataclass(frozen=True)
class ModelCache:
    """Where a node keeps the checkpoints that it fetched."""

    RULES: ClassVar = (
        Rule("!(has(self.hostPath) && has(self.claim))", "name a hostPath or a claim, not both", ".hostPath"),
    )

    host_path: Annotated[
        str | None,
        Field(
            "Folder of each node, which its pods share and which outlives them; pods must be allowed to write it.",
            min_length=2,
            max_length=1024,
            pattern=r"^/[^:]+$",
            absent="the cache is not on the node",
        ),
    ] = None
    claim: Annotated[
        str | None,
        Field(
            "PersistentVolumeClaim that the pods share; it must allow ReadWriteMany where they are on several nodes.",
            min_length=1,
            max_length=253,
            absent="the cache is on the node if there is a hostPath, else it lives and ends with each pod",
        ),
    ] = None


@dataclass(frozen=True)
class ModelAccess:
    """How pods get at a remote checkpoint."""

    token_secret_ref: Annotated[
        SecretKey | None,
        Field(
            "Token of an hf:// source that is private or gated. The operator never reads it: the pods are given it.",
            absent="the source is public",
        ),
    ] = None
    credentials_secret_ref: Annotated[
        SecretName | None,
        Field(
            "Secret whose keys become environment variables of the pods, for s3:// and gs:// sources: "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what fsspec reads (FSSPEC_GS_TOKEN).",
            absent="the identity of the pods is used",
        ),
    ] = None
    endpoint: Annotated[
        str | None,
        Field(
            "URL of a mirror of the hub, or of the store.",
            pattern=r"^https?://[^\s]+$",
            max_length=1024,
            absent="the public one",
        ),
    ] = None
    cache: Annotated[
        ModelCache, Field("Where remote checkpoints are kept, fetched once for all pods that share it.")
    ] = field(default_factory=ModelCache)
    offline: Annotated[
        bool, Field("Whether a remote checkpoint may come from the cache alone; what it lacks is refused.")
    ] = False


@dataclass(frozen=True)
class Model:
    """The checkpoint that is served. Two are the same whatever way leads to them.

    Attributes:
        resolved: What the revision of a remote source was resolved to; empty: that is not known yet.
    """

    RULES: ClassVar = (
        Rule(
            "!has(self.revision) || self.revision == 'main' || self.source.startsWith('hf://')",
            "a revision belongs to an hf:// source; leave it out with others",
            ".revision",
        ),
        Rule(
            "!has(self.tokenSecretRef) || self.source.startsWith('hf://')",
            "a token belongs to an hf:// source; leave it out with others",
            ".tokenSecretRef",
        ),
        Rule(
            "!has(self.credentialsSecretRef) || self.source.startsWith('s3://') || self.source.startsWith('gs://')",
            "credentials belong to an s3:// or gs:// source; with hf:// use tokenSecretRef",
            ".credentialsSecretRef",
        ),
    )

    source: Annotated[
        str,
        Field(
            "Hugging Face checkpoint with safetensors files: file:///folder (on every node), pvc://claim/folder, "
            "hf://organisation/name, s3://bucket/folder or gs://bucket/folder.",
            min_length=1,
            max_length=1024,
            pattern=r"^((file:///|pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/|(s3|gs)://[a-z0-9][-a-z0-9._]*/)[^?#]+"
            r"|hf://[A-Za-z0-9][-A-Za-z0-9._]*/[A-Za-z0-9][-A-Za-z0-9._]*)$",
        ),
    ]
    revision: Annotated[str, Field("Branch, tag or commit of an hf:// source.", min_length=1, max_length=256)] = "main"
    dtype: Annotated[
        str,
        Field(
            "Type the weights are served in; Auto takes the checkpoint's own.",
            values=("Auto", "Float32", "BFloat16", "Float16"),
        ),
    ] = "Auto"
    access: Annotated[ModelAccess, Field("How pods get at it.", inline=True)] = field(
        default_factory=ModelAccess, compare=False
    )
    resolved: str = field(default="", compare=False)

    @property
    def remote(self) -> bool:
        """Whether nodes have to fetch it."""
        return not self.source.startswith(("file://", "pvc://"))
