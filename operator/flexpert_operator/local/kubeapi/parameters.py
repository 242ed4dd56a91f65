"""Query parameters of a request as typed options.

`server` reads every query with it.
"""

from collections.abc import Mapping
from typing import get_args

from flexpert_operator.local.kubeapi import selectors
from flexpert_operator.local.kubeapi.errors import BadRequest, invalid_object, unsupported
from flexpert_operator.local.kubeapi.operations import WriteOptions
from flexpert_operator.local.kubeapi.reads import ListOptions
from flexpert_operator.local.kubeapi.resources import ResourceType
from flexpert_operator.local.kubeapi.strategy import FieldValidation
from flexpert_operator.local.kubeapi.watch import WatchOptions

_DEFAULT_WATCH_S = 1800.0


def is_true(text: str | None) -> bool:
    """Whether a boolean parameter is set."""
    return text in ("1", "true", "True", "t", "T", "TRUE", "")


def selector(query: Mapping[str, str], resource: ResourceType, namespace: str | None) -> selectors.Selector:
    """What a list, watch or delete-collection is restricted to."""
    return selectors.Selector(
        selectors.parse_labels(query.get("labelSelector", "")),
        selectors.parse_fields(query.get("fieldSelector", ""), resource.supports_field),
        namespace,
    )


def list_options(query: Mapping[str, str], chosen: selectors.Selector) -> ListOptions:
    """Options of a list."""
    return ListOptions(
        selector=chosen,
        limit=_integer(query, "limit"),
        continue_token=query.get("continue", ""),
        resource_version=query.get("resourceVersion", ""),
        exact=query.get("resourceVersionMatch") == "Exact",
    )


def watch_options(query: Mapping[str, str], chosen: selectors.Selector) -> WatchOptions:
    """Options of a watch."""
    initial = query.get("sendInitialEvents")
    return WatchOptions(
        selector=chosen,
        resource_version=query.get("resourceVersion", ""),
        version_match=query.get("resourceVersionMatch", ""),
        send_initial=None if initial is None else is_true(initial),
        bookmarks=is_true(query.get("allowWatchBookmarks")),
        timeout_s=_integer(query, "timeoutSeconds") or _DEFAULT_WATCH_S,
    )


def write_options(
    query: Mapping[str, str], user_agent: str, duplicates: tuple[str, ...], *, is_apply: bool
) -> WriteOptions:
    """Options of a write; without a field manager the user agent's first word is the manager.

    Raises:
        Invalid: dryRun or fieldValidation have a value that is not known.
    """
    dry_run, validation = query.get("dryRun"), query.get("fieldValidation", "Warn")
    errors = []
    if dry_run not in (None, "All"):
        errors.append(unsupported("dryRun", dry_run, ["All"]))
    if validation not in get_args(FieldValidation):
        errors.append(unsupported("fieldValidation", validation, ["Ignore", "Strict", "Warn"]))
    if errors:
        raise invalid_object("PatchOptions", "meta.k8s.io", "", errors)
    manager = query.get("fieldManager") or ("" if is_apply else user_agent.partition("/")[0] or "unknown")
    return WriteOptions(
        manager=manager,
        dry_run=dry_run == "All",
        field_validation=validation,  # type: ignore[arg-type]
        force=is_true(query.get("force")),
        duplicates=duplicates,
    )


def _integer(query: Mapping[str, str], name: str) -> int:
    text = query.get(name) or "0"
    try:
        return int(text)
    except ValueError:
        raise BadRequest(f"{name}: Invalid value: {text!r}: must be an integer") from None
