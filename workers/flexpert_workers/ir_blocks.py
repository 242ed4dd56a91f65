"""Blocks of LLVM IR that every kernel is written with: loops, and what is done with the lanes of vectors.

`engine.paged_ir` writes attention with them, `expert.kernels.codegen` the experts' matrices.
"""

from array import array
from collections.abc import Callable, Sequence

from llvmlite import ir

I32, I64 = ir.IntType(32), ir.IntType(64)


def as_float32(number: float) -> float:
    """The nearest float32, which is all that LLVM takes as one."""
    cell = array("f", [number])
    return cell[0]


def reduce(b: ir.IRBuilder, numbers: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """Combine the lanes of a vector, half with half."""
    while numbers.type.count > 1:
        half = numbers.type.count // 2
        halves = (pick(b, numbers, numbers, list(range(start, start + half))) for start in (0, half))
        numbers = combine(*halves)
    return b.extract_element(numbers, I32(0))


def totals_of_lanes(b: ir.IRBuilder, sums: Sequence[ir.Value]) -> ir.Value:
    """The sums over the lanes of four vectors, as a vector of four."""
    folded = [four_lanes(b, one) for one in sums]
    halves = (folded[:2], folded[2:])
    left, right = (b.fadd(pick(b, p, q, [0, 1, 4, 5]), pick(b, p, q, [2, 3, 6, 7])) for p, q in halves)
    return b.fadd(pick(b, left, right, [0, 2, 4, 6]), pick(b, left, right, [1, 3, 5, 7]))


def four_lanes(b: ir.IRBuilder, sums: ir.Value) -> ir.Value:
    """The halves of a vector added to each other until four lanes are left."""
    while sums.type.count > 4:
        half = sums.type.count // 2
        sums = b.fadd(pick(b, sums, sums, range(half)), pick(b, sums, sums, range(half, 2 * half)))
    return sums


def pick(b: ir.IRBuilder, first: ir.Value, second: ir.Value, lanes: Sequence[int]) -> ir.Value:
    """A vector of the given lanes of two vectors, the second's counted after the first's."""
    return b.shuffle_vector(first, second, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def loop(
    b: ir.IRBuilder, begin: ir.Value, end: ir.Value, body: Callable[[ir.IRBuilder, ir.Value], ir.IRBuilder]
) -> ir.IRBuilder:
    """`for i in range(begin, end)`; returns the builder behind the loop."""
    return loop_by(b, begin, end, 1, body)[0]


def loop_by(
    b: ir.IRBuilder,
    begin: ir.Value,
    end: ir.Value,
    step: int,
    body: Callable[[ir.IRBuilder, ir.Value], ir.IRBuilder],
) -> tuple[ir.IRBuilder, ir.Value]:
    """`for i = begin; i + step <= end; i += step`; returns the builder behind the loop and the i it ended with."""
    head, inside, behind = (b.function.append_basic_block() for _ in range(3))
    before = b.block
    b.branch(head)
    b = ir.IRBuilder(head)
    i = b.phi(I64)
    i.add_incoming(begin, before)
    following = b.add(i, I64(step))
    b.cbranch(b.icmp_signed("<=", following, end), inside, behind)
    b = body(ir.IRBuilder(inside), i)
    i.add_incoming(following, b.block)
    b.branch(head)
    return ir.IRBuilder(behind), i


def accumulate(
    b: ir.IRBuilder,
    begin: ir.Value,
    end: ir.Value,
    start: list[ir.Value],
    body: Callable[[ir.IRBuilder, ir.Value, list[ir.Value]], list[ir.Value]],
) -> tuple[ir.IRBuilder, list[ir.Value]]:
    """`for i in range(begin, end)` on values carried round; returns the builder behind the loop and the values."""
    head, inside, behind = (b.function.append_basic_block() for _ in range(3))
    before = b.block
    b.branch(head)
    b = ir.IRBuilder(head)
    i = b.phi(I64)
    carried = [b.phi(value.type) for value in start]
    i.add_incoming(begin, before)
    for phi, value in zip(carried, start, strict=True):
        phi.add_incoming(value, before)
    b.cbranch(b.icmp_signed("<", i, end), inside, behind)
    b = ir.IRBuilder(inside)
    results = body(b, i, carried)
    i.add_incoming(b.add(i, I64(1)), b.block)
    for phi, value in zip(carried, results, strict=True):
        phi.add_incoming(value, b.block)
    b.branch(head)
    return ir.IRBuilder(behind), carried
