"""Does a live object say what it should? And what patch makes a status say what it should? Pure; `reconciler` asks."""

from collections.abc import Iterator, Mapping
from typing import Any

from flexpert_operator.api.quantities import to_number

QUANTITIES = frozenset({"limits", "requests", "sizeLimit", "divisor"})
"""Fields of pods that are quantities, or hold them."""

TEXTS = frozenset({"labels", "annotations", "nodeSelector", "matchLabels"})
"""Fields whose keys are somebody's own words: an empty text is kept there, and nothing is a quantity."""


def covers(live: Any, wanted: Any) -> bool:
    """Whether `live` has all that `wanted` has: neither what the API server added by default counts, nor what it left
    out because it was empty, nor how it writes quantities.

    Lists have to be equal in length and cover each other item by item.
    """
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(covers_field(live, key, value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(covers(item, other) for item, other in zip(live, wanted, strict=True))
        )
    return bool(live == wanted)


def covers_field(live: Mapping[str, Any], key: str, wanted: Any) -> bool:
    """Whether `live` has what is wanted under a key."""
    if key not in live:
        return is_left_out(key, wanted)
    found = live[key]
    if key in TEXTS and isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return all(name in found and found[name] == text for name, text in wanted.items())
    return covers_quantity(found, wanted) if key in QUANTITIES else covers(found, wanted)


def is_left_out(key: str, value: Any) -> bool:
    """Whether the API server does not store a field of pods with such a value."""
    return (
        value is None
        or value == ""
        or value == []
        or (key == "readOnly" and value is False)
        or (key in TEXTS and value == {})
    )


def covers_quantity(live: Any, wanted: Any) -> bool:
    """Whether quantities, alone or by name, are the same numbers."""
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(
            name in live and covers_quantity(live[name], quantity) for name, quantity in wanted.items()
        )
    try:
        return to_number(live) == to_number(wanted)
    except ValueError:
        return bool(live == wanted)


def missing(live: Any, wanted: Any, path: str) -> Iterator[str]:
    """Paths, below `path`, of what `wanted` says and `live` does not have at all."""
    if isinstance(wanted, Mapping) and isinstance(live, Mapping):
        for key, value in wanted.items():
            if key in live:
                yield from missing(live[key], value, f"{path}.{key}")
            elif not is_left_out(key, value):
                yield f"{path}.{key}"
    elif isinstance(wanted, list) and isinstance(live, list) and len(live) == len(wanted):
        for index, (found, item) in enumerate(zip(live, wanted, strict=True)):
            yield from missing(found, item, f"{path}[{index}]")


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
