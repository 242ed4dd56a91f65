"""How many threads a process uses. Every process of the pool calls `configure` before it computes anything.

OpenMP threads of torch spin at barriers: two processes with two threads each on two cores are some fifty times slower
than with one thread each, unless the wait policy is passive. So both are set explicitly, everywhere: launchers put
`environment` into a process's environment, the process itself calls `configure`.
"""

import importlib.util
import os
import sys
import threading

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_NICENESS = 10


def environment(num_threads: int) -> dict[str, str]:
    """Environment of a process that computes with `num_threads` threads; it must be set before the process starts."""
    count = str(_at_least_one(num_threads))
    return {
        **dict.fromkeys(_VARIABLES, count),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "RAYON_NUM_THREADS": count,
    }


def share_of_cores(num_processes: int) -> int:
    """Threads for each of `num_processes` busy processes on the cores this process may use, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // _at_least_one(num_processes))


def configure(num_threads: int) -> None:
    """Make this process, and what it starts, compute with `num_threads` threads; call it once, before computing.

    Sets torch's intra-op pool to `num_threads` and its inter-op pool to one thread. Torch fixes the inter-op pool at
    its first use, after which a different number is an error of the caller: a `RuntimeError`.
    """
    os.environ.update(environment(num_threads))
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    torch.set_num_threads(_at_least_one(num_threads))
    if torch.get_num_interop_threads() != 1:
        torch.set_num_interop_threads(1)


def yield_to_serving() -> None:
    """Let the calling thread compute where the threads that serve leave cores free: for what goes on beside them.

    Not so low that a thread which holds the interpreter's lock could be kept from giving it back for long.
    """
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


def in_use() -> int:
    """Threads that this process computes with, as torch says; 0 where torch is not loaded."""
    if "torch" not in sys.modules:
        return 0
    import torch

    return torch.get_num_threads()


def _at_least_one(number: int) -> int:
    if number < 1:
        raise ValueError(f"a number of threads or processes is at least 1, not {number}")
    return number
