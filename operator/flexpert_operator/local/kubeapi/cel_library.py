"""Kubernetes' own CEL functions, for `cel`: strings, lists, regular expressions, quantities, URLs.

Each function takes its receiver first. Names follow the Kubernetes documentation, "Common Expression Language in
Kubernetes".
"""

import itertools
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from celpy import celtypes

from flexpert_operator.local.kubeapi.objects import parse_quantity


class Quantity(celtypes.StringType):  # type: ignore[misc]
    """A resource quantity as a CEL value; compared by value, not by spelling."""

    @property
    def amount(self) -> Decimal:
        """The number it stands for."""
        return parse_quantity(str(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantity) and self.amount == other.amount

    def __hash__(self) -> int:
        return hash(self.amount)


def _is_quantity(text: Any) -> Any:
    try:
        parse_quantity(str(text))
    except ValueError:
        return celtypes.BoolType(False)
    return celtypes.BoolType(True)


def _quantity(text: Any) -> Quantity:
    parse_quantity(str(text))
    return Quantity(str(text))


def _amount(value: Any) -> Decimal:
    return value.amount if isinstance(value, Quantity) else Decimal(int(value))


def _compare(left: Any, right: Any) -> Any:
    return celtypes.IntType((_amount(left) > _amount(right)) - (_amount(left) < _amount(right)))


def _string(value: str) -> Any:
    return celtypes.StringType(value)


def _bool(value: bool) -> Any:
    return celtypes.BoolType(value)


def _index_of(receiver: Any, wanted: Any) -> Any:
    if isinstance(receiver, str):
        return celtypes.IntType(receiver.find(wanted))
    return celtypes.IntType(receiver.index(wanted) if wanted in receiver else -1)


def _last_index_of(receiver: Any, wanted: Any) -> Any:
    if isinstance(receiver, str):
        return celtypes.IntType(receiver.rfind(wanted))
    return celtypes.IntType(max((i for i, item in enumerate(receiver) if item == wanted), default=-1))


def _split(text: Any, separator: Any, limit: Any = -1) -> Any:
    parts = str(text).split(separator) if int(limit) < 0 else str(text).split(separator, max(int(limit) - 1, 0))
    return celtypes.ListType([_string(part) for part in parts])


def _substring(text: Any, start: Any, end: Any = None) -> Any:
    return _string(str(text)[int(start) : None if end is None else int(end)])


def _find(text: Any, pattern: Any) -> Any:
    found = re.search(pattern, text)
    return _string(found.group() if found else "")


def _find_all(text: Any, pattern: Any) -> Any:
    return celtypes.ListType([_string(found.group()) for found in re.finditer(pattern, text)])


def _sum(items: Any) -> Any:
    return sum(items[1:], start=items[0]) if items else celtypes.IntType(0)


def _is_sorted(items: Any) -> Any:
    return _bool(all(left <= right for left, right in itertools.pairwise(items)))


def _is_url(text: Any) -> Any:
    parts = urlsplit(str(text))
    return _bool(bool(parts.scheme and (parts.netloc or parts.path.startswith("/"))))


def _format(text: Any, values: Any) -> Any:
    remaining = iter(values)
    return _string(re.sub(r"%[sdbxXof]", lambda _: str(next(remaining)), str(text)))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "isQuantity": _is_quantity,
    "quantity": _quantity,
    "compareTo": _compare,
    "isGreaterThan": lambda a, b: _bool(_amount(a) > _amount(b)),
    "isLessThan": lambda a, b: _bool(_amount(a) < _amount(b)),
    "asInteger": lambda a: celtypes.IntType(int(_amount(a))),
    "isInteger": lambda a: _bool(_amount(a) == _amount(a).to_integral_value()),
    "asApproximateFloat": lambda a: celtypes.DoubleType(float(_amount(a))),
    "sign": lambda a: _compare(a, celtypes.IntType(0)),
    "add": lambda a, b: Quantity(str(_amount(a) + _amount(b))),
    "sub": lambda a, b: Quantity(str(_amount(a) - _amount(b))),
    "lowerAscii": lambda text: _string(text.lower()),
    "upperAscii": lambda text: _string(text.upper()),
    "trim": lambda text: _string(text.strip()),
    "charAt": lambda text, index: _string(text[int(index)] if int(index) < len(text) else ""),
    "replace": lambda text, old, new, limit=-1: _string(str(text).replace(old, new, int(limit))),
    "split": _split,
    "join": lambda items, separator="": _string(str(separator).join(items)),
    "substring": _substring,
    "format": _format,
    "indexOf": _index_of,
    "lastIndexOf": _last_index_of,
    "find": _find,
    "findAll": _find_all,
    "isSorted": _is_sorted,
    "sum": _sum,
    "min": min,
    "max": max,
    "isURL": _is_url,
}
