"""Kubernetes quantities as numbers; `spec`, `manifests` and `decide.difference` read them through here."""

import math
from decimal import Decimal
from typing import cast

from kubernetes.utils.quantity import parse_quantity


def to_number(quantity: str | int) -> Decimal:
    """A quantity as an exact number.

    Raises:
        ValueError: It is not a quantity.
    """
    return cast(Decimal, parse_quantity(quantity))


def to_bytes(quantity: str | int) -> int:
    """A quantity of memory in bytes, rounded up.

    Raises:
        ValueError: It is not a quantity.
    """
    return math.ceil(to_number(quantity))


def to_cores(quantity: str | int) -> float:
    """A quantity of processors in cores.

    Raises:
        ValueError: It is not a quantity.
    """
    return float(to_number(quantity))
