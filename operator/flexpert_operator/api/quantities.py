"""Kubernetes quantities as numbers; `spec` and `manifests` read memory and cores through here."""

import math
from decimal import Decimal
from typing import cast

from kubernetes.utils.quantity import parse_quantity


def to_bytes(quantity: str | int) -> int:
    """A quantity of memory in bytes, rounded up.

    Raises:
        ValueError: It is not a quantity.
    """
    return math.ceil(cast(Decimal, parse_quantity(quantity)))


def to_cores(quantity: str | int) -> float:
    """A quantity of processors in cores.

    Raises:
        ValueError: It is not a quantity.
    """
    return float(cast(Decimal, parse_quantity(quantity)))
