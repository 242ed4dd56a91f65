"""Does a live object say what it should? And what patch makes a status say what it should? Pure; `reconciler` asks."""

from collections.abc import Mapping
from typing import Any


def covers(live: Any, wanted: Any) -> bool:
    """Whether `live` has all that `wanted` has: what the API server added by default does not count.

    Lists have to be equal in length and cover each other item by item.
    """
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(key in live and covers(live[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(covers(item, other) for item, other in zip(live, wanted, strict=True))
        )
    return bool(live == wanted)


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch (RFC 7386) that turns `old` into `new`; empty when they are equal."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            inner = merge_patch(before, value)
            if inner:
                patch[key] = inner
        elif key not in old or before != value:
            patch[key] = value
    return patch
