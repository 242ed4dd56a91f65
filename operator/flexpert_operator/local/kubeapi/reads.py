"""Lists: selectors, pages and resource versions.

`server` calls `list_page` for list requests and `operations` for delete-collection. A page's continue token holds the
revision of the first page, at which all pages are read.
"""

import base64
import binascii
import json
from dataclasses import dataclass

from flexpert_operator.local.kubeapi.errors import BadRequest, Expired, Timeout
from flexpert_operator.local.kubeapi.objects import JsonObject
from flexpert_operator.local.kubeapi.resources import ResourceType
from flexpert_operator.local.kubeapi.selectors import EVERYTHING, Selector
from flexpert_operator.local.kubeapi.store import Key, Store


@dataclass(frozen=True, slots=True)
class ListOptions:
    """What to list. `limit` 0 is no limit; `resource_version` empty is the newest."""

    selector: Selector = EVERYTHING
    limit: int = 0
    continue_token: str = ""
    resource_version: str = ""
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Objects of one page, and what the list's metadata says."""

    items: tuple[JsonObject, ...]
    metadata: JsonObject


def list_page(store: Store, resource: ResourceType, options: ListOptions) -> Page:
    """One page of the selected objects, in the resource's version.

    Raises:
        BadRequest: a resourceVersion or continue token that cannot be read.
        Expired: history no longer reaches back to the revision.
        Timeout: the revision is in the future.
    """
    if options.continue_token:
        revision, start = _read_token(options.continue_token)
        rows = [row for row in _at(store, resource, revision) if (row[0].namespace, row[0].name) > start]
    else:
        revision = parse_revision(store, options.resource_version) if options.exact else store.revision
        parse_revision(store, options.resource_version)
        rows = _at(store, resource, revision)
    served = ((key, resource.served(obj)) for key, obj in rows)
    selected = [(key, obj) for key, obj in served if options.selector.matches(obj)]
    page = selected[: options.limit] if options.limit else selected
    meta: JsonObject = {"resourceVersion": str(revision)}
    if len(page) < len(selected):
        last = page[-1][0]
        meta["continue"] = _write_token(revision, last)
        if not (options.selector.labels or options.selector.fields):
            meta["remainingItemCount"] = len(selected) - len(page)
    return Page(tuple(obj for _, obj in page), meta)


def parse_revision(store: Store, text: str) -> int:
    """The number in a resourceVersion; empty and "0" are the newest.

    Raises:
        BadRequest: it is not a number.
        Timeout: it is in the future.
    """
    if text in ("", "0"):
        return store.revision
    if not text.isdigit():
        raise BadRequest(f"resourceVersion: Invalid value: {json.dumps(text)}: must be a non-negative integer")
    if int(text) > store.revision:
        cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
        details = {"causes": [cause], "retryAfterSeconds": 1}
        raise Timeout(f"Too large resource version: {text}, current: {store.revision}", details)
    return int(text)


def _at(store: Store, resource: ResourceType, revision: int) -> list[tuple[Key, JsonObject]]:
    if revision == store.revision:
        return store.items(resource.where)
    try:
        return store.items_at(resource.where, revision)
    except Expired as error:
        raise Expired(f"The provided continue parameter or resourceVersion is too old: {error.message}") from error


def _write_token(revision: int, last: Key) -> str:
    text = json.dumps({"v": "meta.k8s.io/v1", "rv": revision, "start": [last.namespace, last.name]})
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_token(token: str) -> tuple[int, tuple[str, str]]:
    try:
        data = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        namespace, name = data["start"]
        return int(data["rv"]), (namespace, name)
    except (binascii.Error, ValueError, KeyError, TypeError) as error:
        raise BadRequest(f"continue key is not valid: {error}") from error
