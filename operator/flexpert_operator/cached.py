"""Kubernetes as a reconciliation sees it: reads come from what the watches have shown, writes go to the API server.

`handlers` makes one for the process; `reconciler`, `observe` and `children` use it as they would use a `Kube`. A
resource that nobody watches is read from the API server.
"""

from collections.abc import Mapping
from typing import Any

from kubernetes import client

from flexpert_operator.api import names
from flexpert_operator.decide.ownership import check_ours
from flexpert_operator.errors import KubeConflict, KubeNotFound
from flexpert_operator.fence import Fence
from flexpert_operator.kube import MOE_DEPLOYMENTS, Kube, Object, Resource
from flexpert_operator.object_store import ObjectStore, own_name


class CachedKube(Kube):
    """Reads what was seen last, and what was written since.

    Attributes:
        live: Asks the API server instead.
        stores: What was seen, by resource.
    """

    def __init__(
        self,
        api: client.ApiClient,
        watched: Mapping[Resource, ObjectStore],
        fence: Fence | None = None,
    ) -> None:
        super().__init__(api, fence)
        self.live = Kube(api, fence)
        self.stores = {MOE_DEPLOYMENTS: ObjectStore(owner=own_name), **watched}

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """An object; raises `KubeNotFound`."""
        store = self.stores.get(resource)
        if store is None:
            return super().get(resource, namespace, name)
        found = store.get(namespace, name)
        if found is None:
            raise KubeNotFound(f"{resource.plural} {namespace}/{name} was not seen")
        return found

    def list(self, resource: Resource, namespace: str, selector: str) -> list[Object]:
        """The objects that carry the labels of `selector` (of the form a=b,c=d)."""
        store = self.stores.get(resource)
        labels = dict(part.split("=", 1) for part in selector.split(",") if part)
        if store is None or names.DEPLOYMENT_LABEL not in labels:
            return super().list(resource, namespace, selector)
        return store.select(namespace, labels)

    def owned(self, resource: Resource, namespace: str, owner: str) -> tuple[Object, ...]:
        """What was seen last of a watched resource that belongs to a MoEDeployment."""
        store = self.stores.get(resource)
        return tuple(store.owned(namespace, owner)) if store is not None else ()

    def create(self, resource: Resource, namespace: str, body: Mapping[str, Any]) -> Object:
        """Make a child, or any other object.

        Raises:
            KubeConflict: It exists, was out of sight, and is ours: it has now been seen.
            ChildTaken: Something that is not ours has its name; nothing is remembered of that.
        """
        try:
            made = super().create(resource, namespace, body)
        except KubeConflict:
            if resource in self.stores:
                self._see(resource, namespace, body)
            raise
        return self._written(resource, made)

    def replace(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> Object:
        """Write a whole object; raises `KubeConflict` when its resourceVersion is not the newest."""
        return self._written(resource, super().replace(resource, namespace, name, body))

    def patch(
        self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any], subresource: str = ""
    ) -> Object:
        """Merge `body` into an object; with a resourceVersion in it, `KubeConflict` when that is old."""
        patched = super().patch(resource, namespace, name, body, subresource)
        return self._written(resource, patched) if subresource in ("", "status") else patched

    def look(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """An object as the API server has it now, which is then what was seen last; None where it is gone."""
        found, store = self.live.find(resource, namespace, name), self.stores.get(resource)
        if store is not None and found is not None:
            store.put(found)
        return found

    def _see(self, resource: Resource, namespace: str, wanted: Mapping[str, Any]) -> None:
        found = self.live.find(resource, namespace, str(wanted["metadata"]["name"]))
        if found is not None:
            check_ours(resource.plural, found, wanted)
            self.stores[resource].put(found)

    def forget(self, resource: Resource, body: Mapping[str, Any]) -> None:
        """An object is found to be gone."""
        self.stores[resource].drop(body)

    def _written(self, resource: Resource, body: Object) -> Object:
        store = self.stores.get(resource)
        if store is not None:
            store.put_written(body)
        return body
