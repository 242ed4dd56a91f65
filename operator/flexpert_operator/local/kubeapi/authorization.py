"""Who may do what: users, what a request asks for, and role-based access control over the roles that are stored.

`server` asks before every request for a resource. The laptop's one token belongs to an administrator; tests let the
operator be the service account of its chart, and nothing else.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from flexpert_operator.local.kubeapi.errors import Forbidden
from flexpert_operator.local.kubeapi.objects import JsonObject
from flexpert_operator.local.kubeapi.store import Key, Storage, Store

_GROUP = "rbac.authorization.k8s.io"
_MASTERS = "system:masters"
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "GET": "get"}


@dataclass(frozen=True, slots=True)
class User:
    """Who a token belongs to."""

    name: str
    groups: tuple[str, ...] = ()


ADMINISTRATOR = User("flexpert-local", (_MASTERS, "system:authenticated"))


def service_account(namespace: str, name: str) -> User:
    """The user that pods with this ServiceAccount are."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    return User(f"system:serviceaccount:{namespace}:{name}", groups)


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a request asks for. `namespace` and `name` are empty where it is not about one."""

    user: User
    verb: str
    group: str
    plural: str
    subresource: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def resource(self) -> str:
        """The resource as rules name it, e.g. `pods/status`."""
        return f"{self.plural}/{self.subresource}" if self.subresource else self.plural


Audit = Callable[[Attributes], None]
"""Told of every request for a resource, before it is decided on."""


def verb_of(method: str, *, named: bool, watch: bool) -> str:
    """The verb of an HTTP method on one object (`named`) or on a collection."""
    if named:
        return _VERBS.get(method, method.lower())
    collection = {"GET": "watch" if watch else "list", "DELETE": "deletecollection"}
    return collection.get(method, _VERBS.get(method, method.lower()))


class Authorizer:
    """Decides by the Roles, ClusterRoles and their bindings in a store; administrators may do everything."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def check(self, asked: Attributes) -> None:
        """Let a request pass.

        Raises:
            Forbidden: No rule allows it.
        """
        if _MASTERS in asked.user.groups or any(allows(rule, asked) for rule in self._rules(asked)):
            return
        where = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
        qualified = f"{asked.plural}.{asked.group}" if asked.group else asked.plural
        subject = f'{qualified} "{asked.name}"' if asked.name else qualified
        raise Forbidden(
            f'{subject} is forbidden: User "{asked.user.name}" cannot {asked.verb} resource "{asked.resource}" '
            f'in API group "{asked.group}" {where}',
            {"name": asked.name, "group": asked.group, "kind": asked.plural},
        )

    def _rules(self, asked: Attributes) -> Iterator[JsonObject]:
        """The rules of every role that is bound to the user where the request is made."""
        for _, binding in self._store.items(Storage(_GROUP, "clusterrolebindings")):
            if is_bound(binding, asked.user):
                yield from self._role(binding, "")
        for key, binding in self._store.items(Storage(_GROUP, "rolebindings")):
            if asked.namespace and key.namespace == asked.namespace and is_bound(binding, asked.user):
                yield from self._role(binding, key.namespace)

    def _role(self, binding: JsonObject, namespace: str) -> Iterable[JsonObject]:
        reference = binding["roleRef"]
        own = reference["kind"] == "Role"
        storage = Storage(_GROUP, "roles" if own else "clusterroles")
        role = self._store.get(Key(storage, namespace if own else "", reference["name"]))
        return (role or {}).get("rules") or ()


def is_bound(binding: JsonObject, user: User) -> bool:
    """Whether one of a binding's subjects is the user."""
    return any(_is_subject(subject, user) for subject in binding.get("subjects") or ())


def _is_subject(subject: JsonObject, user: User) -> bool:
    if subject["kind"] == "ServiceAccount":
        return user.name == f"system:serviceaccount:{subject.get('namespace', '')}:{subject['name']}"
    return subject["name"] in (user.groups if subject["kind"] == "Group" else (user.name,))


def allows(rule: JsonObject, asked: Attributes) -> bool:
    """Whether a rule allows a request: verb, group, resource, and name where the rule names some."""
    names = rule.get("resourceNames") or ()
    resources = ("*", asked.resource, *([f"*/{asked.subresource}"] if asked.subresource else []))
    return (
        _has(rule.get("verbs"), ("*", asked.verb))
        and _has(rule.get("apiGroups"), ("*", asked.group))
        and _has(rule.get("resources"), resources)
        and (not names or asked.name in names)
    )


def _has(listed: Iterable[str] | None, accepted: Iterable[str]) -> bool:
    return not set(listed or ()).isdisjoint(accepted)


def newly_blocked_owners(body: Any, live: JsonObject | None) -> list[JsonObject]:
    """Owners whose deletion waits for an object once `body` is written over `live`, and did not before.

    Kubernetes' admission plugin OwnerReferencesPermissionEnforcement, where it is on, asks for a permission on them.
    """
    before = {owner.get("uid") for owner in _blocked_owners(live)}
    return [owner for owner in _blocked_owners(body) if owner.get("uid") not in before]


def _blocked_owners(obj: Any) -> list[JsonObject]:
    metadata = obj.get("metadata") if isinstance(obj, dict) else None
    references = metadata.get("ownerReferences") if isinstance(metadata, dict) else None
    if not isinstance(references, list):
        return []
    return [one for one in references if isinstance(one, dict) and one.get("blockOwnerDeletion")]
