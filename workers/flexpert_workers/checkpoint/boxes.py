"""Which bytes of which stored tensors make up an array, worked out without reading any.

`conversion` runs an architecture's weight conversions on `Assembly` values instead of tensors; `layout` then copies
the resulting boxes from the files into an expert's page.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A strided part of a stored tensor, and where it goes.

    Attributes:
        tensor: Name of the stored tensor.
        start: First element, counted in the tensor's elements.
        strides: Elements of the tensor between neighbours, per dimension.
        at: Index in the assembled array of the box's first element.
    """

    tensor: str
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    at: tuple[int, ...]

    @property
    def span(self) -> int:
        """Elements of the tensor from the first to the last that the box names, both included."""
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def is_contiguous(self) -> bool:
        """Whether the box's elements lie in the tensor one behind the other, in order."""
        return all(
            size == 1 or stride == expected
            for size, stride, expected in zip(self.shape, self.strides, contiguous_strides(self.shape), strict=True)
        )

    def pieces(self, most_elements: int) -> "Iterator[Box]":
        """The box cut into smaller ones, each of which spans about `most_elements` of the tensor at most.

        It is cut along the dimension with the longest stride alone, so that no two pieces span the same elements.
        """
        dim = max(range(len(self.shape)), key=lambda each: self.strides[each], default=0)
        size = max(1, most_elements // max(1, self.strides[dim])) if self.shape else 0
        if not self.shape or size >= self.shape[dim]:
            yield self
            return
        for begin in range(0, self.shape[dim], size):
            yield Box(
                self.tensor,
                self.start + begin * self.strides[dim],
                _with(self.shape, dim, min(size, self.shape[dim] - begin)),
                self.strides,
                _with(self.at, dim, self.at[dim] + begin),
            )


@dataclass(frozen=True)
class Assembly:
    """An array made of boxes that do not overlap and together cover it."""

    shape: tuple[int, ...]
    boxes: tuple[Box, ...]

    @classmethod
    def stored(cls, tensor: str, shape: tuple[int, ...]) -> "Assembly":
        """The whole stored tensor."""
        return cls(shape, (Box(tensor, 0, shape, contiguous_strides(shape), (0,) * len(shape)),))

    def slice(self, dim: int, start: int, stop: int, step: int = 1) -> "Assembly":
        """Every `step`-th element along `dim` from `start` to before `stop`, as Python's slices count."""
        size = max(0, math.ceil((stop - start) / step))
        boxes = (_slice_box(box, dim, start, stop, step) for box in self.boxes)
        return Assembly(_with(self.shape, dim, size), tuple(box for box in boxes if box is not None))

    def transpose(self, first: int, second: int) -> "Assembly":
        """Swap two dimensions."""
        order = list(range(len(self.shape)))
        order[first], order[second] = order[second], order[first]

        def swap(values: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(values[dim] for dim in order)

        boxes = (Box(box.tensor, box.start, swap(box.shape), swap(box.strides), swap(box.at)) for box in self.boxes)
        return Assembly(swap(self.shape), tuple(boxes))

    def with_leading(self) -> "Assembly":
        """The same with a first dimension of size 1."""
        boxes = (Box(box.tensor, box.start, (1, *box.shape), (0, *box.strides), (0, *box.at)) for box in self.boxes)
        return Assembly((1, *self.shape), tuple(boxes))

    def without_leading(self) -> "Assembly":
        """The same without its first dimension, which has size 1."""
        assert self.shape[0] == 1, "only a dimension of size 1 can be dropped"
        boxes = (Box(box.tensor, box.start, box.shape[1:], box.strides[1:], box.at[1:]) for box in self.boxes)
        return Assembly(self.shape[1:], tuple(boxes))


def concatenate(parts: Sequence[Assembly], dim: int) -> Assembly:
    """The parts one behind the other along `dim`; their other sizes are equal."""
    boxes: list[Box] = []
    position = 0
    for part in parts:
        boxes += [
            Box(box.tensor, box.start, box.shape, box.strides, _with(box.at, dim, box.at[dim] + position))
            for box in part.boxes
        ]
        position += part.shape[dim]
    return Assembly(_with(parts[0].shape, dim, position), tuple(boxes))


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of an array of that shape stored row by row."""
    strides = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * shape[dim + 1]
    return tuple(strides)


def _slice_box(box: Box, dim: int, start: int, stop: int, step: int) -> Box | None:
    first, last = box.at[dim], min(stop, box.at[dim] + box.shape[dim])
    begin = max(0, math.ceil((first - start) / step))
    end = math.ceil((last - start) / step)
    if end <= begin:
        return None
    skipped = start + begin * step - first
    return Box(
        box.tensor,
        start=box.start + skipped * box.strides[dim],
        shape=_with(box.shape, dim, end - begin),
        strides=_with(box.strides, dim, box.strides[dim] * step),
        at=_with(box.at, dim, begin),
    )


def _with(values: tuple[int, ...], dim: int, value: int) -> tuple[int, ...]:
    return (*values[:dim], value, *values[dim + 1 :])
