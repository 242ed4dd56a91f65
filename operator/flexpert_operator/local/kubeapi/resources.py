"""Resource types: what the API serves, and the registry that finds them by URL.

`builtin_kinds` makes the built-in ones, `crds` those of CustomResourceDefinitions; every other module looks here to
know how objects of a type are named, validated, shown and scaled.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flexpert_operator.local.kubeapi.errors import NotFound
from flexpert_operator.local.kubeapi.objects import JsonObject
from flexpert_operator.local.kubeapi.store import Key, Storage

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
Convert = Callable[[JsonObject], JsonObject]


@dataclass(frozen=True)
class Column:
    """A printer column; `cell` gives its value for an object and the present time in seconds since the epoch."""

    name: str
    type: str
    cell: Callable[[JsonObject, float], Any]
    format: str = ""
    description: str = ""
    priority: int = 0


@dataclass(frozen=True)
class ScalePaths:
    """Where the Scale subresource finds its fields; `selector` is a field with a serialised label selector."""

    spec_replicas: tuple[str, ...]
    status_replicas: tuple[str, ...]
    selector: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ResourceType:
    """One version of one resource.

    Attributes:
        load_schema: makes `schema`, when it is first needed.
        definition: the model behind a built-in kind's schema, None for a custom one.
        has_generation: whether `metadata.generation` counts changes of the spec.
        fields: what a field selector may name besides `metadata.name` and `metadata.namespace`.
        name_rule: `subdomain`, `label`, `label1035` or `path`.
        defaults: fills in what a schema's defaults cannot say, in place.
        storage_version: the API version in which objects are stored.
        to_storage: from this version to the stored form; `from_storage` is its inverse.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    singular: str = ""
    list_kind: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: frozenset[str] = frozenset()
    load_schema: Callable[[], JsonObject] = field(default=lambda: {})
    definition: str | None = None
    columns: tuple[Column, ...] = ()
    scale: ScalePaths | None = None
    is_custom: bool = False
    has_generation: bool = False
    has_rules: bool = False
    fields: frozenset[str] | None = None
    name_rule: str = "subdomain"
    defaults: Callable[[JsonObject], None] = field(default=lambda _: None)
    storage: Storage = field(default=Storage("", ""))
    to_storage: Convert | None = None
    from_storage: Convert | None = None

    @functools.cached_property
    def schema(self) -> JsonObject:
        """Structural schema of the whole object."""
        return self.load_schema()

    @property
    def api_version(self) -> str:
        """`group/version`, or only the version in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """`plural.group`, as messages name the resource."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def where(self) -> Storage:
        """Where its objects are kept."""
        return self.storage if self.storage.plural else Storage(self.group, self.plural)

    def key(self, namespace: str | None, name: str) -> Key:
        """The key of its object of that name."""
        return Key(self.where, (namespace or "") if self.namespaced else "", name)

    def stored(self, obj: JsonObject) -> JsonObject:
        """`obj` in the form in which it is stored."""
        return self.to_storage(obj) if self.to_storage else obj

    def served(self, obj: JsonObject) -> JsonObject:
        """A stored object in this version."""
        if self.from_storage:
            return self.from_storage(obj)
        return obj if obj.get("apiVersion") == self.api_version else obj | {"apiVersion": self.api_version}

    def supports_field(self, name: str) -> bool:
        """Whether a field selector may name this field."""
        return self.fields is None or name in self.fields or name in ("metadata.name", "metadata.namespace")

    def not_found(self, name: str) -> NotFound:
        """The 404 for an object of this type."""
        details = {"name": name, "kind": self.plural} | ({"group": self.group} if self.group else {})
        return NotFound(f'{self.qualified} "{name}" not found', details)


class Registry:
    """Resource types by group, version and plural."""

    def __init__(self, types: Iterable[ResourceType] = ()) -> None:
        self._types = {(item.group, item.version, item.plural): item for item in types}

    def __iter__(self) -> Iterator[ResourceType]:
        return iter(list(self._types.values()))

    def find(self, group: str, version: str, plural: str) -> ResourceType:
        """The type at this place of the URL.

        Raises:
            NotFound: there is none.
        """
        found = self._types.get((group, version, plural))
        if found is None:
            raise NotFound("the server could not find the requested resource")
        return found

    def of_storage(self, storage: Storage) -> ResourceType | None:
        """A type whose objects are kept there; the one whose version is the stored one where it can tell."""
        types = [item for item in self if item.where == storage]
        return next((item for item in types if item.from_storage is None), types[0] if types else None)

    def of_kind(self, api_version: str, kind: str) -> ResourceType | None:
        """The type of an object that says it is of this kind."""
        return next((item for item in self if (item.api_version, item.kind) == (api_version, kind)), None)

    def in_group_version(self, group: str, version: str) -> list[ResourceType]:
        """Types of one group and version, by plural."""
        found = [item for item in self if (item.group, item.version) == (group, version)]
        return sorted(found, key=lambda item: item.plural)

    def groups(self) -> dict[str, list[str]]:
        """Versions of each group, the preferred first; the core group has the empty name."""
        versions: dict[str, list[str]] = {}
        for item in self:
            known = versions.setdefault(item.group, [])
            if item.version not in known:
                known.append(item.version)
        return {group: sorted(found, key=version_priority) for group, found in sorted(versions.items())}

    def replace_storage(self, storage: Storage, types: Iterable[ResourceType]) -> None:
        """Serve exactly these types for a storage."""
        self._types = {name: item for name, item in self._types.items() if item.where != storage}
        self._types |= {(item.group, item.version, item.plural): item for item in types}


def version_priority(version: str) -> tuple[int, int, int, str]:
    """Sort key that puts v2 before v1 before v1beta2 before v1alpha1, as Kubernetes does."""
    for rank, stage in enumerate(("", "beta", "alpha")):
        major, _, minor = version.removeprefix("v").partition(stage) if stage else (version[1:], "", "0")
        if version.startswith("v") and major.isdigit() and minor.isdigit():
            return (rank, -int(major), -int(minor), version)
    return (3, 0, 0, version)
