"""Small helpers over Kubernetes objects in their JSON form; every module of the embedded API uses them.

An object is a plain `dict` as `json.loads` makes it. An object that has been stored is never changed in place: take
`copy_json` of it first.
"""

import datetime as dt
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

JsonObject = dict[str, Any]
Clock = Callable[[], dt.datetime]

_SUFFIXES = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}


def copy_json(value: Any) -> Any:
    """Deep copy of a JSON value."""
    if isinstance(value, dict):
        return {key: copy_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copy_json(item) for item in value]
    return value


def utc_now() -> dt.datetime:
    """The system's clock, in UTC: the `Clock` of a real server."""
    return dt.datetime.now(dt.UTC)


def timestamp(moment: dt.datetime) -> str:
    """RFC 3339 in seconds, as `metadata.creationTimestamp` has it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> dt.datetime:
    """Inverse of `timestamp`; also takes the fractions of a second that MicroTime has.

    Raises:
        ValueError: `text` is not RFC 3339.
    """
    moment = dt.datetime.fromisoformat(text.replace("Z", "+00:00"))
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def metadata(obj: JsonObject) -> JsonObject:
    """The object's metadata; empty when it has none."""
    found = obj.get("metadata")
    return found if isinstance(found, dict) else {}


def name_of(obj: JsonObject) -> str:
    """`metadata.name`, or the empty string."""
    return str(metadata(obj).get("name") or "")


def labels_of(obj: JsonObject) -> dict[str, str]:
    """`metadata.labels`; empty when there are none."""
    return metadata(obj).get("labels") or {}


def finalizers_of(obj: JsonObject) -> list[str]:
    """`metadata.finalizers`; empty when there are none."""
    return metadata(obj).get("finalizers") or []


def is_terminating(obj: JsonObject) -> bool:
    """Whether deletion has been asked for and not yet completed."""
    return bool(metadata(obj).get("deletionTimestamp"))


def split_path(path: str) -> tuple[str, ...]:
    """Names in a simple path such as `.spec.experts.workers`."""
    return tuple(part for part in path.split(".") if part)


def dig(obj: Any, path: Sequence[str]) -> Any:
    """The value at `path`, or None where any step is missing."""
    for part in path:
        if not isinstance(obj, dict) or part not in obj:
            return None
        obj = obj[part]
    return obj


def put(obj: JsonObject, path: Sequence[str], value: Any) -> None:
    """Set the value at `path`, making objects on the way."""
    for part in path[:-1]:
        obj = obj.setdefault(part, {})
    obj[path[-1]] = value


def drop_nulls(value: Any) -> Any:
    """Copy without the members whose value is null; built-in kinds take null as absent."""
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [drop_nulls(item) for item in value]
    return value


def parse_quantity(text: str | int | float) -> Decimal:
    """Value of a resource quantity such as `20Gi`, `500m` or `1e3`.

    Raises:
        ValueError: `text` is not a quantity.
    """
    raw = str(text).strip()
    digits = raw.rstrip("numkKMGTPEi")
    suffix = raw[len(digits) :]
    if suffix not in _SUFFIXES or not digits:
        raise ValueError(f"not a quantity: {raw!r}")
    try:
        return Decimal(digits) * _SUFFIXES[suffix]
    except InvalidOperation:
        raise ValueError(f"not a quantity: {raw!r}") from None
