"""Terms: which number a controller incarnation gets. Numbers are handed out through the MoEDeployment's annotations,
by a write that fails if anybody else wrote in between, so that no two incarnations ever have the same one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flexpert_operator.api import names
from flexpert_operator.decide.observation import Pool


@dataclass(frozen=True)
class Grant:
    """The term for the present incarnation; `taken` tells whether it stands in the annotations already."""

    term: int
    taken: bool


def keys_of(name: str, cluster: str) -> tuple[str, str]:
    """Annotations of the MoEDeployment `name` for a RayCluster: its controller's term, and its incarnation."""
    suffix = cluster.removeprefix(names.ray_cluster(name))
    return f"{names.TERM_ANNOTATION}{suffix}", f"{names.INCARNATION_ANNOTATION}{suffix}"


def forgotten(annotations: Mapping[str, str], name: str, cluster: str) -> dict[str, None]:
    """The merge patch that forgets the term of a RayCluster that is gone, apart from that of the first one's name."""
    return {key: None for key in keys_of(name, cluster) if key in annotations and cluster != names.ray_cluster(name)}


def highest_of(annotations: Mapping[str, str]) -> int:
    """The highest term that was ever granted and is not forgotten."""
    granted = (
        value
        for key, value in annotations.items()
        if key.startswith(names.TERM_ANNOTATION) and not key.startswith(names.INCARNATION_ANNOTATION)
    )
    return max(map(int, granted), default=0)


FIRST_KEYS = (names.TERM_ANNOTATION, names.INCARNATION_ANNOTATION)


def decide_grant(annotations: Mapping[str, str], pool: Pool, keys: tuple[str, str] = FIRST_KEYS) -> Grant:
    """The term of `pool`'s incarnation: the one it was granted before, or the next."""
    term = int(annotations.get(keys[0], 0))
    ours = annotations.get(keys[1]) == pool.incarnation
    outdone = pool.term == 0 and pool.epoch.term >= term
    if ours and term > 0 and not outdone:
        return Grant(term, taken=True)
    return Grant(max(highest_of(annotations), pool.epoch.term) + 1, taken=False)


def annotations_of(grant: Grant, incarnation: str, keys: tuple[str, str] = FIRST_KEYS) -> dict[str, str]:
    """What the annotations say once the term is taken."""
    return {keys[0]: str(grant.term), keys[1]: incarnation}
