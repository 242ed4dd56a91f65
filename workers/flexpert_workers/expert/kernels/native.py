"""Compiles the kernels that `codegen` writes for this machine, and calls them: the `GroupedLinear` of a CPU."""

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import binding as llvm

from flexpert_workers.expert.kernels.codegen import COLUMNS_PER_STRIP, ENTRY, KernelSpec, write_kernel

_SIGNATURE = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_int64,
)


class NativeGroupedLinear:
    """`GroupedLinear` for matrices of one type and layout, compiled when it is made (about a tenth of a second).

    Args:
        dtype: Of the matrices: bfloat16, float16 or float32.
        is_transposed: Matrices are [in, out].
        num_threads: Threads to compute with; each computes some of the columns.
    """

    def __init__(self, dtype: torch.dtype, is_transposed: bool, num_threads: int) -> None:
        lanes = _lanes()
        self._lanes = lanes
        self._is_transposed = is_transposed
        self._num_threads = num_threads
        spec = KernelSpec(str(dtype).removeprefix("torch."), is_transposed, lanes)
        self._engine = _compile(write_kernel(spec))
        self._function = _SIGNATURE(self._engine.get_function_address(ENTRY))
        self._threads = ThreadPoolExecutor(num_threads - 1, "kernel") if num_threads > 1 else None

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether matrices of this shape fill whole vectors."""
        return shape[1] % self._lanes == 0

    def __call__(
        self, inputs: torch.Tensor, weights: Sequence[torch.Tensor], counts: npt.NDArray[np.int64]
    ) -> torch.Tensor:
        """See `GroupedLinear`; `inputs` is contiguous float32, the matrices are contiguous and `takes` their shape."""
        num_out = weights[0].shape[1 if self._is_transposed else 0]
        allocate = torch.zeros if self._is_transposed else torch.empty
        outputs = allocate(inputs.shape[0], num_out)
        addresses = np.array([weight.data_ptr() for weight in weights], dtype=np.int64)
        starts = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(counts, out=starts[1:])

        def compute(columns: tuple[int, int]) -> None:
            self._function(
                inputs.data_ptr(),
                addresses.ctypes.data,
                starts.ctypes.data,
                len(weights),
                outputs.data_ptr(),
                inputs.shape[1],
                num_out,
                *columns,
            )

        if self._threads is None:
            compute((0, num_out))
        else:
            own, *others = self._shares(num_out)
            pending = [self._threads.submit(compute, share) for share in others]
            compute(own)
            for future in pending:
                future.result()
        return outputs

    def _shares(self, num_out: int) -> list[tuple[int, int]]:
        """Columns [begin, end) of each thread, in whole strips but for the last."""
        strips = -(-num_out // COLUMNS_PER_STRIP)
        bounds = [strips * thread // self._num_threads * COLUMNS_PER_STRIP for thread in range(self._num_threads)]
        return list(zip(bounds, [*bounds[1:], num_out], strict=True))


def _lanes() -> int:
    """float32 numbers in a vector register of this machine."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512bw"):
        return 16
    return 8 if features.get("avx2") else 4


def _compile(source: str) -> llvm.ExecutionEngine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(source)
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine
