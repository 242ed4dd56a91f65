"""How much memory an engine's KV cache gets when nobody says: from model and cgroup, never from the host's RAM."""

from pathlib import Path

from flexpert_workers.errors import CapacityError

DEFAULT_WITHOUT_LIMIT = 1 << 30
"""KV bytes where no cgroup limits this process: 1 GiB."""

RESERVED_BYTES = 512 << 20
"""What the interpreter, torch, Ray's own processes in the pod and allocator slack are taken to need."""

_UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2**63 for "no limit"


def cgroup_memory_limit(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Lowest memory limit in bytes of this process's cgroup and those above it, or None where there is none.

    Reads `memory.max` (v2) and `memory.limit_in_bytes` (v1). In a container the membership file may name a path of
    the host that is not visible inside; the root of the mount is read as well, which is the container's own group.
    """
    limits = []
    for controller, path in _memberships(membership):
        for base in _mounts(root, controller):
            limits += [_read_limit(folder) for folder in (base / path.lstrip("/"), *_parents(base, path), base)]
    limits += [_read_limit(base) for base in (root, root / "memory")]
    return min((limit for limit in limits if limit is not None), default=None)


def derive_kv_bytes(
    *,
    limit_bytes: int | None,
    dense_bytes: int,
    pass_bytes: int,
    bytes_per_token: int,
    useful_tokens: int,
) -> int:
    """KV bytes for a model when `kvCacheMemory` is not set. Pure.

    With a cgroup limit it is half of what the dense weights, one pass's activations and `RESERVED_BYTES` leave: the
    other half is for what shares the pod (Ray's object store lives in shared memory, which counts). Without a limit
    it is `DEFAULT_WITHOUT_LIMIT`. Never more than the most tokens that can be in use at once.

    Args:
        limit_bytes: The cgroup's limit, or None.
        dense_bytes: Of the dense weights.
        pass_bytes: Most bytes that the activations and logits of one pass take.
        bytes_per_token: In the cache, over all layers.
        useful_tokens: Most tokens that all running requests can hold together.

    Raises:
        CapacityError: Nothing is left for the cache.
    """
    if limit_bytes is None:
        room = DEFAULT_WITHOUT_LIMIT
    else:
        room = (limit_bytes - dense_bytes - pass_bytes - RESERVED_BYTES) // 2
    if room <= 0:
        raise CapacityError(
            f"the memory limit of {limit_bytes} bytes leaves no room for a KV cache beside {dense_bytes} bytes of "
            f"dense weights and {pass_bytes} bytes for one pass: raise the engine's memory limit or lower "
            "maxBatchTokens"
        )
    return min(room, useful_tokens * bytes_per_token)


def _memberships(file: Path) -> list[tuple[str, str]]:
    """(controller, path) of the memory cgroups in a `/proc/*/cgroup` file; v2 has an empty controller."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return []
    fields = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    return [(names, path) for _, names, path in fields if names == "" or "memory" in names.split(",")]


def _mounts(root: Path, controller: str) -> list[Path]:
    return [root / "memory"] if controller else [root, root / "unified"]


def _parents(base: Path, path: str) -> list[Path]:
    parts = Path(path.lstrip("/")).parts
    return [base.joinpath(*parts[:end]) for end in range(1, len(parts))]


def _read_limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            text = (folder / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _UNLIMITED:
            return int(text)
    return None
