"""Attention on a CPU without gathering: compiles the kernel that `paged_ir` writes for a layer's shape, and calls it.

The loop makes one per layer shape; `attention` uses it for all rows but those of very long chunks. Where it does not
fit (head sizes that are no multiple of a vector, latents, soft caps) attention gathers and calls torch.
"""

import ctypes
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from llvmlite import binding as llvm

from flexpert_workers.engine.batch import PagedRows
from flexpert_workers.engine.cache import LayerShape
from flexpert_workers.engine.paged_ir import ENTRY, STORED, TOKENS_PER_TILE, KernelSpec, write_kernel

_POINTER, _WORD = ctypes.c_void_p, ctypes.c_int64
_SIGNATURE = ctypes.CFUNCTYPE(None, *[_POINTER] * 10, _WORD, _WORD, ctypes.c_float, _WORD, _WORD)


class PagedAttention:
    """Attention for layers of one shape; compiled when the first is made (some tenths of a second)."""

    def __init__(self, shape: LayerShape, block_tokens: int, num_threads: int) -> None:
        self._spec = spec_of(shape, block_tokens, _lanes())
        self._num_threads = num_threads
        self._engine = _compiled(self._spec)
        self._function = _SIGNATURE(self._engine.get_function_address(ENTRY))
        self._threads = ThreadPoolExecutor(num_threads - 1, "attention") if num_threads > 1 else None
        self._scores = torch.empty(0)

    def __call__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: PagedRows,
        scaling: float,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention of query rows.

        Args:
            query: [rows, heads, key size].
            keys: [blocks, block_tokens, key heads, key size], the cache's, of one layer. `values` likewise.
            values: See `keys`.
            rows: What each row sees.
            scaling: Of the scores.
            sinks: [heads] scores without a value, or None.

        Returns:
            [rows, heads, value size] in the type of `query`.
        """
        queries = query.float().contiguous()
        num_rows, num_heads, _ = queries.shape
        outputs = torch.empty((num_rows, num_heads, self._spec.value_size))
        sink_scores = None if sinks is None else sinks.float().contiguous()
        width = rows.tables.shape[1]
        room = self._room(width)

        def compute(share: tuple[int, int, int]) -> None:
            thread, begin, end = share
            self._function(
                queries.data_ptr(),
                keys.data_ptr(),
                values.data_ptr(),
                rows.tables.ctypes.data,
                rows.owners.ctypes.data,
                rows.firsts.ctypes.data,
                rows.lengths.ctypes.data,
                None if sink_scores is None else sink_scores.data_ptr(),
                outputs.data_ptr(),
                self._scores.data_ptr() + thread * self._spec.shared_heads * room * 4,
                room,
                width,
                scaling,
                begin,
                end,
            )

        if self._threads is None:
            compute((0, 0, num_rows))
        else:
            own, *others = _shares(num_rows, self._num_threads)
            pending = [self._threads.submit(compute, share) for share in others]
            compute(own)
            for future in pending:
                future.result()
        return outputs.to(query.dtype)

    def _room(self, width: int) -> int:
        """Scores to keep per head: those of `width` blocks and a vector more; the scratch grows to hold them."""
        lanes = self._spec.lanes
        room = -(-width * self._spec.block_tokens // lanes) * lanes + lanes
        needed = self._num_threads * self._spec.shared_heads * room
        if self._scores.numel() < needed:
            self._scores = torch.empty(needed)
        return room


def paged_attentions(
    shapes: Mapping[int, LayerShape], block_tokens: int, num_threads: int
) -> dict[int, PagedAttention]:
    """A kernel for each layer that one fits, layers of the same shape sharing theirs."""
    made: dict[LayerShape, PagedAttention] = {}
    fitting = {layer: shape for layer, shape in shapes.items() if fits(shape, block_tokens)}
    for shape in fitting.values():
        if shape not in made:
            made[shape] = PagedAttention(shape, block_tokens, num_threads)
    return {layer: made[shape] for layer, shape in fitting.items()}


def fits(shape: LayerShape, block_tokens: int) -> bool:
    """Whether the kernel computes layers of this shape."""
    lanes = _lanes()
    return (
        not shape.expanded_bytes
        and _name(shape.dtype) in STORED
        and shape.key[0] == shape.value[0]
        and shape.key[1] % lanes == 0
        and shape.value[1] % lanes == 0
        and block_tokens % TOKENS_PER_TILE == 0
    )


def spec_of(shape: LayerShape, block_tokens: int, lanes: int) -> KernelSpec:
    """What the kernel of a layer is written for."""
    return KernelSpec(
        stored=_name(shape.dtype),
        lanes=lanes,
        key_heads=shape.key[0],
        shared_heads=shape.num_heads // shape.key[0],
        key_size=shape.key[1],
        value_size=shape.value[1],
        block_tokens=block_tokens,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shares(num_rows: int, num_threads: int) -> list[tuple[int, int, int]]:
    """(thread, begin, end) of the rows of each thread."""
    bounds = [num_rows * thread // num_threads for thread in range(num_threads + 1)]
    return [(thread, bounds[thread], bounds[thread + 1]) for thread in range(num_threads)]


def _lanes() -> int:
    """float32 numbers in a vector register of this machine."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512bw"):
        return 16
    return 8 if features.get("avx2") else 4


@cache
def _compiled(spec: KernelSpec) -> llvm.ExecutionEngine:
    """The machine code of a kernel; engines of one process share it."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(write_kernel(spec))
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine
