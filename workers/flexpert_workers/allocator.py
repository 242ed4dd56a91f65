"""Memory settings of the processes that compute: what they free stays theirs, what they keep is not looked through.

A pass makes the same temporary tensors again and again. By default the C library gives large ones back to the kernel
at once, which hands out zeroed pages again at the next touch: on a CPU a quarter of an expert's computing time.
"""

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
TRIM_BYTES = 256 << 20
"""Free memory at the top of the heap that is kept."""
MMAP_BYTES = 32 << 20
"""From which size on an allocation is mapped on its own and given back when freed: the most that glibc takes."""


def keep_freed_memory() -> bool:
    """Tell the C library; whether it can be told (glibc can)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, TRIM_BYTES)) and bool(mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES))


def freeze_heap() -> None:
    """Leave what this process holds now, its modules and its model, out of garbage collections from now on.

    Call it once when the process is ready to serve. A full collection looks through all of it, and stands in the way of
    tokens for as long as a few passes take.
    """
    gc.collect()
    gc.freeze()


def environment() -> dict[str, str]:
    """The same for a process that is about to be started."""
    return {"MALLOC_TRIM_THRESHOLD_": str(TRIM_BYTES), "MALLOC_MMAP_THRESHOLD_": str(MMAP_BYTES)}
