"""The present placement, changed no more than the rules demand: where a search from what is there begins.

Called by `construction`: lost replicas are made again, workers that hold too much give some up.
"""

import numpy as np

from flexpert_placement.feasibility import required
from flexpert_placement.instance import Bools, Floats, Instance


def keep_current(instance: Instance) -> list[Bools] | None:
    """What is there, with as few changes as make it an answer; None when none was found.

    Returns:
        For each layer the replicas [experts, workers].
    """
    keeping = _Keeping(instance)
    return keeping.layers() if keeping.run() else None


class _Keeping:
    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._needed = required(instance)
        self._held = instance.current | instance.pinned
        self._room = instance.slots - self._held.sum(axis=(0, 1))
        self._times: Floats = self._served().sum(axis=1) / instance.speeds

    def layers(self) -> list[Bools]:
        """[experts, workers] for each layer."""
        return list(self._held)

    def run(self) -> bool:
        """Shrink to what may be, then grow to what must be."""
        for layer, expert in np.argwhere(self._held.sum(axis=2) > self._instance.most):
            while self._held[layer, expert].sum() > self._instance.most[layer, expert]:
                if not self._drop_one(int(layer), int(expert)):
                    return False
        for layer, worker in np.argwhere(self._held.sum(axis=1) > self._instance.layer_slots):
            while self._held[layer, :, worker].sum() > self._instance.layer_slots[worker]:
                if not self._relieve(int(worker), int(layer)):
                    return False
        for worker in np.flatnonzero(self._room < 0):
            while self._room[worker] < 0:
                if not self._relieve(int(worker)):
                    return False
        return all(self._complete(int(layer), int(expert)) for layer, expert in self._incomplete())

    def _served(self) -> Floats:
        copies = np.maximum(self._held.sum(axis=2), 1)
        return np.asarray(self._held * (self._instance.loads / copies)[:, :, None])

    def _incomplete(self) -> list[tuple[int, int]]:
        """(layer, expert) with too few replicas or failure domains, the heaviest first."""
        domains = self._instance.domains
        apart = np.stack([self._held[:, :, domains == one].any(axis=2) for one in np.unique(domains)]).sum(axis=0)
        lacking = (self._held.sum(axis=2) < self._needed) | (apart < self._instance.problem.min_failure_domains)
        rows = np.argwhere(lacking)
        loads = self._instance.loads[rows[:, 0], rows[:, 1]]
        return [(int(layer), int(expert)) for layer, expert in rows[np.argsort(-loads, kind="stable")]]

    def _set(self, layer: int, expert: int, worker: int, there: bool) -> None:
        copies = max(int(self._needed[layer, expert]), 1)
        self._held[layer, expert, worker] = there
        sign = 1 if there else -1
        self._room[worker] -= sign
        load = self._instance.loads[layer, expert] / copies
        self._times[layer, worker] += sign * load / self._instance.speeds[worker]

    def _drop_one(self, layer: int, expert: int) -> bool:
        """Drop the replica whose worker has least room and whose failure domain has others."""
        free = self._held[layer, expert] & ~self._instance.pinned[layer, expert]
        domains = self._instance.domains
        alone = np.array([np.sum(domains[self._held[layer, expert]] == one) == 1 for one in domains])
        if not free.any():
            return False
        key = np.where(free, self._room + alone * (1 + np.abs(self._room).max() * 2), np.inf)
        self._set(layer, expert, int(np.argmin(key)), False)
        return True

    def _relieve(self, worker: int, only: int | None = None) -> bool:
        """Drop what a worker holds too much: spare replicas first, then the lightest experts, which go elsewhere.

        `only`: the layer that it holds too much of, None for all together.
        """
        free = self._held[:, :, worker] & ~self._instance.pinned[:, :, worker]
        if only is not None:
            free[np.arange(len(free)) != only] = False
        if not free.any():
            return False
        spare = self._held.sum(axis=2) > self._needed
        key = np.where(free, np.where(spare, 0.0, 1.0) + self._relative(), np.inf)
        layer, expert = np.unravel_index(int(np.argmin(key)), key.shape)
        self._set(int(layer), int(expert), worker, False)
        return True

    def _relative(self) -> Floats:
        """[layers, experts] loads, below 1."""
        instance = self._instance
        return np.asarray(instance.loads / (1.0 + instance.loads.max(axis=1, keepdims=True)))

    def _complete(self, layer: int, expert: int) -> bool:
        while True:
            instance, held = self._instance, self._held[layer, expert]
            used = np.unique(instance.domains[held])
            apart = instance.problem.min_failure_domains - len(used)
            missing = int(self._needed[layer, expert] - held.sum())
            if missing <= 0 and apart <= 0:
                return True
            if missing <= 0 and held.sum() >= instance.most[layer, expert] and not self._drop_one(layer, expert):
                return False
            allowed = ~held & ~np.isin(instance.domains, used) if apart >= max(missing, 1) else ~held
            worker = self._roomy(layer, expert, allowed)
            if worker is None:
                return False
            self._set(layer, expert, worker, True)

    def _roomy(self, layer: int, expert: int, allowed: Bools) -> int | None:
        """Where a replica goes: the idlest worker with room, or one that gives up a spare replica for it."""
        load = self._instance.loads[layer, expert] / max(int(self._needed[layer, expert]), 1)
        times = self._times[layer] + load / self._instance.speeds
        full = self._held[layer].sum(axis=0) >= self._instance.layer_slots
        open_ = allowed & (self._room > 0) & ~full
        if open_.any():
            return int(np.argmin(np.where(open_, times, np.inf)))
        spare = (self._held.sum(axis=2) > self._needed)[:, :, None] & self._held & ~self._instance.pinned
        for worker in np.argsort(np.where(allowed, times, np.inf), kind="stable"):
            only = layer if full[worker] else None
            if allowed[worker] and (spare[:, :, worker] if only is None else spare[layer, :, worker]).any():
                self._relieve(int(worker), only)
                return int(worker)
        return None
