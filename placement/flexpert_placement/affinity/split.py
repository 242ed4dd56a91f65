"""Where an expert with several replicas has them and how its load is shared: the cheapest workers first.

Where the replica of each expert is drawn on its own, the fan-out is linear in one expert's shares when the others
stay: filling the workers in the order of their prices up to the limit is optimal for it. It follows that a second
replica never lowers the fan-out by itself; it pays where the limit keeps an expert, or others, from where they would be
cheapest.
"""

import numpy as np

from flexpert_placement.affinity.pairs import State
from flexpert_placement.affinity.search import TOLERANCE, Room
from flexpert_placement.instance import Bools, Floats, Ints


def lay_out_splits(
    state: State, room: Room, fewest: Ints, most: Ints, pinned: Bools, domains: Ints, min_domains: int
) -> None:
    """Lay out every expert anew that gains by it, the hottest first, in place.

    Args:
        state: The layer.
        room: What it keeps to; `room.held` changes.
        fewest: [experts] replicas at least.
        most: [experts] replicas at most.
        pinned: [experts, workers] replicas that must be.
        domains: [workers] failure domain of each.
        min_domains: Failure domains that an expert's replicas lie in at least.
    """
    for expert in np.argsort(-room.loads, kind="stable").tolist():
        prices = state.split_prices(expert)
        filled = _filled(state, room, expert, prices, int(most[expert]), pinned[expert])
        if filled is None:
            continue
        held = _with_spares(room, expert, filled, prices, int(fewest[expert]), pinned[expert], domains, min_domains)
        if held is None or held.sum() > most[expert]:
            continue
        old = _price(state.shares[expert], room.held[expert], prices, room.arrival[expert])
        if _price(filled, held, prices, room.arrival[expert]) < old - TOLERANCE:
            room.held[expert] = held
            state.lay_out(expert, filled)


def _price(shares: Floats, held: Bools, prices: Floats, arrival: Floats) -> float:
    return float(shares @ prices + arrival[held].sum())


def _filled(state: State, room: Room, expert: int, prices: Floats, most: int, pinned: Bools) -> Floats | None:
    """[workers] shares of the cheapest layout within the limit, or None when there is none in this order."""
    load = room.loads[expert]
    others = state.shares.copy()
    others[expert] = 0.0
    spare = np.maximum(room.limit * room.speeds - room.loads @ others, 0.0)
    shares, left, used = np.zeros(len(prices)), 1.0, 0
    for worker in np.argsort(prices + room.arrival[expert], kind="stable").tolist():
        if used == most or left <= TOLERANCE:
            break
        if not _has_slot(room, expert, worker):
            continue
        part = left if load <= 0 else min(left, spare[worker] / load)
        if part > TOLERANCE:
            shares[worker], left, used = part, left - part, used + 1
    return shares / shares.sum() if left <= TOLERANCE else None


def _with_spares(
    room: Room,
    expert: int,
    shares: Floats,
    prices: Floats,
    fewest: int,
    pinned: Bools,
    domains: Ints,
    min_domains: int,
) -> Bools | None:
    """[workers] replicas of a layout, with as many that serve nothing as the bounds ask for; None if that cannot be."""
    held = (shares > 0) | pinned
    order = np.argsort(room.arrival[expert] + 1e-6 * prices, kind="stable").tolist()
    while held.sum() < fewest or len(set(domains[held].tolist())) < min_domains:
        short = len(set(domains[held].tolist())) < min_domains
        known = set(domains[held].tolist())
        fitting = [
            worker
            for worker in order
            if not held[worker] and _has_slot(room, expert, worker) and not (short and int(domains[worker]) in known)
        ]
        if not fitting:
            return None
        held[fitting[0]] = True
    return held


def _has_slot(room: Room, expert: int, worker: int) -> bool:
    return bool(room.held[expert, worker] or room.held[:, worker].sum() < room.caps[worker])
