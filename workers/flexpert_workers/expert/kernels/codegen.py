"""Writes the matrix kernels as LLVM IR, for the vector width and the weights' type of this machine and checkpoint.

`native` compiles what this module writes. A dispatch multiplies a handful of rows with matrices that are far larger
than the caches, so the time to beat is that of reading the weights once. torch converts or repacks bfloat16 matrices on
processors without bfloat16 arithmetic and takes several times as long. These kernels read the weights in the type and
layout they are stored in, straight from the page, widen them to float32 in registers (exact for bfloat16 and float16),
and keep a tile of float32 sums in registers. The sum of an output is always added up in the same order, so a row's
result does not depend on which rows it is computed with.

Register tiling follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008).
"""

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir

from flexpert_workers.ir_blocks import I32, I64, four_lanes, loop_by, pick, totals_of_lanes

I16 = ir.IntType(16)
BYTE_POINTER = ir.IntType(8).as_pointer()
F32 = ir.FloatType()
ROWS_PER_TILE = 6
COLUMNS_PER_TILE = 4
COLUMNS_PER_STRIP = 16
ROWS_PER_UPDATE = 4
INPUTS_PER_UPDATE = 4
ENTRY = "grouped_linear"


@dataclass(frozen=True)
class KernelSpec:
    """What a kernel is written for.

    Attributes:
        weight_type: "bfloat16", "float16" or "float32".
        is_transposed: Matrices are [in, out] rather than [out, in].
        lanes: float32 numbers in a vector register, a power of two of at least 4.
    """

    weight_type: str
    is_transposed: bool
    lanes: int


def write_kernel(spec: KernelSpec) -> str:
    """IR of a module with the function `grouped_linear`.

    Its arguments: inputs [rows, in] float32; addresses [groups] int64 of the matrices; starts [groups + 1] int64, the
    first row of each group; groups; outputs [rows, out] float32; in; out; and the columns [begin, end) to compute.
    A transposed kernel adds to `outputs`, the other overwrites them. `in` is a multiple of `lanes` when not transposed;
    `begin` and `end` are multiples of `lanes` when transposed.
    """
    return str(_Writer(spec).module)


class _Writer:
    """Builds one module."""

    def __init__(self, spec: KernelSpec) -> None:
        self.spec = spec
        self.module = ir.Module()
        self.vector = ir.VectorType(F32, spec.lanes)
        scalar = {"bfloat16": I16, "float16": ir.HalfType(), "float32": F32}[spec.weight_type]
        self.weights = scalar.as_pointer()
        self.floats = F32.as_pointer()
        self.fma = self._declare(f"llvm.fma.v{spec.lanes}f32", self.vector, [self.vector] * 3)
        self.prefetch = self._declare("llvm.prefetch.p0", ir.VoidType(), [BYTE_POINTER, I32, I32, I32])
        if spec.is_transposed:
            self._write_entry(self._update_group)
        else:
            self.strips = {rows: self._write_strip(rows) for rows in range(1, ROWS_PER_TILE + 1)}
            self._write_entry(self._dot_group)

    # ------------------------------------------------------------------ entry: group after group

    def _write_entry(self, group: "Callable[[ir.IRBuilder, _Group], ir.IRBuilder]") -> None:
        words = I64.as_pointer()
        arguments = [self.floats, words, words, I64, self.floats, I64, I64, I64, I64]
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), arguments), ENTRY)
        inputs, addresses, starts, groups, outputs, num_in, num_out, begin, end = function.args

        def body(b: ir.IRBuilder, index: ir.Value) -> ir.IRBuilder:
            weights = b.inttoptr(b.load(b.gep(addresses, [index])), self.weights)
            first = b.load(b.gep(starts, [index]))
            last = b.load(b.gep(starts, [b.add(index, I64(1))]))
            return group(b, _Group(inputs, weights, outputs, first, last, num_in, num_out, begin, end))

        b, _ = loop_by(ir.IRBuilder(function.append_basic_block()), I64(0), groups, 1, body)
        b.ret_void()

    def _row_blocks(
        self, b: ir.IRBuilder, g: "_Group", block: int, call: "Callable[[ir.IRBuilder, int, ir.Value], None]"
    ) -> ir.IRBuilder:
        """`call(b, rows, first row)` for blocks of `block` rows of a group, then for the rows that are left over."""

        def full(b: ir.IRBuilder, row: ir.Value) -> ir.IRBuilder:
            call(b, block, row)
            return b

        b, row = loop_by(b, g.first, g.last, block, full)
        done = b.function.append_basic_block()
        choice = b.switch(b.sub(g.last, row), done)
        for rows in range(1, block):
            some = b.function.append_basic_block()
            choice.add_case(I64(rows), some)
            inner = ir.IRBuilder(some)
            call(inner, rows, row)
            inner.branch(done)
        return ir.IRBuilder(done)

    # ------------------------------------------------------------------ [out, in]: dot products

    def _dot_group(self, b: ir.IRBuilder, g: "_Group") -> ir.IRBuilder:
        """Strips of columns; within a strip blocks of rows, so that the strip's weights come from memory only once."""

        def strip(b: ir.IRBuilder, column: ir.Value) -> ir.IRBuilder:
            beyond = b.add(column, I64(COLUMNS_PER_STRIP))
            end = b.select(b.icmp_signed("<", beyond, g.end), beyond, g.end)

            def call(b: ir.IRBuilder, rows: int, row: ir.Value) -> None:
                inputs, outputs = b.gep(g.inputs, [b.mul(row, g.num_in)]), b.gep(g.outputs, [b.mul(row, g.num_out)])
                b.call(self.strips[rows], [inputs, g.weights, outputs, g.num_in, g.num_out, column, end])

            return self._row_blocks(b, g, ROWS_PER_TILE, call)

        rounded = b.add(g.end, I64(COLUMNS_PER_STRIP - 1))
        b, _ = loop_by(b, g.begin, rounded, COLUMNS_PER_STRIP, strip)
        return b

    def _write_strip(self, rows: int) -> ir.Function:
        """`rows` rows times the columns [begin, end): tiles of columns, then the columns that are left over."""
        arguments = [self.floats, self.weights, self.floats, I64, I64, I64, I64]
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), arguments), f"strip_{rows}")
        function.linkage = "internal"
        inputs, weights, outputs, num_in, num_out, begin, end = function.args
        b, column = ir.IRBuilder(function.append_basic_block()), begin
        for columns in (COLUMNS_PER_TILE, 1):
            tile = self._write_tile(rows, columns)

            def call(b: ir.IRBuilder, j: ir.Value, tile: ir.Function = tile) -> ir.IRBuilder:
                b.call(tile, [inputs, b.gep(weights, [b.mul(j, num_in)]), b.gep(outputs, [j]), num_in, num_out])
                return b

            b, column = loop_by(b, column, end, columns, call)
        b.ret_void()
        return function

    def _write_tile(self, rows: int, columns: int) -> ir.Function:
        """`rows` x `columns` dot products, all sums in registers."""
        arguments = [self.floats, self.weights, self.floats, I64, I64]
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), arguments), f"tile_{rows}x{columns}")
        function.linkage = "internal"
        inputs, weights, outputs, num_in, num_out = function.args
        b = ir.IRBuilder(function.append_basic_block())
        input_rows = [b.gep(inputs, [b.mul(num_in, I64(row))]) for row in range(rows)]
        weight_rows = [b.gep(weights, [b.mul(num_in, I64(column))]) for column in range(columns)]
        ahead = b.mul(num_in, I64(columns))

        def step(b: ir.IRBuilder, k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            wide = [self._load_weights(b, b.gep(pointer, [k])) for pointer in weight_rows]
            for pointer in weight_rows:
                self._fetch_ahead(b, b.gep(pointer, [b.add(k, ahead)]))
            added = []
            for row in range(rows):
                values = self._load(b, b.gep(input_rows[row], [k]))
                old = sums[row * columns : (row + 1) * columns]
                added += [b.call(self.fma, [w, values, total]) for w, total in zip(wide, old, strict=True)]
            return added

        zero = ir.Constant(self.vector, [0.0] * self.spec.lanes)
        b, sums = _accumulate(b, num_in, self.spec.lanes, [zero] * (rows * columns), step)
        for row in range(rows):
            target = b.gep(outputs, [b.mul(num_out, I64(row))])
            self._store_totals(b, sums[row * columns : (row + 1) * columns], target)
        b.ret_void()
        return function

    def _store_totals(self, b: ir.IRBuilder, sums: list[ir.Value], target: ir.Value) -> None:
        """Add the lanes of 4 vectors, or of 1, and store the totals side by side; the order of adding is the same."""
        if len(sums) == 1:
            four = four_lanes(b, sums[0])
            pair = b.fadd(pick(b, four, four, (0, 1)), pick(b, four, four, (2, 3)))
            b.store(b.fadd(b.extract_element(pair, I32(0)), b.extract_element(pair, I32(1))), target)
            return
        totals = totals_of_lanes(b, sums)
        b.store(totals, b.bitcast(target, totals.type.as_pointer()), align=4)

    # ------------------------------------------------------------------ [in, out]: rank updates

    def _update_group(self, b: ir.IRBuilder, g: "_Group") -> ir.IRBuilder:
        """A few inputs at a time, whose weight rows are read side by side, added to blocks of output rows."""
        done: ir.Value = I64(0)
        for inputs in (INPUTS_PER_UPDATE, 1):
            updates = {count: self._update(count, inputs) for count in range(1, ROWS_PER_UPDATE + 1)}

            def some(b: ir.IRBuilder, k: ir.Value, updates: dict[int, ir.Function] = updates) -> ir.IRBuilder:
                def call(b: ir.IRBuilder, rows: int, row: ir.Value) -> None:
                    values = b.gep(g.inputs, [b.add(b.mul(row, g.num_in), k)])
                    weights = b.gep(g.weights, [b.mul(k, g.num_out)])
                    outputs = b.gep(g.outputs, [b.mul(row, g.num_out)])
                    b.call(updates[rows], [values, weights, outputs, g.num_in, g.num_out, g.begin, g.end])

                return self._row_blocks(b, g, ROWS_PER_UPDATE, call)

            b, done = loop_by(b, done, g.num_in, inputs, some)
        return b

    def _update(self, rows: int, inputs: int) -> ir.Function:
        """Add `inputs` weight rows, each times a number per output row, to the columns [begin, end) of `rows` rows."""
        arguments = [self.floats, self.weights, self.floats, I64, I64, I64, I64]
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), arguments), f"update_{rows}x{inputs}")
        function.linkage = "internal"
        values, weights, outputs, num_in, num_out, begin, end = function.args
        b = ir.IRBuilder(function.append_basic_block())
        factors = [
            [self._spread(b, b.load(b.gep(values, [b.add(b.mul(num_in, I64(row)), I64(k))]))) for k in range(inputs)]
            for row in range(rows)
        ]
        weight_rows = [b.gep(weights, [b.mul(num_out, I64(k))]) for k in range(inputs)]
        output_rows = [b.gep(outputs, [b.mul(num_out, I64(row))]) for row in range(rows)]
        ahead = b.mul(num_out, I64(inputs))

        def column(b: ir.IRBuilder, j: ir.Value) -> ir.IRBuilder:
            wide = [self._load_weights(b, b.gep(pointer, [j])) for pointer in weight_rows]
            for pointer in weight_rows:
                self._fetch_ahead(b, b.gep(pointer, [b.add(j, ahead)]))
            for row in range(rows):
                target = b.gep(output_rows[row], [j])
                total = self._load(b, target)
                for k in range(inputs):
                    total = b.call(self.fma, [wide[k], factors[row][k], total])
                b.store(total, b.bitcast(target, self.vector.as_pointer()), align=4)
            return b

        b, _ = loop_by(b, begin, end, self.spec.lanes, column)
        b.ret_void()
        return function

    # ------------------------------------------------------------------ vectors

    def _load_weights(self, b: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
        """A vector of weights, widened to float32."""
        lanes = self.spec.lanes
        stored = ir.VectorType(self.weights.pointee, lanes)
        loaded = b.load(b.bitcast(pointer, stored.as_pointer()), align=2)
        if self.spec.weight_type == "float32":
            return loaded
        if self.spec.weight_type == "float16":
            return b.fpext(loaded, self.vector)
        wide = ir.VectorType(I32, lanes)
        return b.bitcast(b.shl(b.zext(loaded, wide), ir.Constant(wide, [16] * lanes)), self.vector)

    def _load(self, b: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
        return b.load(b.bitcast(pointer, self.vector.as_pointer()), align=4)

    def _spread(self, b: ir.IRBuilder, number: ir.Value) -> ir.Value:
        first = b.insert_element(ir.Constant(self.vector, ir.Undefined), number, I32(0))
        return pick(b, first, first, [0] * self.spec.lanes)

    def _fetch_ahead(self, b: ir.IRBuilder, pointer: ir.Value) -> None:
        """Ask for the cache line that the next tile reads here: a hint, harmless behind the end of a matrix."""
        b.call(self.prefetch, [b.bitcast(pointer, BYTE_POINTER), I32(0), I32(2), I32(1)])

    def _declare(self, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
        return ir.Function(self.module, ir.FunctionType(result, arguments), name)


@dataclass(frozen=True)
class _Group:
    """The values of one group: rows [first, last) of inputs and outputs, and its matrix."""

    inputs: ir.Value
    weights: ir.Value
    outputs: ir.Value
    first: ir.Value
    last: ir.Value
    num_in: ir.Value
    num_out: ir.Value
    begin: ir.Value
    end: ir.Value


def _accumulate(
    b: ir.IRBuilder,
    end: ir.Value,
    step: int,
    start: list[ir.Value],
    body: "Callable[[ir.IRBuilder, ir.Value, list[ir.Value]], list[ir.Value]]",
) -> tuple[ir.IRBuilder, list[ir.Value]]:
    """Run `body` for i = 0, step, … below `end` (at least once) on values carried round; returns the final ones."""
    inside, behind = (b.function.append_basic_block() for _ in range(2))
    before = b.block
    b.branch(inside)
    b = ir.IRBuilder(inside)
    i = b.phi(I64)
    i.add_incoming(I64(0), before)
    carried = [b.phi(value.type) for value in start]
    for phi, value in zip(carried, start, strict=True):
        phi.add_incoming(value, before)
    results = body(b, i, carried)
    for phi, value in zip(carried, results, strict=True):
        phi.add_incoming(value, inside)
    following = b.add(i, I64(step))
    i.add_incoming(following, inside)
    b.cbranch(b.icmp_signed("<", following, end), inside, behind)
    return ir.IRBuilder(behind), results
