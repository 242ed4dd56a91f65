"""Writes the attention kernel as LLVM IR: query rows over keys and values where they lie in the cache.

`paged` compiles and calls it. It reads each cached number once, widens it in registers (exact for bfloat16 and float16)
and keeps sums in float32; nothing is gathered, padded or masked. A query row's result depends on no other row. Heads
that share a key are computed together, so that a key is read once for all of them (grouped-query attention).
"""

from collections.abc import Sequence
from typing import NamedTuple

from llvmlite import ir

from flexpert_workers.ir_blocks import I32, I64, accumulate, as_float32, loop, pick, reduce, totals_of_lanes

F32, VOID = ir.FloatType(), ir.VoidType()
FLOATS, WORDS = F32.as_pointer(), I64.as_pointer()
STORED = {"bfloat16": ir.IntType(16), "float16": ir.HalfType(), "float32": F32}
ENTRY = "paged_attention"
TOKENS_PER_TILE = 4
HIDDEN = -1e30
"""Score of a token outside the window: finite, so that what is not a number stays one."""

# exp(x) for x <= 0: 2**n times a polynomial in the remainder (Cephes' expf, Moshier 1989; relative error below 2e-7).
_LOG2_E, _LN2_HIGH, _LN2_LOW, _LOWEST = 1.44269504088896341, 0.693359375, -2.12194440e-4, -87.0
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


class KernelSpec(NamedTuple):
    """What a kernel is written for.

    Attributes:
        stored: "bfloat16", "float16" or "float32": what the cache holds.
        lanes: float32 numbers in a vector register; head sizes are multiples of it.
        shared_heads: Query heads per key head.
    """

    stored: str
    lanes: int
    key_heads: int
    shared_heads: int
    key_size: int
    value_size: int
    block_tokens: int


def write_kernel(spec: KernelSpec) -> str:
    """IR of a module with the function `paged_attention`.

    Its arguments: queries [rows, heads, key size] float32; keys and values, the cache's blocks of a layer; tables
    [requests, width] int64; owners [rows] int64, each row's request; firsts and lengths [rows] int64, the tokens
    [first, length) that it sees; sinks [heads] float32 or null; outputs [rows, heads, value size] float32; scores,
    scratch of [shared heads, room] float32; room, a multiple of the lanes and at least the tokens of `width` blocks and
    a vector; width; the scaling; and the rows [begin, end) to compute.
    """
    return str(_Writer(spec).module)


class _Writer:
    def __init__(self, spec: KernelSpec) -> None:
        self.spec = spec
        self.module = ir.Module()
        self.vector = ir.VectorType(F32, spec.lanes)
        self.stored = STORED[spec.stored].as_pointer()
        self.fma = self._intrinsic("fma", 3)
        self.largest = self._intrinsic("maxnum", 2)
        self.rint = self._intrinsic("rint", 1)
        self.heads_per_tile = 4 if spec.lanes >= 16 else 2
        tiles = range(1, self.heads_per_tile + 1)
        self.score = {heads: self._write_score(heads) for heads in tiles}
        self.add_values = {heads: self._write_add_values(heads) for heads in tiles}
        self.softmax = self._write_softmax()
        self.scale = self._write_scale()
        self._write_entry()

    # ------------------------------------------------------------------ the whole

    def _write_entry(self) -> None:
        spec = self.spec
        pointers = [FLOATS, self.stored, self.stored, WORDS, WORDS, WORDS, WORDS, FLOATS, FLOATS, FLOATS]
        function = self._function(ENTRY, [*pointers, I64, I64, F32, I64, I64], internal=False)
        queries, keys, values, tables, owners, firsts, lengths, sinks, outputs, scores = function.args[:10]
        room, width, scaling, begin, end = function.args[10:]
        b = ir.IRBuilder(function.append_basic_block())
        sums = b.alloca(F32, spec.shared_heads)
        num_heads = spec.key_heads * spec.shared_heads

        def row(b: ir.IRBuilder, r: ir.Value) -> ir.IRBuilder:
            first, length = b.load(b.gep(firsts, [r])), b.load(b.gep(lengths, [r]))
            size = I64(spec.block_tokens)
            first_block = b.sdiv(first, size)
            end_block = b.sdiv(b.add(length, I64(spec.block_tokens - 1)), size)
            table = b.gep(tables, [b.mul(b.load(b.gep(owners, [r])), width)])
            origin = b.mul(first_block, size)  # scores are kept from the first block's first token on
            low, high = b.sub(first, origin), b.sub(length, origin)

            def head(b: ir.IRBuilder, h: ir.Value) -> ir.IRBuilder:
                first_head = b.add(b.mul(r, I64(num_heads)), b.mul(h, I64(spec.shared_heads)))
                query = b.gep(queries, [b.mul(first_head, I64(spec.key_size))])
                output = b.gep(outputs, [b.mul(first_head, I64(spec.value_size))])

                def score_block(b: ir.IRBuilder, block: ir.Value) -> ir.IRBuilder:
                    start = b.mul(block, size)
                    some = self._least(b, size, b.sub(length, start))
                    base = self._row(b, keys, b.load(b.gep(table, [block])), h, spec.key_size)
                    target = b.gep(scores, [b.sub(start, origin)])
                    for first, count in self._tiles():
                        row, to = I64(first * spec.key_size), b.mul(room, I64(first))
                        b.call(self.score[count], [b.gep(query, [row]), base, b.gep(target, [to]), room, some, scaling])
                    return b

                def value_block(b: ir.IRBuilder, block: ir.Value) -> ir.IRBuilder:
                    start = b.mul(block, size)
                    some = self._least(b, size, b.sub(length, start))
                    skip = b.sub(first, start)
                    skip = b.select(b.icmp_signed(">", skip, I64(0)), skip, I64(0))
                    base = self._row(b, values, b.load(b.gep(table, [block])), h, spec.value_size)
                    source = b.gep(scores, [b.sub(start, origin)])
                    for first_row, count in self._tiles():
                        weights = b.gep(source, [b.mul(room, I64(first_row))])
                        to = b.gep(output, [I64(first_row * spec.value_size)])
                        b.call(self.add_values[count], [weights, room, base, to, skip, some])
                    return b

                b = loop(b, first_block, end_block, score_block)
                sink = b.gep(sinks, [b.mul(h, I64(spec.shared_heads))])
                has_sinks = b.icmp_unsigned("!=", b.ptrtoint(sinks, I64), I64(0))
                for row in range(spec.shared_heads):
                    at = b.gep(scores, [b.mul(room, I64(row))])
                    b.call(self.softmax, [at, low, high, has_sinks, b.gep(sink, [I64(row)]), b.gep(sums, [I64(row)])])
                for column in range(0, spec.shared_heads * spec.value_size, spec.lanes):
                    self._store(b, b.gep(output, [I64(column)]), self._constant(0.0))
                b = loop(b, first_block, end_block, value_block)
                b.call(self.scale, [output, sums])
                return b

            return loop(b, I64(0), I64(spec.key_heads), head)

        loop(b, begin, end, row).ret_void()

    def _tiles(self) -> list[tuple[int, int]]:
        """(first, count) of the tiles into which the heads that share a key are cut."""
        heads, step = self.spec.shared_heads, self.heads_per_tile
        return [(first, min(step, heads - first)) for first in range(0, heads, step)]

    def _row(self, b: ir.IRBuilder, store: ir.Value, block: ir.Value, head: ir.Value, size: int) -> ir.Value:
        """Where a block's first token keeps the numbers of a key head."""
        tokens = b.mul(block, I64(self.spec.block_tokens * self.spec.key_heads))
        return b.gep(store, [b.mul(b.add(tokens, head), I64(size))])

    # ------------------------------------------------------------------ scores of a block

    def _write_score(self, heads: int) -> ir.Function:
        """Scaled dot products of `heads` queries with the first `tokens` keys of a block, four keys at a time.

        Up to three keys behind the last are computed as well; they lie in the same block.
        """
        spec, lanes = self.spec, self.spec.lanes
        function = self._function(f"score_{heads}", [FLOATS, self.stored, FLOATS, I64, I64, F32])
        query, keys, scores, room, tokens, scaling = function.args
        stride = spec.key_heads * spec.key_size
        b = ir.IRBuilder(function.append_basic_block())
        factor = self._spread(b, scaling, 4)

        def tile(b: ir.IRBuilder, index: ir.Value) -> ir.IRBuilder:
            token = b.mul(index, I64(TOKENS_PER_TILE))
            base = b.gep(keys, [b.mul(token, I64(stride))])
            sums = [[self._constant(0.0)] * TOKENS_PER_TILE for _ in range(heads)]
            for column in range(0, spec.key_size, lanes):
                wide = [self._load_stored(b, b.gep(base, [I64(t * stride + column)])) for t in range(TOKENS_PER_TILE)]
                for row in range(heads):
                    numbers = self._load(b, b.gep(query, [I64(row * spec.key_size + column)]))
                    sums[row] = [b.call(self.fma, [w, numbers, s]) for w, s in zip(wide, sums[row], strict=True)]
            for row in range(heads):
                totals = b.fmul(totals_of_lanes(b, sums[row]), factor)
                self._store(b, b.gep(scores, [b.add(b.mul(room, I64(row)), token)]), totals)
            return b

        rounded = b.sdiv(b.add(tokens, I64(TOKENS_PER_TILE - 1)), I64(TOKENS_PER_TILE))
        loop(b, I64(0), rounded, tile).ret_void()
        return function

    # ------------------------------------------------------------------ softmax of a row

    def _write_softmax(self) -> ir.Function:
        """Turn scores [low, high) into exponentials, all others up to the next whole vector into 0; give their sum."""
        lanes = self.spec.lanes
        function = self._function("softmax", [FLOATS, I64, I64, ir.IntType(1), FLOATS, FLOATS])
        scores, low, high, has_sink, sink, total = function.args
        b = ir.IRBuilder(function.append_basic_block())
        best = b.alloca(self.vector)
        summed = b.alloca(self.vector)

        def hide(b: ir.IRBuilder, index: ir.Value) -> ir.IRBuilder:
            b.store(F32(HIDDEN), b.gep(scores, [index]))
            return b

        b = loop(b, I64(0), low, hide)
        b = loop(b, high, b.add(high, I64(lanes)), hide)
        b.store(self._constant(HIDDEN), best)
        vectors = b.sdiv(b.add(high, I64(lanes - 1)), I64(lanes))

        def largest(b: ir.IRBuilder, index: ir.Value) -> ir.IRBuilder:
            numbers = self._load(b, b.gep(scores, [b.mul(index, I64(lanes))]))
            b.store(b.call(self.largest, [b.load(best), numbers]), best)
            return b

        b = loop(b, I64(0), vectors, largest)
        peak = self._largest_lane(b, b.load(best))
        sink_score = b.load(b.select(has_sink, sink, scores))
        peak = b.select(b.and_(has_sink, b.fcmp_ordered(">", sink_score, peak)), sink_score, peak)
        b.store(self._constant(0.0), summed)
        peaks = self._spread(b, peak, lanes)

        def exponential(b: ir.IRBuilder, index: ir.Value) -> ir.IRBuilder:
            at = b.gep(scores, [b.mul(index, I64(lanes))])
            result = self._exp(b, b.fsub(self._load(b, at), peaks))
            self._store(b, at, result)
            b.store(b.fadd(b.load(summed), result), summed)
            return b

        b = loop(b, I64(0), vectors, exponential)
        of_sink = b.extract_element(self._exp(b, self._spread(b, b.fsub(sink_score, peak), lanes)), I32(0))
        of_sink = b.select(has_sink, of_sink, F32(0.0))
        b.store(b.fadd(self._sum_lanes(b, b.load(summed)), of_sink), total)
        b.ret_void()
        return function

    def _exp(self, b: ir.IRBuilder, x: ir.Value) -> ir.Value:
        """Exponentials of numbers up to 0 (and a little above), 0 below `_LOWEST`; what is not a number stays so."""
        lanes = self.spec.lanes
        is_low = b.fcmp_ordered("<", x, self._constant(_LOWEST))
        clamped = b.select(is_low, self._constant(_LOWEST), x)
        n = b.call(self.rint, [b.fmul(clamped, self._constant(_LOG2_E))])
        rest = b.call(self.fma, [n, self._constant(-_LN2_HIGH), clamped])
        rest = b.call(self.fma, [n, self._constant(-_LN2_LOW), rest])
        value = self._constant(_POLYNOMIAL[0])
        for coefficient in _POLYNOMIAL[1:]:
            value = b.call(self.fma, [value, rest, self._constant(coefficient)])
        value = b.call(self.fma, [value, b.fmul(rest, rest), b.fadd(rest, self._constant(1.0))])
        integers = ir.VectorType(I32, lanes)
        exponent = b.add(b.fptosi(n, integers), ir.Constant(integers, [127] * lanes))
        power = b.bitcast(b.shl(exponent, ir.Constant(integers, [23] * lanes)), self.vector)
        result = b.select(is_low, self._constant(0.0), b.fmul(value, power))
        return b.fadd(result, b.fsub(x, x))

    # ------------------------------------------------------------------ weighted sum of a block's values

    def _write_add_values(self, heads: int) -> ir.Function:
        """Add the values of the tokens [begin, end) of a block, times each head's weights, to `heads` output rows."""
        spec, lanes = self.spec, self.spec.lanes
        function = self._function(f"add_values_{heads}", [FLOATS, I64, self.stored, FLOATS, I64, I64])
        weights, room, values, outputs, begin, end = function.args
        stride = spec.key_heads * spec.value_size
        b = ir.IRBuilder(function.append_basic_block())
        for start in range(0, spec.value_size, 4 * lanes):
            columns = range(start, min(start + 4 * lanes, spec.value_size), lanes)
            targets = [[b.gep(outputs, [I64(row * spec.value_size + c)]) for c in columns] for row in range(heads)]
            initial = [self._load(b, target) for row in targets for target in row]

            def token(
                b: ir.IRBuilder, t: ir.Value, sums: list[ir.Value], columns: Sequence[int] = columns
            ) -> list[ir.Value]:
                base = b.gep(values, [b.mul(t, I64(stride))])
                wide = [self._load_stored(b, b.gep(base, [I64(column)])) for column in columns]
                added = []
                for row in range(heads):
                    weight = b.load(b.gep(weights, [b.add(b.mul(room, I64(row)), t)]))
                    factor = self._spread(b, weight, lanes)
                    old = sums[row * len(wide) : (row + 1) * len(wide)]
                    added += [b.call(self.fma, [w, factor, s]) for w, s in zip(wide, old, strict=True)]
                return added

            b, sums = accumulate(b, begin, end, initial, token)
            for target, total in zip((target for row in targets for target in row), sums, strict=True):
                self._store(b, target, total)
        b.ret_void()
        return function

    def _write_scale(self) -> ir.Function:
        """Divide each head's output row by the sum of its exponentials."""
        spec = self.spec
        function = self._function("scale", [FLOATS, FLOATS])
        outputs, sums = function.args
        b = ir.IRBuilder(function.append_basic_block())
        for row in range(spec.shared_heads):
            factor = self._spread(b, b.fdiv(F32(1.0), b.load(b.gep(sums, [I64(row)]))), spec.lanes)
            for column in range(0, spec.value_size, spec.lanes):
                at = b.gep(outputs, [I64(row * spec.value_size + column)])
                self._store(b, at, b.fmul(self._load(b, at), factor))
        b.ret_void()
        return function

    # ------------------------------------------------------------------ vectors

    def _function(self, name: str, types: Sequence[ir.Type], internal: bool = True) -> ir.Function:
        function = ir.Function(self.module, ir.FunctionType(VOID, types), name)
        if internal:
            function.linkage = "internal"
        return function

    def _intrinsic(self, name: str, arguments: int) -> ir.Function:
        kind = ir.FunctionType(self.vector, [self.vector] * arguments)
        return ir.Function(self.module, kind, f"llvm.{name}.v{self.spec.lanes}f32")

    def _constant(self, number: float) -> ir.Constant:
        return ir.Constant(self.vector, [as_float32(number)] * self.spec.lanes)

    def _load(self, b: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
        return b.load(b.bitcast(pointer, self.vector.as_pointer()), align=4)

    def _store(self, b: ir.IRBuilder, pointer: ir.Value, numbers: ir.Value) -> None:
        b.store(numbers, b.bitcast(pointer, numbers.type.as_pointer()), align=4)

    def _load_stored(self, b: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
        """A vector of what the cache holds, widened to float32."""
        lanes = self.spec.lanes
        loaded = b.load(b.bitcast(pointer, ir.VectorType(self.stored.pointee, lanes).as_pointer()), align=2)
        if self.spec.stored == "float32":
            return loaded
        if self.spec.stored == "float16":
            return b.fpext(loaded, self.vector)
        wide = ir.VectorType(I32, lanes)
        return b.bitcast(b.shl(b.zext(loaded, wide), ir.Constant(wide, [16] * lanes)), self.vector)

    def _spread(self, b: ir.IRBuilder, number: ir.Value, lanes: int) -> ir.Value:
        first = b.insert_element(ir.Constant(ir.VectorType(F32, lanes), ir.Undefined), number, I32(0))
        return pick(b, first, first, [0] * lanes)

    def _least(self, b: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
        return b.select(b.icmp_signed("<", left, right), left, right)

    def _largest_lane(self, b: ir.IRBuilder, numbers: ir.Value) -> ir.Value:
        def larger(left: ir.Value, right: ir.Value) -> ir.Value:
            return b.select(b.fcmp_ordered(">", left, right), left, right)

        return reduce(b, numbers, larger)

    def _sum_lanes(self, b: ir.IRBuilder, numbers: ir.Value) -> ir.Value:
        return reduce(b, numbers, b.fadd)
